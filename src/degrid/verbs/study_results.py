"""What a study found: per cell its mean and spread, its difference from the first cell, and its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from degrid.analysis.page import COLORS, png
from degrid.engine.evaluation.seeds import (
    POWER,
    bootstrap_interval,
    corrected,
    mean_and_reach,
    seed_difference,
    smallest_difference,
)
from degrid.files import write_bytes, write_json, write_text
from degrid.lookup import counted, markdown_table

MEASURES: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "miou": lambda scores: scores["miou"],
    "boundary_iou": lambda scores: scores["boundary_iou"],
    "corrupted_miou": lambda scores: _mean(each["miou"] for each in scores.get("corrupted", ())),
    "shift_agreement": lambda scores: _mean(each["agreement"] for each in scores.get("shifts", ())),
}
"""What is tested, 0 to 1, from the scores of a run: mIoU, boundary IoU, the mean mIoU under noise and blur, and the
mean agreement under shifts; None where it was not measured."""


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; None without any."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


@dataclass(frozen=True)
class RunScores:
    """One run of a study.

    Attributes:
        variant, cell, seed: which one; the variant is empty where there are none.
        scores: as `degrid eval` writes them.
        cost: parameters, step_seconds (median), steps, peak_memory_mib (of the training process; None where unknown),
            train_seconds (None for a run that was continued).
        gridding: score at rate 2 of the last dilated stage "before" and "after" training; None without such a stage.
        made: began, ended, machine and versions, as `training_of` gives them; empty where not known.
    """

    variant: str
    cell: str
    seed: int
    scores: dict[str, Any]
    cost: dict[str, Any]
    gridding: dict[str, float] | None = None
    made: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Effect:
    """How a cell differs from the first one in one score, over the seeds that both have.

    Attributes:
        variant, cell, measure: which; the measure is a key of MEASURES.
        pairs: number of seeds.
        difference: mean of the cell's score less the first one's, -1 to 1; the rest likewise.
        low, high: 95 % interval by Student's t.
        bootstrap: 95 % interval by drawing seeds with replacement.
        p, p_corrected: two-sided; the second is raised for all comparisons of this measure in the study, by Holm.
        detectable: the smallest true difference that this number of seeds finds with a chance of 80 %, at this spread.
    """

    variant: str
    cell: str
    measure: str
    pairs: int
    difference: float
    low: float
    high: float
    bootstrap: tuple[float, float]
    p: float
    p_corrected: float
    detectable: float


@dataclass(frozen=True)
class StudyResult:
    """The runs of a study, and what they show.

    Attributes:
        name, question: of the protocol.
        cells: names, the one first with which the others are compared.
        runs: those that are done.
        failures: why others have no scores, by their folders.
        began: when the protocol was written.
        folder: of the study; None before it is known.
        planned: number of runs in the protocol.
    """

    name: str
    question: str
    cells: tuple[str, ...]
    runs: tuple[RunScores, ...]
    failures: dict[str, str]
    began: str
    folder: Path | None = None
    planned: int = 0

    @property
    def variants(self) -> tuple[str, ...]:
        """Those with runs."""
        return tuple(dict.fromkeys(run.variant for run in self.runs))

    def of(self, variant: str, cell: str) -> dict[int, RunScores]:
        """The runs of a cell by their seeds."""
        return {run.seed: run for run in self.runs if (run.variant, run.cell) == (variant, cell)}

    def effects(self, measure: str = "miou") -> list[Effect]:
        """The difference of every cell with two common seeds or more to the first cell.

        Args:
            measure: a key of MEASURES.
        """
        found = [
            _effect(variant, cell, measure, self.of(variant, self.cells[0]), self.of(variant, cell))
            for variant in self.variants
            for cell in self.cells[1:]
        ]
        tested = [each for each in found if each is not None]
        return [
            dataclasses.replace(
                each,
                p_corrected=p,
                detectable=smallest_difference(each.detectable, each.pairs, len(tested)),
            )
            for each, p in zip(tested, corrected([each.p for each in tested]), strict=True)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: every run, and all comparisons."""
        return {
            "name": self.name,
            "question": self.question,
            "began": self.began,
            "cells": list(self.cells),
            "comparisons": [dataclasses.asdict(each) for measure in MEASURES for each in self.effects(measure)],
            "failures": self.failures,
            "runs": [dataclasses.asdict(run) for run in self.runs],
        }

    def markdown(self) -> str:
        """The tables of the results, and what they do not show."""
        parts = [f"# {self.name}", *([self.question] if self.question else [])]
        for variant in self.variants:
            parts += [f"## {variant}"] * bool(variant)
            parts += [_markdown(_HEAD, self._rows(variant))]
        for measure in MEASURES:
            effects = self.effects(measure)
            if not effects:
                continue
            head = (f"difference in {measure.replace('_', ' ')}", *_EFFECT_HEAD)
            parts.append(_markdown(head, [_effect_row(each) for each in effects]))
        if self.effects():
            parts.append(
                "Differences are paired by seed. Intervals are at 95 %; p is corrected for the comparisons of its "
                "table (Holm). Smallest: the true difference that this number of seeds and this spread detect with a "
                f"probability of {POWER:.0%}."
            )
        if self.failures:
            parts += ["Failed runs:", "\n".join(f"- {place}: {why}" for place, why in self.failures.items())]
        return "\n\n".join(parts) + "\n"

    def save(self, folder: Path) -> None:
        """Write results.json, results.md and accuracy_cost.png into a folder.

        Raises:
            UserError: it cannot be written to.
        """
        write_json(folder / "results.json", self.to_dict())
        write_text(folder / "results.md", self.markdown())
        write_bytes(folder / "accuracy_cost.png", _picture(self))

    def __str__(self) -> str:
        left = self.planned - len(self.runs) - len(self.failures)
        failed = f", {len(self.failures)} failed" if self.failures else ""
        open_ = f", {left} to come" if left else ""
        place = f"; results: {self.folder / 'results.md'}" if self.folder and self.runs else ""
        return f"{counted(len(self.runs), 'run')} done{failed}{open_}{place}"

    def _rows(self, variant: str) -> Iterator[tuple[str, ...]]:
        base = self.of(variant, self.cells[0])
        for cell in self.cells:
            runs = self.of(variant, cell)
            if runs:
                yield _row(cell, runs, base)


def _picture(study: StudyResult) -> bytes:
    """Accuracy against the time of a step, relative to the first cell; a panel for every variant."""
    from matplotlib.figure import Figure  # imported here because it is slow

    drawing = Figure(figsize=(6.5 * len(study.variants), 4.5), layout="constrained")
    panels = drawing.subplots(1, len(study.variants), squeeze=False)[0]
    for axes, variant in zip(panels, study.variants, strict=True):
        first = study.of(variant, study.cells[0])
        for index, cell in enumerate(study.cells):
            runs = study.of(variant, cell)
            if (ratio := _step_ratio(runs, first)) is not None:
                mean, reach = mean_and_reach([run.scores["miou"] for run in runs.values()])
                look = {"color": COLORS[index % len(COLORS)], "marker": _MARKERS[index % len(_MARKERS)]}
                axes.errorbar(ratio, 100 * mean, 100 * reach, label=cell, capsize=3, linestyle="", **look)
        axes.set(xlabel=f"time of a step, relative to {study.cells[0]}", ylabel="mIoU, %", title=variant or study.name)
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(title="mean, 95 %\ninterval over seeds", fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return png(drawing)


_MARKERS = "os^Dv<>Pp*"
_HEAD = (
    "",
    "runs",
    "mIoU %",
    "± sd",
    "boundary IoU %",
    "noise, blur %",
    "shift %",
    "step",
    "memory MiB",
    "parameters",
    "gridding",
)
_EFFECT_HEAD = ("seeds", "points", "t interval", "bootstrap", "p", "corrected", "smallest")


def _effect(
    variant: str, cell: str, measure: str, first: Mapping[int, RunScores], others: Mapping[int, RunScores]
) -> Effect | None:
    """An effect with the spread as its smallest difference and p uncorrected; None for fewer than two common seeds."""
    value = MEASURES[measure]
    both = [(value(first[seed].scores), value(others[seed].scores)) for seed in others if seed in first]
    pairs = [(x, y) for x, y in both if x is not None and y is not None]
    if len(pairs) < 2 or len(pairs) < len(both):
        return None
    a, b = zip(*pairs, strict=True)
    found = seed_difference(a, b, paired=True)
    differences = [y - x for x, y in pairs]
    return Effect(
        variant,
        cell,
        measure,
        len(pairs),
        found.difference,
        found.low,
        found.high,
        bootstrap_interval(differences),
        found.p,
        found.p,
        stdev(differences),
    )


def _row(cell: str, runs: Mapping[int, RunScores], first: Mapping[int, RunScores]) -> tuple[str, ...]:
    mious = [run.scores["miou"] for run in runs.values()]
    ratio = _step_ratio(runs, first)
    grids = [run.gridding for run in runs.values() if run.gridding]
    scores = [f"{100 * fmean(mious):.2f}", f"{100 * stdev(mious):.2f}" if len(mious) > 1 else "-"]
    for measure in list(MEASURES)[1:]:
        found = _mean(MEASURES[measure](run.scores) for run in runs.values())
        scores.append("-" if found is None else f"{100 * found:.2f}")
    costs = ["-" if ratio is None else f"{ratio:.2f}x"]
    memory = _mean(run.cost["peak_memory_mib"] for run in runs.values())
    costs += ["-" if memory is None else f"{memory:.0f}", f"{next(iter(runs.values())).cost['parameters']:,}"]
    grid = " -> ".join(f"{fmean(each[when] for each in grids):.3f}" for when in ("before", "after")) if grids else "-"
    return (cell, str(len(runs)), *scores, *costs, grid)


def _effect_row(effect: Effect) -> tuple[str, ...]:
    low, high = effect.bootstrap
    return (
        " ".join(filter(None, (effect.variant, effect.cell))),
        str(effect.pairs),
        f"{100 * effect.difference:+z.2f}",
        f"[{100 * effect.low:+z.2f}, {100 * effect.high:+z.2f}]",
        f"[{100 * low:+z.2f}, {100 * high:+z.2f}]",
        f"{effect.p:.3g}",
        f"{effect.p_corrected:.3g}",
        f"{100 * effect.detectable:.2f}",
    )


def _step_ratio(runs: Mapping[int, RunScores], first: Mapping[int, RunScores]) -> float | None:
    """The time of a step relative to the first cell's: the median of the ratios within each seed.

    Machines that share a study differ far more than cells do, and mostly each of them makes all runs of a seed.
    """
    times = {seed: run.cost["step_seconds"] for seed, run in first.items()}
    ratios = [
        run.cost["step_seconds"] / times[seed]
        for seed, run in runs.items()
        if times.get(seed) and run.cost["step_seconds"]
    ]
    return median(ratios) if ratios else None


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return markdown_table(head, ["---", *["---:"] * (len(head) - 1)], *rows)
