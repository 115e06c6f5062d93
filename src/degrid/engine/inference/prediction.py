"""What predictors give. Imports no torch."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from degrid.bands import DIM_SENTENCE, LargeScene, is_dim
from degrid.types import Bands, UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

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
        """Look at the pixels, uint8 [H,W,C], of an image, unless something was said before."""
        if not self.said and is_dim(image, self.bands, pixels):
            self.said = True
            name = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", "") or "the image"
            logging.getLogger("degrid").warning(f"nearly black to the network: {name}, {DIM_SENTENCE}")


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
