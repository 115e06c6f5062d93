"""Losses over the valid pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from degrid.resize import resize
from degrid.types import IGNORE_INDEX

LOSS_SIZES = ("label", "logits")


def num_valid(label: Tensor) -> int:
    """Pixels that are not void."""
    return int((label != IGNORE_INDEX).sum())


def cross_entropy_sum(
    logits: Tensor,
    label: Tensor,
    size: str = "label",
    class_weights: Tensor | None = None,
    convention: str = "half_pixel",
) -> Tensor:
    """Summed cross-entropy, to be divided by `loss_weight`, so that batches can be added up.

    Void pixels count in neither. With no valid pixel the sum is 0, with a gradient of 0: never NaN.

    Args:
        logits: [N,C,h,w].
        label: int64 [N,H,W], 0..C-1 or IGNORE_INDEX.
        size: "label" enlarges the logits (bilinear); "logits" reduces the label (nearest), which costs less and
            blurs the borders.
        class_weights: [C]; a pixel counts by the weight of its true class.
        convention: of resizing, a name in `degrid.resize.RESIZES`; "tf_legacy" also takes TensorFlow 1's nearest pixel.
    Returns:
        A float32 scalar.
    Source: DeepLab v3 (arXiv 1706.05587) section 4.1 enlarges the logits; DeepLab v2 reduced the labels.
    """
    logits = logits.float()
    if size == "label":
        logits = resize(logits, label.shape[-2:], convention)
    else:
        label = _reduced(label, tuple(logits.shape[-2:]), convention)
    return F.cross_entropy(logits, label, weight=class_weights, ignore_index=IGNORE_INDEX, reduction="sum")


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
    if size == "logits":
        label = _reduced(label, logit_size, convention)
    valid = label != IGNORE_INDEX
    if class_weights is None:
        return valid.sum().float()
    return class_weights[label.clamp(max=len(class_weights) - 1)][valid].sum()


def _reduced(label: Tensor, size: tuple[int, ...], convention: str) -> Tensor:
    nearest = "nearest" if convention == "tf_legacy" else "nearest-exact"
    return F.interpolate(label[:, None].float(), size, mode=nearest)[:, 0].long()


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
