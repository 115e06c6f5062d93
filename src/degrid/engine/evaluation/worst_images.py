"""Where a model fails: the images of lowest mIoU."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from torch import Tensor

from degrid.engine.evaluation.metrics import hits_and_unions, image_confusion, mean_iou
from degrid.types import Sample


@dataclass(frozen=True)
class ScoredImage:
    """An image with its own mIoU, 0 to 1, over the classes in its truth or prediction.

    index: in the dataset. ids: the prediction, uint8 [H,W].
    """

    index: int
    miou: float
    sample: Sample
    ids: Tensor


class WorstImages:
    """Keeps the images of lowest mIoU; an instance is the `on_image` of `degrid.evaluate`.

    Only these are in memory. Of images with the same score the first are kept; images without a valid pixel never.

    found: at most `count` images, the worst first.
    """

    def __init__(self, num_classes: int, count: int) -> None:
        self.num_classes = num_classes
        self.count = count
        self.found: list[ScoredImage] = []

    def __call__(self, index: int, sample: Sample, ids: Tensor) -> None:
        """Add an image with its prediction, integer [H,W]."""
        counts = image_confusion(ids, sample.label, self.num_classes)
        if not counts.any():
            return
        miou = mean_iou(*hits_and_unions(counts)).item()
        insort(self.found, ScoredImage(index, miou, sample, ids), key=lambda image: (image.miou, image.index))
        del self.found[self.count :]
