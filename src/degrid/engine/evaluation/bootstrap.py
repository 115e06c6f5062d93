"""Whether one model beats another by more than chance: a paired bootstrap over the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from degrid.engine.evaluation.metrics import Ids, hits_and_unions, image_confusion, mean_iou
from degrid.types import AnySample, UserError

CHUNK_VALUES = 2_000_000
"""Values of the largest array at a time; some such arrays of eight bytes are alive together."""


@dataclass(frozen=True)
class Difference:
    """How much better the second of two models is than the first, on the same images. All in 0..1.

    miou_a, miou_b: over all images. difference: miou_b - miou_a. low, high: its 95 % interval. p: two-sided, above 0.
    over: what another choice of it would change: "images", see `paired_bootstrap`; or "seeds", between recipes, whose
    mIoUs are means over runs, see `degrid.engine.evaluation.seeds`. paired: whether the two had the same ones.
    """

    miou_a: float
    miou_b: float
    difference: float
    low: float
    high: float
    p: float
    over: str = "images"
    paired: bool = True


class ImageConfusions:
    """Collects a confusion matrix per image; an instance is the `on_image` of `degrid.evaluate`."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._matrices: list[np.ndarray] = []

    def __call__(self, index: int, sample: AnySample, ids: Ids) -> None:
        """Add an image with its prediction, integer [H,W]."""
        self._matrices.append(image_confusion(ids, sample.label, self.num_classes))

    def stacked(self) -> np.ndarray:
        """int64 [num_images,C,C] in the order of the images; rows are truth, columns prediction.

        Raises:
            UserError: no image was added.
        """
        if not self._matrices:
            raise UserError("no image was evaluated, so there is nothing to compare")
        return np.stack(self._matrices)


def paired_bootstrap(a: np.ndarray, b: np.ndarray, draws: int = 10_000, seed: int = 0) -> Difference:
    """Compare the mIoU of two models by drawing images with replacement, the same ones for both.

    The interval lies between the percentiles 2.5 and 97.5 of the draws. p is twice the share of draws in which the
    difference is zero or has the other sign, counted with the data themselves as one more such draw; at most 1.

    The mIoU of a draw is that of the summed matrices, without the classes absent from truth and prediction. The draws
    are rows of `numpy.random.default_rng(seed).integers(num_images, size=(draws, num_images))`.

    Args:
        a, b: int64 [num_images,C,C], see `ImageConfusions`.
    Raises:
        UserError: no image or draw, matrices of different shape, or of different images.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: percentile intervals; Davison and
    Hinkley, Bootstrap Methods and their Application (1997), section 4.2: one more draw.
    """
    _check_pair(a, b, draws)
    classes = a.shape[1]
    # All that the mIoU needs from a sum of matrices, and far smaller than they are: [num_images, 4 C].
    parts = np.concatenate([*hits_and_unions(a), *hits_and_unions(b)], axis=1).astype(np.float64)
    miou_a, miou_b = (miou.item() for miou in _mious(parts.sum(0, keepdims=True), classes))
    drawn = np.concatenate([b - a for a, b in _drawn(parts, classes, draws, seed)])
    low, high = np.quantile(drawn, [0.025, 0.975])
    difference = miou_b - miou_a
    flipped = int(np.sum(drawn * np.sign(difference) <= 0))
    p = min(1.0, 2 * (flipped + 1) / (draws + 1))
    return Difference(miou_a, miou_b, difference, float(low), float(high), p)


def miou_interval(confusions: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a model's mIoU, 0..1, over other choices of images; see `paired_bootstrap`.

    Args:
        confusions: int64 [num_images,C,C], see `ImageConfusions`.
    Raises:
        UserError: no image or draw.
    """
    _check_pair(confusions, confusions, draws)
    hit, union = hits_and_unions(confusions)
    parts = np.concatenate([hit, union, hit, union], axis=1).astype(np.float64)
    drawn = np.concatenate([miou for miou, _ in _drawn(parts, confusions.shape[1], draws, seed)])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _drawn(parts: np.ndarray, classes: int, draws: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The mIoUs of both models for the draws, part by part; `parts`: float64 [num_images,4C]."""
    images = len(parts)
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK_VALUES // max(images, 4 * classes))
    for start in range(0, draws, rows):
        yield _mious(_draw(generator, min(rows, draws - start), images) @ parts, classes)


def _check_pair(a: np.ndarray, b: np.ndarray, draws: int) -> None:
    if a.shape != b.shape or a.ndim != 3 or a.shape[1] != a.shape[2]:
        raise UserError(f"expected two stacks of matrices [images,C,C] of one shape, got {[*a.shape]} and {[*b.shape]}")
    if a.shape[0] == 0 or draws < 1:
        raise UserError(f"a bootstrap needs images and draws, got {a.shape[0]} images and {draws} draws")
    if not np.array_equal(a.sum(2), b.sum(2)):
        raise UserError("the two models were not scored on the same images in the same order: the truths differ")


def _draw(generator: np.random.Generator, rows: int, images: int) -> np.ndarray:
    """How often each image is drawn, float64 [rows,images]."""
    chosen = generator.integers(images, size=(rows, images))
    chosen += images * np.arange(rows)[:, None]
    counts = np.bincount(chosen.reshape(-1), minlength=rows * images)
    return counts.reshape(rows, images).astype(np.float64)


def _mious(sums: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The mIoU of both models, two float64 [rows], of sums [rows, 4 C]."""
    hit_a, union_a, hit_b, union_b = sums.reshape(-1, 4, classes).transpose(1, 0, 2)
    return mean_iou(hit_a, union_a), mean_iou(hit_b, union_b)
