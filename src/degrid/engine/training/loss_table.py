"""Losses by name."""

from __future__ import annotations

import math

from degrid.engine.training.losses import CrossEntropy, Focal, HardPixels, Loss
from degrid.engine.training.region_losses import BatchMean, dice, lovasz_softmax
from degrid.lookup import lookup
from degrid.types import UserError

SMOOTHED = ("cross_entropy", "ohem")
"""Losses that label smoothing acts on."""


def make_losses(
    name: str = "cross_entropy", label_smoothing: float = 0.0, focal_gamma: float = 2.0, ohem_share: float = 0.25
) -> tuple[Loss, ...]:
    """The losses that a name stands for.

    Args:
        name: cross_entropy, ohem, focal, dice, lovasz; several joined by "+"; or "module:Name" of one's own, which is a
            function (logits [N,C,H,W], label int64 [N,H,W] with 255 for void) -> mean of the batch, or a class of such
            functions or of `Loss`, made without arguments.
        label_smoothing, focal_gamma, ohem_share: see `CrossEntropy`, `Focal` and `HardPixels`.
    Raises:
        UserError: an unknown name, a number outside its range, or label smoothing that nothing uses.
    """
    for setting, value, fits, range_ in (
        ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "0 (off) or a share below 1"),
        ("focal_gamma", focal_gamma, 0 <= focal_gamma < math.inf, "0 or more"),
        ("ohem_share", ohem_share, 0 < ohem_share <= 1, "a share above 0, at most 1"),
    ):
        if not fits:
            raise UserError(f'setting "train.{setting}": expected {range_}, got {value}')
    table: dict[str, object] = {
        "cross_entropy": CrossEntropy(label_smoothing),
        "ohem": HardPixels(ohem_share, label_smoothing),
        "focal": Focal(focal_gamma),
        "dice": BatchMean(dice),
        "lovasz": BatchMean(lovasz_softmax),
    }
    parts = [part.strip() for part in name.split("+")]
    losses = tuple(_as_loss(lookup(table, part, "loss"), part) for part in parts)
    if label_smoothing and not any(part in SMOOTHED for part in parts):
        raise UserError(f'setting "train.label_smoothing": acts on {" and ".join(SMOOTHED)} only, not on "{name}"')
    return losses


def uses_class_weights(losses: tuple[Loss, ...]) -> bool:
    """Whether any loss is one of pixels, on which class weights act."""
    return not all(isinstance(loss, BatchMean) for loss in losses)


def _as_loss(found: object, name: str) -> Loss:
    made = found() if isinstance(found, type) else found
    if hasattr(made, "total") and hasattr(made, "weight"):
        loss: Loss = made
        return loss
    if not callable(made):
        raise UserError(f'loss "{name}": expected a function of logits and label, got {type(made).__name__}')
    return BatchMean(made)
