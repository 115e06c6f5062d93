"""Whether the phases of a grid exchange anything, measured by changing an input."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from degrid.types import UserError

_NOISE = 1e-6
"""Changes below this fraction of the largest are rounding."""


def phase_exchange(
    function: Callable[[Tensor], Tensor], x: Tensor, rates: tuple[int, int], y: Tensor | None = None, seed: int = 0
) -> float:
    """Change the input on one phase of a grid only: the fraction of the output's change that is on other phases.

    0 if the phases are separate networks, 1 - 1 / (r_y * r_x) if they are fully mixed. The change is noise as large as
    the input.

    Args:
        function: size-keeping, [1,C,H,W] -> [1,K,H,W].
        rates: periods of the grid along rows and columns, of which at least one is above 1.
        y: function(x), if it is known.
    Raises:
        UserError: the output is of another size than the input.
    Source: ours.
    """
    random = torch.Generator().manual_seed(seed)
    change = torch.zeros_like(x)
    phase = (..., slice(0, None, rates[0]), slice(0, None, rates[1]))
    noise = torch.randn(change[phase].shape, generator=random).to(x)
    change[phase] = noise * (x.std() if x.numel() > 1 and x.std() > 0 else 1)
    energy = _change(function, x, y, change).square()
    total = energy.sum()
    energy[phase] = 0
    return float(energy.sum() / total) if total > 0 else 0.0


def independent_networks(
    function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor | None = None, seed: int = 0
) -> tuple[int, int]:
    """Change the input at one position only: how many rows and columns lie between the outputs that change.

    Their product is the number of interleaved networks that share nothing; (1, 1) for a single network. Where nothing
    but the position itself changes, each is the side of the map.

    Args:
        function, y: see `phase_exchange`.
    """
    random, (height, width) = torch.Generator().manual_seed(seed), x.shape[-2:]
    change = torch.zeros_like(x)
    corner = (..., 0, 0)  # from which one tap of every rate below the map's side stays inside
    change[corner] = torch.randn(change[corner].shape, generator=random).to(x)
    size = _change(function, x, y, change)
    changed = size > _NOISE * size.max()
    steps = []
    for axis, side in ((1, height), (0, width)):
        steps.append(math.gcd(*changed.any(axis).nonzero().flatten().tolist()) or side)
    return steps[0], steps[1]


def _change(function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor | None, change: Tensor) -> Tensor:
    """How much the output changes at each position: norm over channels, float64 [H,W]."""
    with torch.no_grad():
        before, after = function(x) if y is None else y, function(x + change)
    if before.shape[-2:] != x.shape[-2:]:
        raise UserError(f"expected an output of the input's size {tuple(x.shape[-2:])}, got {tuple(before.shape[-2:])}")
    return (after - before).double().square().sum((0, 1)).sqrt().cpu()
