"""What a study over seeds shows, and what it could have shown: many comparisons, bootstrap and power."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from degrid.engine.evaluation.seeds import t_quantile
from degrid.types import UserError

POWER = 0.8
"""The chance to find a difference of the size that `smallest_difference` gives."""


def corrected(values: Sequence[float]) -> list[float]:
    """The p values of several comparisons, raised so that the chance of any false finding stays below the level.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    found = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        found[index] = highest
    return found


def bootstrap_interval(differences: Sequence[float], draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean, from draws of the values with replacement.

    It is too narrow for fewer than about ten values; Student's t does not have that fault.

    Source: Efron, Annals of Statistics 7 (1979); percentiles.
    """
    random = np.random.default_rng(seed)
    means = random.choice(np.asarray(differences, np.float64), (draws, len(differences))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def smallest_difference(spread: float, pairs: int, comparisons: int = 1, power: float = POWER) -> float:
    """The true difference that a paired t test finds with a given chance.

    Args:
        spread: standard deviation of the differences between pairs, in any unit.
        pairs: how many, two or more.
        comparisons: how many tests share the level of 5 %, two-sided (Bonferroni's division, which bounds Holm's).
        power: the chance to find it, above 0 and below 1.
    Returns:
        In the unit of `spread`.
    Raises:
        UserError: fewer than two pairs.
    """
    if pairs < 2:
        raise UserError(f"a difference is tested over two pairs or more, got {pairs}")
    critical = t_quantile(0.05 / comparisons, pairs - 1)
    low, high = 0.0, critical + 2.0
    while _power(high, critical, pairs - 1) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, critical, pairs - 1) < power else (low, middle)
    return high * spread / math.sqrt(pairs)


def _power(shift: float, critical: float, freedom: int) -> float:
    """The chance of |t| above the critical value where the true mean is `shift` standard errors from 0.

    Given the estimated spread s, relative to the true one, t is normal; s has the distribution of chi / sqrt(freedom).
    """
    s = np.linspace(1e-6, 1 + 12 / math.sqrt(freedom), 4001)
    log_density = (freedom - 1) * np.log(s) - freedom * s**2 / 2
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    far = [math.erfc((critical * each - shift) / math.sqrt(2)) for each in s]
    other = [math.erfc((critical * each + shift) / math.sqrt(2)) for each in s]
    return float(weights @ np.add(far, other)) / 2
