"""The test-time options of predictors (scales, flips, a sliding window, a CRF), and their results. Imports no torch."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from degrid.arguments import check_fields
from degrid.bands import DIM_SENTENCE, LargeScene, is_dim
from degrid.kernels.crf_settings import CRF
from degrid.types import Bands, UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


FUSIONS = ("mean", "max")


@dataclass(frozen=True)
class InferenceOptions:
    """Test-time options: how often a network runs on an image, on which parts of it, and how the results are fused.

    scales: of the image; a single 1 means the original size only.
    flip: also use the mirrored image.
    fusion: "mean" of the probabilities (DeepLab v3, arXiv 1706.05587 section 4.1) or "max" of the logits (v2, arXiv
        1606.00915 section 4.1.2) over scales and flips.
    window: height and width of a window that slides over the image, in pixels; None: the whole image at once.
    overlap: fraction of a window that the next one covers as well, 0 to below 1.
    memory: bytes that the process may use in total (on a GPU, its tensors there), within 15 %: what it uses before the
        first image, the network's copy, feature maps, scores and class ids; a larger image is processed in windows. The
        program calls `degrid.engine.memory.settle_memory`, as the command line does. None: feature maps may take four
        fifths of the free memory, which is checked only for images of more than 2 million pixels.
    crf: a dense conditional random field that refines the probabilities; None: none.
    smooth: for the frames of a video, the weight of the past in the exponential average of their class probabilities, 0
        (each frame on its own) up to below 1.

    Raises:
        UserError: a value out of its range.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fusion: str = "mean"
    window: tuple[int, int] | None = None
    overlap: float = 0.5
    memory: int | None = None
    crf: CRF | None = None
    smooth: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
            raise UserError(f"scales: expected factors above 0, up to 8, such as 0.75,1,1.25; got {self.scales}")
        if self.fusion not in FUSIONS:
            raise UserError(f'fusion: expected {" or ".join(FUSIONS)}, got "{self.fusion}"')
        if self.window is not None and min(self.window) < 1:
            raise UserError(f"window: expected a height and width of at least 1 pixel, got {self.window}")
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap: expected a fraction from 0 to below 1, got {self.overlap}")
        if self.memory is not None and self.memory < 1:
            raise UserError(f"memory: expected a number of bytes, at least 1, got {self.memory}")
        if not 0 <= self.smooth < 1:
            raise UserError(f"smooth: expected a weight from 0 to below 1, got {self.smooth}")
        if self.memory is not None and self.window is not None:
            raise UserError("memory and window exclude each other: the limit chooses the window")

    @property
    def is_plain(self) -> bool:
        """Whether the network runs once, on the whole image, and its logits are the result."""
        return self.is_single and self.window is None and self.crf is None

    @property
    def only_slides(self) -> bool:
        """Whether windows are all there is, so that class ids are ready band by band, without all scores in memory."""
        return self.is_single and self.window is not None and self.crf is None

    @property
    def is_single(self) -> bool:
        """Whether the original image is the only view, so that there is nothing to fuse."""
        return self.scales == (1.0,) and not self.flip

    @property
    def gives_probabilities(self) -> bool:
        """Whether the scores are probabilities or sums of them, rather than logits."""
        return self.crf is not None or self.sums_probabilities

    @property
    def sums_probabilities(self) -> bool:
        """Whether the probabilities of several views are added up."""
        return self.fusion == "mean" and not self.is_single

    def slides_over(self, size: tuple[int, ...]) -> bool:
        """Whether an image of this height and width needs more than one window."""
        return self.window is not None and (self.window[0] < size[0] or self.window[1] < size[1])


PRECISION_OF_FILE = "the exported model's own precision"
"""How an exported model is computed, as a sentence."""


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for an image.

    ids: uint8 [H,W], at the image's size; 255 where it holds no data. logits: float32 [C,h,w], see `Predictor.scores`;
    None where windows slide, so that they are never all in memory. image: uint8 [H,W,C]; of an image that is read part
    by part a smaller copy.
    """

    ids: np.ndarray
    logits: np.ndarray | None
    image: np.ndarray


class DimWarning:
    """Says once that a network sees an image nearly black, see `is_dim`."""

    def __init__(self, bands: Bands) -> None:
        self.bands, self.said = bands, False

    def __call__(self, image: str | os.PathLike[str] | Image.Image, pixels: np.ndarray) -> None:
        """Look at the pixels, uint8 [H,W,C], of an image, unless a warning was given before."""
        if not self.said and is_dim(image, self.bands, pixels):
            self.said = True
            name = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", "") or "the image"
            logging.getLogger("degrid").warning(f"nearly black for the network: {name}, {DIM_SENTENCE}")


def no_limit_of_files() -> UserError:
    """The error where a limit of memory is asked for with an exported model, whose runtime takes what it needs."""
    return UserError(
        "--memory (memory=...): a limit cannot be kept with an exported model, whose runtime does not say what it "
        "takes; give --window HEIGHTxWIDTH in its place, for a file that gives logits (--output logits), or the model "
        "folder that the file was made from"
    )


def needs_the_whole(scene: LargeScene) -> UserError:
    """The error where options or a network need a whole image that is too large to be read at once."""
    return UserError(
        f"{scene.path} has {scene.size[1]}x{scene.size[0]} pixels and is predicted in windows: leave out scales, flips "
        "and CRF, and use a model that gives logits"
    )
