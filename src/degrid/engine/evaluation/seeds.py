"""Whether one recipe beats another beyond the choice of seed, and what a study over seeds could have shown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from degrid.engine.evaluation.bootstrap import Difference
from degrid.types import Scores, UserError

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(100)


def seed_difference(a: Sequence[float], b: Sequence[float], paired: bool) -> Difference:
    """Compare the mIoUs of two recipes, each trained with several seeds.

    The interval is that of Student's t of the differences between runs of one seed, or of Welch's t where the runs do
    not belong together in pairs. Where all runs of a recipe score alike, so that there is no spread, p is that of an
    exact permutation test, the smallest that this number of runs can give.

    Args:
        a, b: mIoU of each run, two or more, 0 to 1.
        paired: whether a[k] and b[k] were trained with one seed.
    Raises:
        UserError: fewer than two runs of a recipe, or pairs of unequal numbers.
    Source: Student, Biometrika 6 (1908); Welch, Biometrika 34 (1947).
    """
    if min(len(a), len(b)) < 2 or (paired and len(a) != len(b)):
        raise UserError(
            f"expected at least two runs of each recipe, and as many of both in pairs; got {len(a)} and {len(b)}"
        )
    miou_a, miou_b = float(np.mean(a)), float(np.mean(b))
    difference = miou_b - miou_a
    if paired:
        variances = [float(np.var(np.subtract(b, a), ddof=1)) / len(a)]
        freedom, orders = len(a) - 1.0, 2 ** len(a)
    else:
        variances = [float(np.var(runs, ddof=1)) / len(runs) for runs in (a, b)]
        parts = sum(each**2 / (len(runs) - 1) for each, runs in zip(variances, (a, b), strict=True))
        freedom, orders = sum(variances) ** 2 / parts if parts else 1.0, math.comb(len(a) + len(b), len(a))
    error = math.sqrt(sum(variances))
    if error < 1e-12:  # only rounding
        p = 1.0 if abs(difference) < 1e-12 else min(1.0, 2 / orders)
        return Difference(miou_a, miou_b, difference, difference, difference, p, "seeds", paired)
    reach = t_quantile(0.05, freedom) * error
    p = t_two_sided(difference / error, freedom)
    return Difference(miou_a, miou_b, difference, difference - reach, difference + reach, p, "seeds", paired)


def mean_and_reach(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds and half its 95 % interval over other seeds, by Student's t; 0 for a single value."""
    if len(values) < 2:
        return values[0], 0.0
    return fmean(values), t_quantile(0.05, len(values) - 1) * stdev(values) / math.sqrt(len(values))


def t_two_sided(t: float, freedom: float) -> float:
    """The probability of a |t| at least as large; with t = sqrt(freedom) / tan(u) it is an integral of sin(u)^(f-1)."""
    return _sine_integral(math.atan2(math.sqrt(freedom), abs(t)), freedom) / _sine_integral(math.pi / 2, freedom)


def t_quantile(p: float, freedom: float) -> float:
    """The t whose two-sided probability is p."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        share = _sine_integral(middle, freedom) / _sine_integral(math.pi / 2, freedom)
        low, high = (middle, high) if share < p else (low, middle)
    return math.sqrt(freedom) / math.tan((low + high) / 2)


def _sine_integral(end: float, freedom: float) -> float:
    """The integral of sin(u)^(freedom-1) from 0 to `end`, with u = end * s^2, which is smooth at 0."""
    s = (_NODES + 1) / 2
    return float(np.sum(_WEIGHTS / 2 * np.sin(end * s**2) ** (freedom - 1) * 2 * end * s))


def mean_scores(runs: Sequence[Scores]) -> Scores:
    """The mean of each score over several runs on the same images; the confusion is their sum."""
    if len(runs) == 1:
        return runs[0]
    first = runs[0]
    names = ["miou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"]
    names += [] if first.boundary_iou is None else ["boundary_iou"]
    means: dict[str, Any] = {name: float(np.mean([getattr(run, name) for run in runs])) for name in names}
    return dataclasses.replace(
        first,
        **means,
        class_iou=_means([run.class_iou for run in runs]),
        class_accuracy=_means([run.class_accuracy for run in runs]),
        class_boundary_iou=None
        if first.class_boundary_iou is None
        else _means([run.class_boundary_iou or () for run in runs]),
        confusion=tuple(map(tuple, np.sum([run.confusion for run in runs], axis=0).tolist())),
    )


def _means(rows: Sequence[tuple[float | None, ...]]) -> tuple[float | None, ...]:
    """The mean of each class over the runs in which it occurs."""
    found = [[value for value in values if value is not None] for values in zip(*rows, strict=True)]
    return tuple(float(np.mean(values)) if values else None for values in found)


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
