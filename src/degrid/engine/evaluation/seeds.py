"""Whether one recipe beats another beyond the choice of seed: Student's t over trainings with several seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
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
        raise UserError(f"seeds are compared over two runs or more of each recipe; got {len(a)} and {len(b)}")
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
    if error < 1e-12:  # rounding alone
        p = 1.0 if abs(difference) < 1e-12 else min(1.0, 2 / orders)
        return Difference(miou_a, miou_b, difference, difference, difference, p, "seeds", paired)
    reach = t_quantile(0.05, freedom) * error
    p = t_two_sided(difference / error, freedom)
    return Difference(miou_a, miou_b, difference, difference - reach, difference + reach, p, "seeds", paired)


def seed_interval(mious: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a recipe's mean mIoU over other seeds, by Student's t; of two runs or more."""
    reach = t_quantile(0.05, len(mious) - 1.0) * float(np.std(mious, ddof=1)) / math.sqrt(len(mious))
    return float(np.mean(mious)) - reach, float(np.mean(mious)) + reach


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
