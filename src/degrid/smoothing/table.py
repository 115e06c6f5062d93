"""Operators by name, with their options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from degrid.lookup import did_you_mean, lookup
from degrid.smoothing import legacy as originals
from degrid.smoothing.operators import (
    Aggregation,
    Average,
    Decompose,
    Gaussian,
    GroupInteraction,
    Operator,
    Regular,
    SeparableShared,
    Tent,
)
from degrid.types import UserError

Factory = Callable[[int], Operator]


def _gaussian_factory(sigma: float | str = 1.0, size: int | None = None) -> Factory:
    """sigma: a number (fixed), "shared" (one learned for the network) or "layer" (one learned per layer)."""
    if sigma == "shared":
        shared = nn.Parameter(torch.zeros(()))
        return lambda rate: Gaussian(rate, shared, size)
    if sigma == "layer":
        return lambda rate: Gaussian(rate, nn.Parameter(torch.zeros(())), size)
    if isinstance(sigma, str):
        raise UserError(f'sigma must be a number, "shared" or "layer", got "{sigma}"')
    return lambda rate: Gaussian(rate, sigma, size)


def _average_factory(size: int | None = None) -> Factory:
    return lambda rate: Average(rate, size)


def _aggregation_factory() -> Factory:
    mix = nn.Parameter(torch.zeros(4))
    return lambda rate: Aggregation(rate, mix)


# Each row makes, from the options, a function from the rate to an operator; what the layers of one network share is
# made once there.
OPERATORS: dict[str, Callable[..., Factory]] = {
    "regular": lambda: Regular,
    "decompose": lambda: Decompose,
    "gi": lambda: GroupInteraction,
    "ssc": lambda: SeparableShared,
    "average": _average_factory,
    "gaussian": _gaussian_factory,
    "aggregation": _aggregation_factory,
    "tent": lambda: Tent,
}


def _legacy_sigma(sigma: float | str = 1.0) -> Callable[[], nn.Parameter | None]:
    """What makes the sigma of a layer: none (fixed; its value never mattered), one for the network, one per layer."""
    if sigma == "shared":
        shared = nn.Parameter(torch.ones(1))
        return lambda: shared
    if sigma == "layer":
        return lambda: nn.Parameter(torch.ones(1))
    if isinstance(sigma, str):
        raise UserError(f'sigma must be a number, "shared" or "layer", got "{sigma}"')
    return lambda: None


def _legacy_gaussian_factory(sigma: float | str = 1.0) -> Factory:
    make = _legacy_sigma(sigma)
    return lambda rate: originals.Gaussian(rate, make())


def _legacy_aggregation_factory(sigma: float | str = 1.0) -> Factory:
    mix, make = nn.Parameter(torch.full((4,), 0.25)), _legacy_sigma(sigma)
    return lambda rate: originals.Aggregation(rate, mix, make())


# Where the original code does something else than the papers say; the other operators are the same in both.
LEGACY_OPERATORS: dict[str, Callable[..., Factory]] = {
    **OPERATORS,
    "gi": lambda: originals.GroupInteraction,
    "average": lambda: originals.Average,
    "gaussian": _legacy_gaussian_factory,
    "aggregation": _legacy_aggregation_factory,
}

# The names in the original code.
_ALIASES = {
    "smooth_GI": "gi",
    "smooth_SSC": "ssc",
    "average_filter": "average",
    "gaussian_filter": "gaussian",
}


def operator_factory(operator: str | Factory, legacy: bool = False, **options: Any) -> Factory:
    """A function from the rate to an operator, for the layers of one network.

    Args:
        operator: a known name, an original name, "module:Class" (called with the rate and the options), or such a
            function or class itself.
        legacy: what the original code computes, where that is not what the papers say.
        options: of the operator, such as sigma="shared".
    Raises:
        UserError: an unknown name or option.
    """
    if not isinstance(operator, str):
        return (lambda rate: operator(rate, **options)) if options else operator
    name = _ALIASES.get(operator, operator)
    if ":" in name:
        own: Callable[..., Operator] = lookup({}, name, "smoothing operator")
        return lambda rate: own(rate, **options)
    make = lookup(LEGACY_OPERATORS if legacy else OPERATORS, name, "smoothing operator")
    accepted = inspect.signature(make).parameters
    for option in options:
        if option not in accepted:
            raise UserError(
                f'operator "{name}" has no option "{option}".{did_you_mean(option, accepted)} '
                f"It takes: {', '.join(accepted) or 'none'}"
            )
    return make(**options)
