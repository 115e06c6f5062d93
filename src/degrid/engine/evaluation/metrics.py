"""Scores at dataset level, from integer counts: the same number however the images are divided up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from degrid.engine.evaluation.calibration import CalibrationCounts
from degrid.engine.ranks import summed_over_ranks
from degrid.types import IGNORE_INDEX, LabelSpace, Scores, UserError


class ConfusionMatrix:
    """Counts of (truth, prediction) pairs, skipping void pixels.

    counts: int64 [C,C]; rows are truth, columns prediction. Matrices of parts of a dataset can be added.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add one image or batch.

        Args:
            prediction: integer ids 0..C-1, any shape.
            label: integer ids 0..C-1 or IGNORE_INDEX, the same shape.
        Raises:
            UserError: shapes differ, or a label or prediction outside 0..C-1 that is not void.
        """
        if prediction.shape != label.shape:
            raise UserError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape")
        truth, guess = label.reshape(-1), prediction.reshape(-1)
        if guess.dtype != torch.uint8:
            guess = guess.where(truth != IGNORE_INDEX, 0)  # where nothing is counted, anything may be
        truth, guess = self._bytes("label", truth), self._bytes("prediction", guess)
        # All pairs of bytes: cheaper than leaving out void and looking for foreign ids pixel by pixel.
        pairs = torch.bincount(truth.int() * 256 + guess.int(), minlength=256 * 256).reshape(256, 256)
        self._refuse("label", pairs[:IGNORE_INDEX].sum(1))
        counts = pairs[: self.num_classes]
        self._refuse("prediction", counts.sum(0))
        self.counts += counts[:, : self.num_classes].cpu()

    def _bytes(self, what: str, ids: Tensor) -> Tensor:
        """Ids as uint8."""
        if ids.dtype == torch.uint8:
            return ids
        wide = ids[(ids < 0) | (ids > 255)]
        if wide.numel():
            raise self._foreign(what, sorted(set(wide.tolist())))
        return ids.to(torch.uint8)

    def _refuse(self, what: str, pixels: Tensor) -> None:
        """No id from C on may have pixels."""
        found = pixels[self.num_classes :].nonzero().flatten().tolist()
        if found:
            raise self._foreign(what, [self.num_classes + index for index in found])

    def _foreign(self, what: str, ids: list[int]) -> UserError:
        return UserError(
            f"{what} holds id {', '.join(map(str, ids[:5]))}; expected 0 to {self.num_classes - 1}"
            + (f" or {IGNORE_INDEX} (void)" if what == "label" else "")
        )

    def merged(self) -> ConfusionMatrix:
        """The counts of all processes, see `summed_over_ranks`; this one's stay as they are."""
        whole = ConfusionMatrix(self.num_classes)
        whole.counts = summed_over_ranks(self.counts)
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
        self.intersection = torch.zeros(num_classes, dtype=torch.int64)
        self.union = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add one image; both integer [H,W]."""
        label = label.long()
        prediction = torch.where(label == IGNORE_INDEX, label, prediction.long())
        height, width = label.shape
        band_width = max(1, round(self.width_fraction * (height**2 + width**2) ** 0.5))
        in_truth = contour_band(label, band_width) & (label != IGNORE_INDEX)
        in_guess = contour_band(prediction, band_width) & (label != IGNORE_INDEX)
        both = in_truth & in_guess & (label == prediction)
        shared, truth, guess = (
            torch.bincount(ids, minlength=len(self.union)).cpu()
            for ids in (label[both], label[in_truth], prediction[in_guess])
        )
        self.intersection += shared
        self.union += truth + guess - shared

    def merged(self) -> BoundaryCounts:
        """The counts of all processes, see `summed_over_ranks`; this one's stay as they are."""
        whole = BoundaryCounts(len(self.union), self.width_fraction)
        whole.intersection, whole.union = summed_over_ranks(self.intersection), summed_over_ranks(self.union)
        return whole


def image_confusion(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """The counts of one image, int64 [C,C]; see `ConfusionMatrix`."""
    matrix = ConfusionMatrix(num_classes)
    matrix.update(prediction, label)
    return matrix.counts


def contour_band(ids: Tensor, width: int, image_border: bool = True) -> Tensor:
    """Pixels within `width` pixels (chessboard distance) of another id or of the image's border; bool [H,W].

    Args:
        ids: integer [H,W].
        image_border: whether the border of the image is a contour too.
    """
    # A frame of a foreign value makes the image's border a contour.
    frame = 1 if image_border else 0
    field = F.pad(ids[None, None].float(), (frame,) * 4, value=-1.0)
    differs = (window_max(field, width) != field) | (-window_max(-field, width) != field)
    height, length = ids.shape
    return differs[0, 0, frame : frame + height, frame : frame + length]


def window_max(values: Tensor, width: int) -> Tensor:
    """The largest value within `width` pixels (chessboard distance) of each pixel; float [N,C,H,W] to the same."""
    rows = F.max_pool2d(values, (2 * width + 1, 1), stride=1, padding=(width, 0))
    return F.max_pool2d(rows, (1, 2 * width + 1), stride=1, padding=(0, width))


def hits_and_unions(confusions: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels in truth and prediction, and in truth or prediction; both [...,C] of counts [...,C,C].

    Both are linear in the counts: those of a sum of matrices are the sums.
    """
    hit = confusions.diagonal(dim1=-2, dim2=-1)
    return hit, confusions.sum(-1) + confusions.sum(-2) - hit


def mean_iou(hit: Tensor, union: Tensor) -> Tensor:
    """Mean over the classes of which there are pixels; float64 [...] of counts [...,C]. Without any it is 0."""
    present = union > 0
    ratios = hit.double() / union.double().clamp(min=1)
    return (ratios * present).sum(-1) / present.sum(-1).clamp(min=1)


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
    counts = confusion.counts.double()
    hit, truth, guess = counts.diag(), counts.sum(1), counts.sum(0)
    union = truth + guess - hit
    class_iou = _ratios(hit, union)
    class_accuracy = _ratios(hit, truth)
    total = max(1.0, truth.sum().item())
    weighted = sum(iou * part for iou, part in zip(class_iou, (truth / total).tolist(), strict=True) if iou)
    class_boundary = _ratios(boundary.intersection.double(), boundary.union.double()) if boundary else None
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


def _ratios(part: Tensor, whole: Tensor) -> tuple[float | None, ...]:
    return tuple(p / w if w else None for p, w in zip(part.tolist(), whole.tolist(), strict=True))


def _mean(values: tuple[float | None, ...]) -> float:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else 0.0
