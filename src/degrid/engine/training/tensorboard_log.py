"""TensorBoard as a recorder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from degrid.engine.training.recorder import Recorder

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

PARTS = ("train", "val")


class TensorBoard(Recorder):
    """Events in log/train and log/val of the run folder.

    The tags of both are without "train/" and "val/", so that TensorBoard draws the two curves of one tag together.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._boards = {part: SummaryWriter(str(folder / "log" / part), purge_step=start + 1) for part in PARTS}

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """See `Recorder`."""
        for tag, value in values.items():
            part, _, name = tag.partition("/")
            self._boards[part].add_scalar(name, value, step)

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """See `Recorder`."""
        self._boards["val"].add_image(tag, picture, step, dataformats="HWC")

    def graph(self, model: nn.Module, image: Tensor) -> None:
        """See `Recorder`."""
        training = model.training
        with warnings.catch_warnings(), torch.no_grad():
            # The writer traces with TorchScript, which warns that it is deprecated and of every size it takes as fixed.
            warnings.simplefilter("ignore")
            self._boards["train"].add_graph(model.eval(), image)
        model.train(training)

    def close(self, failed: bool = False) -> None:
        """See `Recorder`."""
        for board in self._boards.values():
            board.close()
