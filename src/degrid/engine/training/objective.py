"""What training minimises: losses over every map of logits, and the class weights that they use."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from degrid.engine.training.losses import CrossEntropy, Loss
from degrid.resize import resize
from degrid.types import UserError

LOSS_SIZES = ("label", "logits")


@dataclass(frozen=True)
class Objective:
    """What training minimises: the sum of every loss over every map of logits.

    losses: each is a mean of its own.
    size: "label" enlarges the logits (bilinear); "logits" reduces the label (nearest), which costs less and blurs the
        borders. DeepLab v3 (arXiv 1706.05587) section 4.1 enlarges the logits; DeepLab v2 reduced the labels.
    class_weights: [C], on the logits' device; each pixel counts by the weight of its true class.
    names: of the losses, for the log; empty where there is only one.
    convention: how to resize, a name in `degrid.types.RESIZES`; "tf_legacy" also picks TensorFlow 1's nearest pixel.
    """

    losses: tuple[Loss, ...] = (CrossEntropy(),)
    size: str = "label"
    class_weights: Tensor | None = None
    convention: str = "half_pixel"
    names: tuple[str, ...] = ()

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


def given_class_weights(given: str | tuple[float, ...]) -> tuple[float, ...] | None:
    """Numbers, also as text such as "1,2,0.5"; None for a name in CLASS_WEIGHTS.

    Raises:
        UserError: neither of the two, a number that is negative or not finite, or no number above 0.
    """
    if given in CLASS_WEIGHTS:
        return None
    try:
        numbers = tuple(float(part) for part in (given.split(",") if isinstance(given, str) else given))
    except ValueError:
        numbers = ()
    if not numbers or not all(math.isfinite(number) and number >= 0 for number in numbers) or not any(numbers):
        raise UserError(
            f'setting "train.class_weights": expected {", ".join(CLASS_WEIGHTS)}, or one number per class separated by '
            f'commas, none below 0 and one above, got "{given}"'
        )
    return numbers
