"""What records a training run: the one interface of log files, TensorBoard and trackers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from degrid.types import Scores


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step.

    Attributes:
        step: counted from 1.
        loss: of the step, a mean over its valid pixels.
        lr: learning rate of the encoder.
        images_per_second: including the time to load them.
        train_miou: of the training crops since the cycle began; only in cyclic training.
    """

    step: int
    loss: float
    lr: float
    images_per_second: float
    train_miou: float | None = None


class Recorder:
    """Hears of a run as it goes on. These methods do nothing: override those of interest."""

    def step(self, record: StepRecord) -> None:
        """An optimiser step is done."""

    def validation(self, step: int, scores: Scores) -> None:
        """The model was validated after a step."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Values to plot by tag, such as "train/loss": of step 1, every tenth step and every validation."""

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """A picture, uint8 [H,W,3], such as an image beside its label and its prediction."""

    def graph(self, model: nn.Module, image: Tensor) -> None:
        """The network, with RGB images [N,3,H,W] to trace it on; its mode must stay as it is."""

    def say(self, line: str) -> None:
        """A sentence for people."""

    def close(self, failed: bool = False) -> None:
        """The run has ended, or has `failed`; wait until everything has been written."""
