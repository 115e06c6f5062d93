"""Losses by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

from degrid.engine.training.losses import CrossEntropy, Focal, HardPixels, Loss
from degrid.engine.training.region_losses import BatchMean, dice, lovasz_softmax
from degrid.lookup import keywords, lookup, settings_for
from degrid.types import UserError

LOSSES: dict[str, Callable[..., object]] = {
    "cross_entropy": CrossEntropy,
    "ohem": HardPixels,
    "focal": Focal,
    "dice": dice,
    "lovasz": lovasz_softmax,
}
"""Classes of `Loss`, and functions of logits and label as `BatchMean` takes them."""


def make_losses(
    name: str = "cross_entropy",
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    ohem_share: float = 0.25,
    options: Mapping[str, object] | None = None,
) -> tuple[Loss, ...]:
    """The losses that a name stands for.

    Args:
        name: rows of LOSSES joined by "+", or "module:Name" of your own: a function (logits [N,C,H,W], label int64
            [N,H,W] with 255 for void) -> mean of the batch, or a class that is made first: a subclass of `Loss`, or one
            whose instances are such functions, as those of `nn.Module` are.
        label_smoothing, focal_gamma, ohem_share: see `CrossEntropy`, `Focal` and `HardPixels`; passed to every loss
            with a parameter of that name.
        options: further arguments, likewise.
    Raises:
        UserError: an unknown name, a number outside its range, or a setting that no loss takes.
    """
    for setting, value, fits, range_ in (
        ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "0 (off) or a share below 1"),
        ("focal_gamma", focal_gamma, 0 <= focal_gamma < math.inf, "0 or more"),
        ("ohem_share", ohem_share, 0 < ohem_share <= 1, "a share above 0, at most 1"),
    ):
        if not fits:
            raise UserError(f'setting "train.{setting}": expected {range_}, got {value}')
    parts = [(part, lookup(LOSSES, part, "loss")) for part in map(str.strip, name.split("+"))]
    settings = {"label_smoothing": label_smoothing, "focal_gamma": focal_gamma, "ohem_share": ohem_share}
    losses = tuple(_made(part, row, settings, options or {}) for part, row in parts)
    if label_smoothing and not any("label_smoothing" in keywords(row) for _, row in parts):
        able = " and ".join(key for key, row in LOSSES.items() if "label_smoothing" in keywords(row))
        raise UserError(f'setting "train.label_smoothing": acts on {able} only, not on "{name}"')
    for option in options or {}:
        if not any({option, "**"} & set(keywords(row)) for _, row in parts):
            raise UserError(f'setting "train.loss_options": the loss "{name}" has no option "{option}"')
    return losses


def uses_class_weights(losses: tuple[Loss, ...]) -> bool:
    """Whether class weights have an effect: not on losses of whole regions."""
    return not all(isinstance(loss, BatchMean) for loss in losses)


def _made(name: str, found: object, settings: Mapping[str, object], options: Mapping[str, object]) -> Loss:
    if callable(found):
        own = {key: value for key, value in options.items() if {key, "**"} & set(keywords(found))}
        given = settings_for(found, settings, own, f'loss "{name}"')
        made = found(**given) if isinstance(found, type) else partial(found, **given) if given else found
        if isinstance(made, Loss):
            return made
        if callable(made):
            return BatchMean(made)
        found = made
    raise UserError(f'loss "{name}": expected a function of logits and label, got {type(found).__name__}')
