"""Receptive fields and logits in numbers: the size of a field, its holes and grid, and the exchange of phases."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from degrid.types import UserError


def phase_masses(field: np.ndarray, rate: int) -> np.ndarray:
    """The fraction of a receptive field on each of the r^2 phases of the offset from its centre; [r,r], sum 1."""
    offsets_y, offsets_x = ((np.arange(side) - side // 2) % rate for side in field.shape)
    masses = np.zeros((rate, rate))
    np.add.at(masses, (offsets_y[:, None], offsets_x[None, :]), field)
    result: np.ndarray = masses / masses.sum()
    return result


def gridding_score(field: np.ndarray, rate: int) -> float:
    """How much a receptive field resembles a grid of period `rate`: 1 if it covers a single phase, 0 if all alike.

    (r^2 * sum of squared phase masses - 1) / (r^2 - 1), the mean relative energy of the r^2 - 1 spectral images of the
    field. A field smaller than r x r scores above 0 for that reason alone; see `score_of_width`.

    Args:
        field: [H,W], not negative, centre at [H//2, W//2].
        rate: at least 2.
    Source: ours.
    """
    if rate < 2:
        raise UserError(f"a gridding score needs a rate of at least 2, got {rate}")
    masses = phase_masses(field, rate)
    return float((rate**2 * (masses**2).sum() - 1) / (rate**2 - 1))


def score_of_width(field: np.ndarray, rate: int) -> float:
    """The gridding score of a Gaussian that is as wide as a field: what its width alone explains, without any grid.

    Args:
        field, rate: see `gridding_score`.
    """
    lines = []
    for axis in (0, 1):
        mass, offset = field.sum(1 - axis), np.arange(field.shape[axis]) - field.shape[axis] // 2
        variance = max(float((mass * offset**2).sum() / mass.sum()), 1e-12)
        lines.append(np.exp(-(offset**2) / (2 * variance)))
    return gridding_score(lines[0][:, None] * lines[1][None, :], rate)


def mass_side(field: np.ndarray, mass: float = 0.95, centre: tuple[int, int] | None = None) -> int:
    """Side of the smallest square around the centre that holds this fraction of a field, pixels; it may reach beyond.

    Args:
        field: [H,W], not negative.
        centre: row and column; by default [H//2, W//2].
    """
    row, column = centre or (field.shape[0] // 2, field.shape[1] // 2)
    down, across = np.abs(np.arange(field.shape[0]) - row), np.abs(np.arange(field.shape[1]) - column)
    within = np.cumsum(np.bincount(np.maximum(down[:, None], across).ravel(), field.ravel()))
    return 2 * int(np.searchsorted(within, mass * within[-1])) + 1


def _window(field: np.ndarray, radius: int) -> np.ndarray:
    rows, columns = (slice(max(0, side // 2 - radius), side // 2 + radius + 1) for side in field.shape)
    window: np.ndarray = field[rows, columns]
    return window


def hole_ratio(field: np.ndarray, mass: float = 0.95, threshold: float = 1e-3) -> float:
    """The fraction of positions with hardly any influence, 0..1.

    Args:
        field: [H,W], not negative, centre at [H//2, W//2].
        mass: counted are the positions in the smallest centred square that holds this fraction of the field.
        threshold: a fraction of the peak, below which there is hardly any influence.
    Source: ours.
    """
    return float((_window(field, mass_side(field, mass) // 2) < threshold * field.max()).mean())


def effective_size(field: np.ndarray) -> float:
    """Square root of the number of pixels whose influence is above 4.55 % of the peak.

    Source: Luo et al., NeurIPS 2016 (arXiv 1701.04128), section 4: 1 - 95.45 %, two standard deviations of a Gaussian.
    """
    return math.sqrt(np.count_nonzero(field > (1 - 0.9545) * field.max()))


def radial_profile(field: np.ndarray) -> np.ndarray:
    """Mean influence at each distance from the centre, rounded to whole pixels, up to the shorter side; [R]."""
    rows, columns = (np.arange(side) - side // 2 for side in field.shape)
    distance = np.rint(np.hypot(rows[:, None], columns[None, :])).astype(int)
    inside = distance <= min(field.shape) // 2
    count = np.bincount(distance[inside])
    profile: np.ndarray = np.bincount(distance[inside], field[inside]) / count
    return profile


def spectrum(field: np.ndarray) -> np.ndarray:
    """Size of a field's Fourier transform, 1 at frequency 0, which is at [H//2, W//2]; a grid of period r has further
    peaks at multiples of 1 / r cycles per pixel."""
    size: np.ndarray = np.abs(np.fft.fftshift(np.fft.fft2(field))) / field.sum()
    return size


def checkerboard_energy(maps: np.ndarray, rate: int) -> float:
    """How much of a grid of period `rate` there is in maps: about 1 without one, far above 1 with one.

    The mean power in discs around the multiples of 1 / r cycles per pixel, over the mean power in the rings of the same
    frequency outside these discs; the median over channels. The discs have the radius 1 / 8r; the rings are twice as
    wide.

    Args:
        maps: [C,H,W], such as the logits of a real image; H and W at least 8r.
    Raises:
        UserError: smaller maps.
    Source: ours.
    """
    if min(maps.shape[1:]) < 8 * rate:
        height, width = maps.shape[1:]
        raise UserError(f"a grid of period {rate} needs maps of at least {8 * rate} pixels, got {height}x{width}")
    tapers = [np.hanning(side + 2)[1:-1] for side in maps.shape[1:]]
    power = np.abs(np.fft.fft2((maps - maps.mean((1, 2), keepdims=True)) * tapers[0][:, None] * tapers[1])) ** 2
    rows, columns = (np.fft.fftfreq(side) for side in maps.shape[1:])
    radius, frequency = 1 / (8 * rate), np.hypot(rows[:, None], columns[None, :])
    centres = [(a / rate, b / rate) for a in range(rate) for b in range(rate)]
    discs = {at: np.hypot(_round(rows - at[0])[:, None], _round(columns - at[1])[None, :]) <= radius for at in centres}
    outside = ~np.any(list(discs.values()), axis=0)
    inner, ring = np.zeros(len(maps)), np.zeros(len(maps))
    for at in centres[1:]:
        distance = np.hypot(*(_round(np.array(each)) for each in at))
        inner += power[:, discs[at]].mean(1)
        ring += power[:, outside & (np.abs(frequency - distance) <= 2 * radius)].mean(1)
    return float(np.median(inner / np.maximum(ring, np.finfo(float).tiny)))


def _round(frequency: np.ndarray) -> np.ndarray:
    """The same frequency between -1/2 and 1/2 cycles per pixel."""
    result: np.ndarray = frequency - np.rint(frequency)
    return result


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
