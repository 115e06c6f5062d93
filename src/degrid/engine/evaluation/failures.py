"""Where a model fails: near the borders of the truth, and on the images of lowest mIoU."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from degrid.engine.evaluation.metrics import (
    ConfusionMatrix,
    Ids,
    as_array,
    contour_band,
    hits_and_unions,
    image_confusion,
    mean_iou,
    window_max,
)
from degrid.types import IGNORE_INDEX, AnySample, UserError

WIDTHS = (1, 2, 4, 8, 16, 40)
"""Half widths of the bands, in pixels; up to 40 as in the DeepLab papers."""


@dataclass(frozen=True)
class TrimapPoint:
    """One point of the curve.

    width: pixels count up to this distance from a border. miou: over them, 0 to 1. pixels: how many they are.
    """

    width: int
    miou: float
    pixels: int


class TrimapCounts:
    """Counts of (truth, prediction) in bands along the class borders of the truth, void pixels never counted.

    A pixel is in the band of width w if another id lies within w pixels of it (chessboard distance) in the truth.
    Void is an id of its own there, because many data sets draw a strip of void between two classes. The image's border
    is no class border; an image of one class alone has no band.

    Args:
        widths: in pixels, rising, from 1 on.
    Raises:
        UserError: widths of another kind.
    Source: Kohli et al., Robust Higher Order Potentials (IJCV 2009); DeepLab v1 (arXiv 1412.7062), "Mean Pixel IOU
    along Object Boundaries", where the band lies along the void strips of PASCAL VOC.
    """

    def __init__(self, num_classes: int, widths: Sequence[int] = WIDTHS) -> None:
        if not widths or list(widths) != sorted(set(widths)) or widths[0] < 1:
            raise UserError(f"trimap widths: expected increasing numbers of pixels, at least 1, got {list(widths)}")
        self.confusions = {width: ConfusionMatrix(num_classes) for width in widths}

    def __call__(self, index: int, sample: AnySample, ids: Ids) -> None:
        """Add an image; an instance is an `on_image` of `degrid.engine.evaluation.evaluate.score`."""
        self.update(ids, sample.label)

    def update(self, prediction: Ids, label: Ids) -> None:
        """Add one image; both integer [H,W]."""
        # Any path to another id crosses a border, so growing the narrowest band gives the wider ones.
        guess, ids = as_array(prediction), as_array(label)
        band, grown = contour_band(ids, 1, image_border=False), 1
        for width, confusion in self.confusions.items():
            if width > grown:
                band, grown = window_max(band, width - grown), width
            counted = band & (ids != IGNORE_INDEX)
            confusion.update(guess[counted], ids[counted])

    def curve(self) -> tuple[TrimapPoint, ...]:
        """The mIoU of each width, over the classes in truth or prediction there; 0 where no pixel counted.

        Every process of `torch.distributed` must call this; all get the same curve.
        """
        merged = {width: confusion.merged().counts for width, confusion in self.confusions.items()}
        return tuple(
            TrimapPoint(width, mean_iou(*hits_and_unions(counts)).item(), int(counts.sum()))
            for width, counts in merged.items()
        )


@dataclass(frozen=True)
class ScoredImage:
    """An image with its own mIoU, 0 to 1, over the classes in its truth or prediction.

    index: in the dataset. name: of its sample. image: [C,H,W]. label, ids: truth and prediction, uint8 [H,W].
    """

    index: int
    miou: float
    name: str
    image: np.ndarray
    label: np.ndarray
    ids: np.ndarray


class WorstImages:
    """Keeps the images of lowest mIoU; an instance is the `on_image` of `degrid.evaluate`.

    Only these are in memory. Of images with the same score the first are kept; images without a valid pixel never.

    found: at most `count` images, the worst first.
    """

    def __init__(self, num_classes: int, count: int) -> None:
        self.num_classes = num_classes
        self.count = count
        self.found: list[ScoredImage] = []

    def __call__(self, index: int, sample: AnySample, ids: Ids) -> None:
        """Add an image with its prediction, integer [H,W]."""
        counts = image_confusion(ids, sample.label, self.num_classes)
        if not counts.any():
            return
        miou = mean_iou(*hits_and_unions(counts)).item()
        arrays = (as_array(each) for each in (sample.image, sample.label, ids))
        image = ScoredImage(index, miou, sample.name, *arrays)
        insort(self.found, image, key=lambda image: (image.miou, image.index))
        del self.found[self.count :]
