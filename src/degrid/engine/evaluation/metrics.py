"""Scores at dataset level, from integer counts: the same number however the images are divided up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from degrid.engine.ranks import counts_of_all
from degrid.types import IGNORE_INDEX, LabelSpace, Scores, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from degrid.engine.evaluation.calibration import CalibrationCounts

Ids: TypeAlias = "np.ndarray | Tensor"
"""Ids of pixels, as an array or as a tensor on any device."""


def as_array(values: Ids) -> np.ndarray:
    """An array of the same values."""
    return values if isinstance(values, np.ndarray) else values.cpu().numpy()


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs, skipping void pixels.

    counts: int64 [C,C]; rows are truth, columns prediction. Matrices of parts of a dataset can be added.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: Ids, label: Ids) -> None:
        """Add one image or batch.

        Args:
            prediction: integer ids 0..C-1, any shape.
            label: integer ids 0..C-1 or IGNORE_INDEX, the same shape.
        Raises:
            UserError: shapes differ, or a label or prediction outside 0..C-1 that is not void.
        """
        if prediction.shape != label.shape:
            raise UserError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape")
        truth, guess = as_array(label), as_array(prediction)
        if guess.dtype != np.uint8:
            guess = np.where(truth == IGNORE_INDEX, 0, guess)  # where nothing is counted, any value is allowed
        # All pairs of bytes: cheaper than leaving out void and looking for foreign ids pixel by pixel.
        pairs = _pairs(self._bytes("label", truth), self._bytes("prediction", guess))
        self._refuse("label", pairs[:IGNORE_INDEX].sum(1))
        counts = pairs[: self.num_classes]
        self._refuse("prediction", counts.sum(0))
        self.counts += counts[:, : self.num_classes]

    def _bytes(self, what: str, ids: np.ndarray) -> np.ndarray:
        """Ids as uint8."""
        if ids.dtype == np.uint8:
            return ids
        wide = ids[(ids < 0) | (ids > 255)]
        if wide.size:
            raise self._foreign(what, sorted(set(wide.tolist())))
        return ids.astype(np.uint8)

    def _refuse(self, what: str, pixels: np.ndarray) -> None:
        """Ids of C and above must not have pixels."""
        found = pixels[self.num_classes :].nonzero()[0].tolist()
        if found:
            raise self._foreign(what, [self.num_classes + index for index in found])

    def _foreign(self, what: str, ids: list[int]) -> UserError:
        return UserError(
            f"{what} holds id {', '.join(map(str, ids[:5]))}; expected 0 to {self.num_classes - 1}"
            + (f" or {IGNORE_INDEX} (void)" if what == "label" else "")
        )

    def merged(self) -> ConfusionMatrix:
        """The counts of all processes, see `counts_of_all`; this one's stay as they are."""
        whole = ConfusionMatrix(self.num_classes)
        whole.counts = counts_of_all(self.counts)
        return whole


class BoundaryCounts:
    """Counts for boundary IoU: how well the contour bands of truth and prediction agree.

    The band of a label map holds every pixel within `width` pixels (chessboard distance) of another class or
    of the image border. Void pixels of the truth are void in the prediction too, and are never counted.

    Source: Cheng et al., Boundary IoU (arXiv 2103.16562), section 4, applied to every class of a semantic map;
    the band is 2 % of the image diagonal wide there.
    """

    def __init__(self, num_classes: int, width_fraction: float = 0.02) -> None:
        self.width_fraction = width_fraction
        self.intersection = np.zeros(num_classes, np.int64)
        self.union = np.zeros(num_classes, np.int64)

    def update(self, prediction: Ids, label: Ids) -> None:
        """Add one image; both integer [H,W]."""
        truth = as_array(label)
        guess = np.where(truth == IGNORE_INDEX, truth, as_array(prediction))
        band_width = max(1, round(self.width_fraction * math.hypot(*truth.shape)))
        # Outside its band a map counts as void, so that one table of pairs holds all three counts.
        pairs = _pairs(*(np.where(contour_band(ids, band_width), ids, IGNORE_INDEX) for ids in (truth, guess)))
        ids = slice(len(self.union))
        shared, in_truth, in_guess = pairs.diagonal()[ids], pairs[ids].sum(1), pairs[:, ids].sum(0)
        self.intersection += shared
        self.union += in_truth + in_guess - shared

    def merged(self) -> BoundaryCounts:
        """The counts of all processes, see `counts_of_all`; this one's stay as they are."""
        whole = BoundaryCounts(len(self.union), self.width_fraction)
        whole.intersection, whole.union = counts_of_all(self.intersection), counts_of_all(self.union)
        return whole


def image_confusion(prediction: Ids, label: Ids, num_classes: int) -> np.ndarray:
    """The counts of one image, int64 [C,C]; see `ConfusionMatrix`."""
    matrix = ConfusionMatrix(num_classes)
    matrix.update(prediction, label)
    return matrix.counts


def _pairs(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """How many pixels have each pair of ids, int64 [256,256]: the first map's by row, the second's by column."""
    both = truth.astype(np.uint16) << 8 | guess.astype(np.uint8)
    return np.bincount(both.ravel(), minlength=256 * 256).reshape(256, 256)


def contour_band(ids: np.ndarray, width: int, image_border: bool = True) -> np.ndarray:
    """Pixels within `width` pixels (chessboard distance) of another id or of the image's border; bool [H,W].

    Args:
        ids: integer [H,W].
        image_border: whether the border of the image is a contour too.
    """
    found: np.ndarray = window_max(ids, width) != _in_windows(ids, width, np.minimum)
    if image_border:
        found[:width] = found[-width:] = True
        found[:, :width] = found[:, -width:] = True
    return found


def window_max(values: np.ndarray, width: int) -> np.ndarray:
    """The largest value within `width` pixels (chessboard distance) of each pixel; [H,W] to the same."""
    return _in_windows(values, width, np.maximum)


def _in_windows(values: np.ndarray, width: int, join: np.ufunc) -> np.ndarray:
    """The values within `width` pixels of each pixel joined into one, in a number of passes that grows like log(width).

    Joined windows of n pixels make windows of up to 2 n pixels, since a value may be joined twice.
    """
    values = np.pad(values, width, mode="edge")
    for _ in range(2):
        length, wanted = 1, 2 * width + 1
        while length < wanted:
            step = min(length, wanted - length)
            values = join(values[:-step], values[step:])
            length += step
        values = values.T
    return values


def hits_and_unions(confusions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in truth and prediction, and in truth or prediction; both [...,C] of counts [...,C,C].

    Both are linear in the counts: those of a sum of matrices are the sums.
    """
    hit = confusions.diagonal(axis1=-2, axis2=-1)
    return hit, confusions.sum(-1) + confusions.sum(-2) - hit


def mean_iou(hit: np.ndarray, union: np.ndarray) -> np.ndarray:
    """Mean over the classes of which there are pixels; float64 [...] of counts [...,C]. Without any it is 0."""
    present = union > 0
    ratios = hit / np.maximum(union, 1)
    found: np.ndarray = (ratios * present).sum(-1) / np.maximum(present.sum(-1), 1)
    return found


def scores(
    confusion: ConfusionMatrix,
    labels: LabelSpace,
    num_images: int,
    boundary: BoundaryCounts | None = None,
    calibration: CalibrationCounts | None = None,
) -> Scores:
    """Derive every score from the counts.

    IoU = TP / (TP + FP + FN). The means run over the classes present in truth or prediction (IoU) and over the
    classes present in truth (accuracy). With no valid pixel at all every score is 0.
    """
    counts = confusion.counts.astype(np.float64)
    hit, truth, guess = counts.diagonal(), counts.sum(1), counts.sum(0)
    union = truth + guess - hit
    class_iou = _ratios(hit, union)
    class_accuracy = _ratios(hit, truth)
    total = max(1.0, truth.sum().item())
    weighted = sum(iou * part for iou, part in zip(class_iou, (truth / total).tolist(), strict=True) if iou)
    class_boundary = _ratios(boundary.intersection, boundary.union) if boundary else None
    return Scores(
        miou=_mean(class_iou),
        pixel_accuracy=hit.sum().item() / total,
        mean_accuracy=_mean(class_accuracy),
        frequency_weighted_iou=weighted,
        boundary_iou=_mean(class_boundary) if class_boundary else None,
        class_names=labels.names,
        class_iou=class_iou,
        class_accuracy=class_accuracy,
        class_boundary_iou=class_boundary,
        class_pixels=tuple(int(count) for count in truth.tolist()),
        num_classes_counted=sum(iou is not None for iou in class_iou),
        num_images=num_images,
        confusion=tuple(tuple(row) for row in confusion.counts.tolist()),
        ece=calibration.ece if calibration else None,
        reliability=calibration.bins() if calibration else None,
    )


def _ratios(part: np.ndarray, whole: np.ndarray) -> tuple[float | None, ...]:
    return tuple(p / w if w else None for p, w in zip(part.tolist(), whole.tolist(), strict=True))


def _mean(values: tuple[float | None, ...]) -> float:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else 0.0
