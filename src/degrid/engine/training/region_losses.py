"""Losses of the regions of a whole batch: soft Dice and Lovasz-softmax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from degrid.engine.training.losses import Loss
from degrid.types import IGNORE_INDEX


@dataclass(frozen=True)
class BatchMean(Loss):
    """A loss made of a function that returns the mean of a batch; the loss is the average over the micro-batches.

    Micro-batches without valid pixels are left out, and the function is not called on them. Class weights have no
    effect, since region losses already count every class alike.

    function: (logits float [N,C,H,W], label int64 [N,H,W] with IGNORE_INDEX for void) -> scalar.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The function's value, or 0 with a gradient of 0; see `Loss.total`."""
        if bool((label == IGNORE_INDEX).all()):
            return 0 * logits.sum()
        return self.function(logits, label)

    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """1, or 0 without valid pixels."""
        return (label != IGNORE_INDEX).any().float()


def dice(logits: Tensor, label: Tensor) -> Tensor:
    """Soft Dice loss: 1 - 2 sum(p y) / (sum(p) + sum(y)), averaged over the classes present in the label.

    p is the softmax probability of the class, and y is 1 where the class is true, else 0; both sums run over all valid
    pixels of the batch. No constant is added to the fraction, since a class that is present has sum(y) >= 1.

    Args:
        logits: [N,C,H,W].
        label: int64 [N,H,W], 0..C-1 or IGNORE_INDEX.
    Returns:
        A scalar, 0 (perfect) to 1; 0 without valid pixels.
    Source: Milletari et al. 2016 (V-Net, arXiv 1606.04797) section 3, with p instead of its square below, per class.
    """
    scores, truth = _valid(logits, label)
    common = scores.new_zeros(scores.shape[1]).index_add(0, truth, scores.gather(1, truth[:, None])[:, 0])
    pixels = torch.bincount(truth, minlength=scores.shape[1])
    # Absent classes are dropped before the division: theirs could be 0 / 0, whose gradient is NaN even where unused.
    present = pixels > 0
    losses = 1 - 2 * common[present] / (scores.sum(0) + pixels)[present]
    return losses.sum() / max(1, len(losses))


def lovasz_softmax(logits: Tensor, label: Tensor) -> Tensor:
    """Lovasz-softmax: the Lovasz extension of 1 - IoU, averaged over the classes present in the label.

    The IoU is that of the whole batch, not of each image.

    Args:
        logits: [N,C,H,W].
        label: int64 [N,H,W], 0..C-1 or IGNORE_INDEX.
    Returns:
        A scalar, 0 (perfect) to 1; 0 without valid pixels.
    Source: Berman et al. 2018, arXiv 1705.08790, equations 8 (errors), 9 and 11 (mean), algorithm 1.
    """
    scores, truth = _valid(logits, label)
    present = torch.unique(truth).tolist()
    losses = [_lovasz(scores[:, index], truth == index) for index in present]
    return torch.stack(losses).mean() if losses else 0 * logits.sum()


def _lovasz(scores: Tensor, is_class: Tensor) -> Tensor:
    """The loss of one class: the errors [P], largest first, times the steps of the Jaccard loss 1 - I/U.

    Step i is by how much the Jaccard loss grows when the pixel with the i-th largest error becomes wrong too. A pixel
    of the class lowers the intersection I by 1, a step of 1/U. Any other raises the union U by 1, a step of I/(U-1) -
    I/U = I/(U (U-1)). Written like this no digits are lost, however many pixels there are.
    """
    errors, order = torch.where(is_class, 1 - scores, scores).sort(descending=True)
    inside = is_class[order]
    size = inside.sum()
    common = size - inside.cumsum(0)
    union = (size + (~inside).cumsum(0)).to(errors.dtype)
    steps = torch.where(inside, 1 / union, common / (union * (union - 1).clamp(min=1)))
    return errors @ steps


def _valid(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [P,C] and classes [P] of the valid pixels."""
    valid = label != IGNORE_INDEX
    return logits.movedim(1, -1)[valid].softmax(1), label[valid]
