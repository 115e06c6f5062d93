"""Operators by name, with their options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from degrid.lookup import lookup, make_part, settings_for
from degrid.smoothing import legacy as originals
from degrid.smoothing import operators
from degrid.smoothing.operators import Operator
from degrid.types import UserError

Factory = Callable[[Any], Operator]
"""Makes an operator for a rate, see `degrid.contracts.Rate`."""


def _sigmas(sigma: float | str, start: Tensor) -> Callable[[], float | nn.Parameter]:
    """A function that gives each layer its sigma.

    Args:
        sigma: a number, which is fixed; "shared": one parameter for the network; "layer": one parameter per layer.
        start: value of the parameters.
    """
    if sigma == "shared":
        shared = nn.Parameter(start)
        return lambda: shared
    if sigma == "layer":
        return lambda: nn.Parameter(start.clone())
    if not isinstance(sigma, int | float):
        shown = f'"{sigma}"' if isinstance(sigma, str) else repr(sigma)
        raise UserError(f'sigma must be a number, "shared" or "layer", got {shown}')
    return lambda: sigma


def _gaussian_factory(sigma: float | str = 1.0, size: int | None = None) -> Factory:
    sigmas = _sigmas(sigma, torch.zeros(()))
    return lambda rate: operators.Gaussian(rate, sigmas(), size)


def _aggregation_factory() -> Factory:
    mix = nn.Parameter(torch.zeros(4))
    return lambda rate: operators.Aggregation(rate, mix)


# Each row is a function from the options to a function from the rate to an operator. The outer one is called once for a
# network, and makes what its layers share.
OPERATORS: dict[str, Callable[..., Factory]] = {
    "regular": lambda: operators.Regular,
    "decompose": lambda: operators.Decompose,
    "gi": lambda: operators.GroupInteraction,
    "ssc": lambda init="identity": lambda rate: operators.SeparableShared(rate, init),
    "average": lambda size=None: lambda rate: operators.Average(rate, size),
    "gaussian": _gaussian_factory,
    "aggregation": _aggregation_factory,
    "tent": lambda: operators.Tent,
}


def _learned(sigma: float | nn.Parameter) -> nn.Parameter | None:
    """A number is dropped: the original code never uses its value."""
    return sigma if isinstance(sigma, nn.Parameter) else None


def _legacy_gaussian_factory(sigma: float | str = 1.0) -> Factory:
    sigmas = _sigmas(sigma, torch.ones(1))
    return lambda rate: originals.Gaussian(rate, _learned(sigmas()))


def _legacy_aggregation_factory(sigma: float | str = 1.0) -> Factory:
    mix, sigmas = nn.Parameter(torch.full((4,), 0.25)), _sigmas(sigma, torch.ones(1))
    return lambda rate: originals.Aggregation(rate, mix, _learned(sigmas()))


# Where the original code differs from the papers. The other operators are the same in both.
LEGACY_OPERATORS: dict[str, Callable[..., Factory]] = {
    **OPERATORS,
    "gi": lambda: originals.GroupInteraction,
    "average": lambda: originals.Average,
    "gaussian": _legacy_gaussian_factory,
    "aggregation": _legacy_aggregation_factory,
}

# Names in the original code.
_ALIASES = {"smooth_GI": "gi", "smooth_SSC": "ssc", "average_filter": "average", "gaussian_filter": "gaussian"}


def operator_factory(operator: str | Factory, legacy: bool = False, **options: Any) -> Factory:
    """A function from the rate to an operator, for the layers of one network.

    Args:
        operator: a row of OPERATORS, its name in the original code, "module:Class" (called with the rate, the options
            and, if it has that parameter, `legacy`), or such a class or function itself.
        legacy, options: see `smooth_dilated_convs`.
    Raises:
        UserError: an unknown name or option.
    """
    if not isinstance(operator, str):
        return (lambda rate: operator(rate, **options)) if options else operator
    name = _ALIASES.get(operator, operator)
    if ":" in name:
        found: object = lookup({}, name, "smoothing operator")
        if isinstance(found, type) and not issubclass(found, nn.Module):
            raise UserError(f'smoothing operator "{name}": expected a class derived from torch.nn.Module')
        own = cast(Callable[..., Operator], found)
        given = settings_for(own, {"legacy": legacy}, options, f'operator "{name}"')
        return lambda rate: own(rate, **given)
    make = lookup(LEGACY_OPERATORS if legacy else OPERATORS, name, "smoothing operator")
    return make_part(make, {}, options, f'operator "{name}"')
