"""Losses over the valid pixels: the base class, losses of single pixels, the objective, and class weights.

Region losses are in `degrid.engine.training.region_losses`, the table of names in `degrid.engine.training.loss_table`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from degrid.resize import resize
from degrid.types import IGNORE_INDEX, UserError

LOSS_SIZES = ("label", "logits")


class Loss(ABC):
    """A loss over several micro-batches: the sum of their totals over the sum of their weights.

    Weights depend on the labels alone, so that every micro-batch's gradient can be divided by the final sum. Void
    pixels count in neither; a micro-batch without valid pixels has total, weight and gradient 0, never NaN.
    """

    @abstractmethod
    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The loss of one micro-batch times its weight, a scalar.

        Args:
            logits: float32 or float64 [N,C,H,W].
            label: int64 [N,H,W], 0..C-1 or IGNORE_INDEX.
            class_weights: [C], of the logits' type, or None if all classes count alike.
        """

    @abstractmethod
    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """How much the micro-batch counts, a float scalar >= 0."""


class PixelLoss(Loss):
    """A loss whose weight is that of the valid pixels."""

    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The number of valid pixels, or the sum of their classes' weights."""
        return _pixel_weights(label, class_weights).sum()


@dataclass(frozen=True)
class CrossEntropy(PixelLoss):
    """-log of the true class's probability: the mean over valid pixels, weighted by the weight of the true class.

    label_smoothing: e; the target is 1 - e + e/C for the true class and e/C for the others (Szegedy et al. 2016, arXiv
    1512.00567 section 7), class weights acting on it as in `torch.nn.functional.cross_entropy`.
    """

    label_smoothing: float = 0.0

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """Summed over pixels; see `Loss.total`."""
        return _cross_entropy(logits, label, class_weights, self.label_smoothing, "sum")


@dataclass(frozen=True)
class Focal(PixelLoss):
    """-(1 - p)^focal_gamma log p for the true class's probability p: pixels that are already right count less.

    The mean over valid pixels, weighted by the weight of the true class (the paper's alpha_t).
    Source: Lin et al. 2017, arXiv 1708.02002, equations 4 and 5, with softmax instead of sigmoid.
    """

    focal_gamma: float = 2.0

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """Summed over pixels; see `Loss.total`."""
        surprise = _cross_entropy(logits, label, None, 0.0, "none")
        # 1 - p without cancellation; the bound keeps the power's slope finite at p = 1 where focal_gamma is below 1.
        miss = (-torch.expm1(-surprise)).clamp(min=torch.finfo(surprise.dtype).eps)
        losses = miss**self.focal_gamma * surprise
        return losses.sum() if class_weights is None else (losses * _per_pixel(label, class_weights)).sum()


@dataclass(frozen=True)
class HardPixels(Loss):
    """Online hard example mining: the mean cross-entropy of each micro-batch's hardest valid pixels.

    ohem_share: the fraction of valid pixels that is kept, rounded up: those of the largest (weighted) cross-entropy.
    label_smoothing: see `CrossEntropy`.
    Source: Shrivastava et al. 2016, arXiv 1604.03540, for boxes; for pixels the online bootstrapping of Wu et al. 2016,
    arXiv 1605.06885.
    """

    ohem_share: float = 0.25
    label_smoothing: float = 0.0

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """Summed over the pixels that are kept; see `Loss.total`."""
        losses = _cross_entropy(logits, label, class_weights, self.label_smoothing, "none")
        # Void pixels have the smallest possible loss, 0, so none takes a valid pixel's place.
        return losses.flatten().topk(self._kept(label), sorted=False).values.sum()

    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The number of pixels kept, times the mean weight of all valid ones.

        Which pixels are kept depends on the logits, so their own weights are not known beforehand; with a fraction of 1
        this is the weight of `CrossEntropy`.
        """
        return _pixel_weights(label, class_weights).sum() * (self._kept(label) / max(1, num_valid(label)))

    def _kept(self, label: Tensor) -> int:
        return math.ceil(self.ohem_share * num_valid(label))


def num_valid(label: Tensor) -> int:
    """Pixels that are not void."""
    return int((label != IGNORE_INDEX).sum())


def _cross_entropy(
    logits: Tensor, label: Tensor, class_weights: Tensor | None, label_smoothing: float, reduction: str
) -> Tensor:
    """PyTorch's cross-entropy, which is 0 with a gradient of 0 at void pixels."""
    return F.cross_entropy(
        logits, label, class_weights, ignore_index=IGNORE_INDEX, reduction=reduction, label_smoothing=label_smoothing
    )


def _per_pixel(label: Tensor, class_weights: Tensor) -> Tensor:
    """Weight of each pixel's class, in the shape of `label`; at void pixels any value."""
    return class_weights[label.clamp(max=len(class_weights) - 1)]


def _pixel_weights(label: Tensor, class_weights: Tensor | None) -> Tensor:
    """Weights of the pixels, to be added up; void ones have weight 0 or are left out."""
    valid = label != IGNORE_INDEX
    return valid.float() if class_weights is None else _per_pixel(label, class_weights)[valid]


@dataclass(frozen=True)
class Objective:
    """What training minimises: the sum of every loss over every map of logits.

    losses: each is a mean of its own.
    size: "label" enlarges the logits (bilinear); "logits" reduces the label (nearest), which costs less and blurs the
        borders. DeepLab v3 (arXiv 1706.05587) section 4.1 enlarges the logits; DeepLab v2 reduced the labels.
    class_weights: [C], on the logits' device; each pixel counts by the weight of its true class.
    convention: how to resize, a name in `degrid.resize.RESIZES`; "tf_legacy" also picks TensorFlow 1's nearest pixel.
    """

    losses: tuple[Loss, ...] = (CrossEntropy(),)
    size: str = "label"
    class_weights: Tensor | None = None
    convention: str = "half_pixel"

    def totals(self, maps: list[Tensor], label: Tensor) -> Tensor:
        """Totals of one micro-batch, [len(maps) * len(losses)].

        Args:
            maps: logits [N,C,h,w]; their sizes may differ.
            label: int64 [N,H,W].
        """
        totals = []
        for logits in maps:
            logits = logits.float()
            if self.size == "label":
                logits = resize(logits, label.shape[-2:], self.convention)
            target = self._target(label, tuple(logits.shape[-2:]))
            totals += [loss.total(logits, target, self.class_weights) for loss in self.losses]
        return torch.stack(totals)

    def weights(self, sizes: list[tuple[int, ...]], label: Tensor) -> Tensor:
        """Weights of one micro-batch, in the order of `totals`.

        Args:
            sizes: h and w of each map.
        """
        targets = [self._target(label, size) for size in sizes]
        return torch.stack([loss.weight(target, self.class_weights) for target in targets for loss in self.losses])

    def _target(self, label: Tensor, size: tuple[int, ...]) -> Tensor:
        """The label at the size at which the loss is computed."""
        if self.size == "label":
            return label
        nearest = "nearest" if self.convention == "tf_legacy" else "nearest-exact"
        return F.interpolate(label[:, None].float(), size, mode=nearest)[:, 0].long()


CLASS_WEIGHTS = {"none": 0.0, "sqrt_median_frequency": 0.5, "median_frequency": 1.0}
"""Names of class weights, with the power of `median_frequency_weights` that they stand for."""


def median_frequency_weights(class_pixels: Tensor, power: float = 1.0) -> Tensor:
    """Weight per class: (median of the frequencies / the class's frequency) ** power; 0 for classes without pixels.

    Args:
        class_pixels: [C], pixels of each class in the training set.
        power: 1 as published; 0.5 favours rare classes less, which causes fewer false detections of them.
    Source: Eigen & Fergus, ICCV 2015, section 6.3.2, with frequencies over the whole training set.
    """
    frequency = class_pixels.double() / class_pixels.sum().clamp(min=1)
    present = frequency > 0
    weights = torch.zeros_like(frequency)
    weights[present] = (frequency[present].median() / frequency[present]) ** power
    return weights.float()


def given_class_weights(text: str) -> tuple[float, ...] | None:
    """Numbers such as "1,2,0.5"; None where `text` is a name in CLASS_WEIGHTS.

    Raises:
        UserError: neither of the two, a number that is negative or not finite, or no number above 0.
    """
    if text in CLASS_WEIGHTS:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(number) and number >= 0 for number in numbers) or not any(numbers):
        raise UserError(
            f'setting "train.class_weights": expected {", ".join(CLASS_WEIGHTS)}, or one number per class separated by '
            f'commas, none below 0 and one above, got "{text}"'
        )
    return numbers
