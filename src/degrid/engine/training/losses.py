"""Losses over the valid pixels: the contract, those of single pixels, their sizes, and class weights.

Region losses are in `degrid.engine.training.region_losses`, the names of all in `degrid.engine.training.loss_table`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from degrid.resize import resize
from degrid.types import IGNORE_INDEX, UserError

LOSS_SIZES = ("label", "logits")


class Loss(Protocol):
    """A loss that may be taken over several micro-batches: the sum of the totals over the sum of the weights.

    Weights are known from the labels alone, so that every micro-batch's gradient is divided by the final number. Void
    pixels count in neither; a micro-batch without valid pixels has total, weight and gradient 0: never NaN.
    """

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The loss of one micro-batch times its weight, a scalar.

        Args:
            logits: float32 or float64 [N,C,H,W].
            label: int64 [N,H,W], 0..C-1 or IGNORE_INDEX.
            class_weights: [C], of the logits' type, or None for equal ones.
        """

    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """What the micro-batch counts, a float scalar >= 0."""


@dataclass(frozen=True)
class CrossEntropy:
    """-log of the true class's probability; mean over valid pixels, each by the weight of its true class.

    label_smoothing: e; the target is 1 - e + e/C for the true class and e/C for the others (Szegedy et al. 2016, arXiv
    1512.00567 section 7), class weights acting on it as in `torch.nn.functional.cross_entropy`.
    """

    label_smoothing: float = 0.0

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """Summed over pixels; see `Loss.total`."""
        return _cross_entropy(logits, label, class_weights, self.label_smoothing, "sum")

    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The number of valid pixels, or the sum of their classes' weights."""
        return _pixel_weights(label, class_weights).sum()


@dataclass(frozen=True)
class Focal:
    """-(1 - p)^gamma log p for the true class's probability p: pixels that are right already count less.

    Mean over valid pixels, each by the weight of its true class (the paper's alpha_t).
    Source: Lin et al. 2017, arXiv 1708.02002, equations 4 and 5, with softmax instead of sigmoid.
    """

    gamma: float = 2.0

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """Summed over pixels; see `Loss.total`."""
        surprise = _cross_entropy(logits, label, None, 0.0, "none")
        # 1 - p without cancellation; the bound keeps the power's slope finite at p = 1 where gamma is below 1.
        miss = (-torch.expm1(-surprise)).clamp(min=torch.finfo(surprise.dtype).eps)
        losses = miss**self.gamma * surprise
        return losses.sum() if class_weights is None else (losses * _per_pixel(label, class_weights)).sum()

    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The number of valid pixels, or the sum of their classes' weights."""
        return _pixel_weights(label, class_weights).sum()


@dataclass(frozen=True)
class HardPixels:
    """Online hard example mining: the mean cross-entropy of each micro-batch's hardest valid pixels.

    share: the fraction of valid pixels that is kept, rounded up; those of the largest (weighted) cross-entropy.
    label_smoothing: see `CrossEntropy`.
    Source: Shrivastava et al. 2016, arXiv 1604.03540, for boxes; for pixels the online bootstrapping of Wu et al. 2016,
    arXiv 1605.06885.
    """

    share: float = 0.25
    label_smoothing: float = 0.0

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """Summed over the pixels that are kept; see `Loss.total`."""
        losses = _cross_entropy(logits, label, class_weights, self.label_smoothing, "none")
        # Void pixels have 0, the least there is, so none takes a valid pixel's place.
        return losses.flatten().topk(self._kept(label), sorted=False).values.sum()

    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The number of pixels kept, times the mean weight of all valid ones.

        Which pixels are kept shows only in the logits, so their own weights cannot be known beforehand; with a share of
        1 this is the weight of `CrossEntropy`.
        """
        return _pixel_weights(label, class_weights).sum() * (self._kept(label) / max(1, num_valid(label)))

    def _kept(self, label: Tensor) -> int:
        return math.ceil(self.share * num_valid(label))


def num_valid(label: Tensor) -> int:
    """Pixels that are not void."""
    return int((label != IGNORE_INDEX).sum())


def _cross_entropy(
    logits: Tensor, label: Tensor, class_weights: Tensor | None, label_smoothing: float, reduction: str
) -> Tensor:
    """Torch's, which is 0 with a gradient of 0 at void pixels."""
    return F.cross_entropy(
        logits, label, class_weights, ignore_index=IGNORE_INDEX, reduction=reduction, label_smoothing=label_smoothing
    )


def _per_pixel(label: Tensor, class_weights: Tensor) -> Tensor:
    """Weight of each pixel's class, the shape of `label`; anything at void pixels."""
    return class_weights[label.clamp(max=len(class_weights) - 1)]


def _pixel_weights(label: Tensor, class_weights: Tensor | None) -> Tensor:
    """Weights of the pixels, 0 or nothing for void ones, to be added up."""
    valid = label != IGNORE_INDEX
    return valid.float() if class_weights is None else _per_pixel(label, class_weights)[valid]


@dataclass(frozen=True)
class Objective:
    """What a step makes small: every loss of every map of logits, added up.

    losses: each a mean of its own.
    size: "label" enlarges the logits (bilinear); "logits" reduces the label (nearest), which costs less and blurs the
        borders. DeepLab v3 (arXiv 1706.05587) section 4.1 enlarges the logits; DeepLab v2 reduced the labels.
    class_weights: [C]; a pixel counts by the weight of its true class.
    convention: of resizing, a name in `degrid.resize.RESIZES`; "tf_legacy" also takes TensorFlow 1's nearest pixel.
    """

    losses: tuple[Loss, ...] = (CrossEntropy(),)
    size: str = "label"
    class_weights: Tensor | None = None
    convention: str = "half_pixel"

    def totals(self, maps: list[Tensor], label: Tensor) -> Tensor:
        """Totals of one micro-batch, [len(maps) * len(losses)].

        Args:
            maps: logits [N,C,h,w], their sizes may differ.
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
        """The label the loss is taken with, at the logits' size if that is wanted."""
        if self.size == "label":
            return label
        nearest = "nearest" if self.convention == "tf_legacy" else "nearest-exact"
        return F.interpolate(label[:, None].float(), size, mode=nearest)[:, 0].long()


def cross_entropy_sum(
    logits: Tensor,
    label: Tensor,
    size: str = "label",
    class_weights: Tensor | None = None,
    convention: str = "half_pixel",
) -> Tensor:
    """Summed cross-entropy, to be divided by `loss_weight`, so that batches can be added up.

    Args:
        logits: [N,C,h,w].
        label: int64 [N,H,W], 0..C-1 or IGNORE_INDEX.
        size, class_weights, convention: see `Objective`.
    Returns:
        A float32 scalar; 0 with a gradient of 0 where no pixel is valid.
    """
    return Objective(size=size, class_weights=class_weights, convention=convention).totals([logits], label)[0]


def loss_weight(
    label: Tensor,
    logit_size: tuple[int, ...],
    size: str = "label",
    class_weights: Tensor | None = None,
    convention: str = "half_pixel",
) -> Tensor:
    """What `cross_entropy_sum` is divided by: the number of valid pixels, or the sum of their classes' weights.

    Args:
        logit_size: h and w of the logits; the others: see `cross_entropy_sum`.
    """
    return Objective(size=size, class_weights=class_weights, convention=convention).weights([logit_size], label)[0]


CLASS_WEIGHTS = {"none": 0.0, "sqrt_median_frequency": 0.5, "median_frequency": 1.0}
"""Names of class weights, and the power of `median_frequency_weights` they stand for."""


def median_frequency_weights(class_pixels: Tensor, power: float = 1.0) -> Tensor:
    """Weight per class: (median of the frequencies / the class's frequency) ** power; 0 for classes without pixels.

    Args:
        class_pixels: [C], pixels of each class in the training set.
        power: 1 as published; 0.5 favours rare classes less, which costs fewer false finds of them.
    Source: Eigen & Fergus, ICCV 2015, section 6.3.2, with the frequency over the whole set.
    """
    frequency = class_pixels.double() / class_pixels.sum().clamp(min=1)
    present = frequency > 0
    weights = torch.zeros_like(frequency)
    weights[present] = (frequency[present].median() / frequency[present]) ** power
    return weights.float()


def given_class_weights(text: str) -> tuple[float, ...] | None:
    """Numbers such as "1,2,0.5"; None where `text` is a name in CLASS_WEIGHTS.

    Raises:
        UserError: neither; or a number that is negative or not finite, or none above 0.
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
