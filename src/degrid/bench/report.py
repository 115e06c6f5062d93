"""The results of `degrid bench` as JSON, as tables and as pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.analysis.page import COLORS, png
from degrid.bench.measure import Row
from degrid.files import write_bytes, write_json, write_text
from degrid.lookup import grouped, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = "degrid bench 1"
STEADY = 0.2
"""Relative change of the thread state over a run up to which it counts as steady."""


@dataclass(frozen=True)
class Results:
    """All that one run of the benchmarks found: rows by the name of their set, and what was asked for.

    machine: see `degrid.bench.suite.machine_facts`; state: "before" and "after", see `machine_state` there.
    """

    machine: Mapping[str, Any]
    state: Mapping[str, Any]
    settings: Mapping[str, Any]
    sets: Mapping[str, Sequence[Row]] = field(default_factory=dict)


def write_results(path: str | Path, results: Results) -> None:
    """Write everything as one JSON file."""
    sets = {name: [row.to_dict() for row in rows] for name, rows in results.sets.items()}
    record = {"format": FORMAT, "settings": results.settings, "machine": results.machine, "state": results.state}
    write_json(path, {**record, "sets": sets})


def groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by group, in order."""
    return grouped((row.group, row) for row in rows)


def write_markdown(path: str | Path, results: Results) -> None:
    """Every table in Markdown, and the machine."""
    parts = []
    for name, rows in [item for each in results.sets.values() for item in groups(each).items()]:
        heads, lines = cells(rows)
        rule = ["---", *["---:"] * (len(heads) - 1)]
        parts.append(f"**{name}**\n\n{markdown_table(heads, rule, *lines)}")
    parts.append("\n".join(f"- {line}" for line in machine_lines(results)))
    write_text(path, "\n\n".join(parts) + "\n")


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The heads and lines of a group's table: the ratio and its quartiles first, then overhead, value and notes."""
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    repeated = len(rows[0].repeats) > 1
    unit, handled = rows[0].unit, rows[0].items
    heads = ["case", "speed" if unit == "s" else "times less", "quartiles", *(["repeats"] if repeated else [])]
    heads += ["over base", *(["median", "per second"] if unit == "s" else [f"median {unit}"]), *notes]
    lines = []
    for row in rows:
        ratio = row.ratio
        line = [row.name, f"{ratio.median:.2f}x", "base" if row.base else f"{ratio.low:.2f}..{ratio.high:.2f}"]
        if repeated:
            line.append(f"{min(row.repeats):.2f}..{max(row.repeats):.2f}")
        line.append(f"{100 / ratio.median - 100:+z.0f} %")
        line += [duration(row.value), f"{handled / row.value:.3g}"] if unit == "s" else [f"{row.value:.1f}"]
        line += [f"{row.notes[note]:.4g}" if note in row.notes else "" for note in notes]
        lines.append(line)
    return heads, lines


def duration(seconds: float) -> str:
    """A time in a suitable unit: 1.5 s, 12.0 ms, 3.4 us."""
    factor, unit = (1.0, "s") if seconds >= 1 else (1e3, "ms") if seconds * 1e3 >= 1 else (1e6, "us")
    return f"{seconds * factor:.3g} {unit}"


def machine_lines(results: Results) -> list[str]:
    """The machine in a few lines, and a warning where it was busy or changed during the run."""
    machine, state = results.machine, results.state
    versions = ", ".join(f"{key} {value}" for key, value in machine["versions"].items() if value)
    cores, kept = machine["usable_cores"], results.settings.get("keep_freed_memory")
    lines = [
        f"{machine['cpu']}, {cores} cores, {machine['threads']} threads, {' '.join(machine['instructions'])}",
        f"{versions}; allocator {machine['allocator']}" + (", keeping freed memory" if kept else ""),
    ]
    for moment, found in state.items():
        speeds = ", ".join(f"{value:.0f} GFLOP/s with {count}" for count, value in found["threads"].items())
        load = "" if found["load"] is None else f"; load average {found['load']:.1f}"
        lines.append(f"float32 matrix product {moment}: {speeds} threads{load}")
    return lines + _warnings(results)


def _warnings(results: Results) -> list[str]:
    before, after = results.state.get("before"), results.state.get("after")
    found = []
    if before and before["load"] is not None and before["load"] > 0.5:
        found.append("other work was running when this began: absolute times are worth little, ratios a bit more")
    if before and after:
        moved = max(abs(after["threads"][key] / value - 1) for key, value in before["threads"].items())
        if moved > STEADY:
            change = f"the threads' speed changed by {100 * moved:.0f} % during the run"
            found.append(f"{change}: trust the ratios, not the times")
    return [f"note: {line}" for line in found]


def picture(title: str, rows: Sequence[Row]) -> Figure:
    """The ratios of a set as bars with quartiles, one panel per group."""
    from matplotlib.figure import Figure

    parts = groups(rows)
    heights = [len(part) + 1.6 for part in parts.values()]
    figure = Figure(figsize=(9.0, 0.8 + 0.3 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(parts), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    right = 1.15 * max(max(row.ratio.high for row in rows), 1.0)
    for index, (axes, (name, part)) in enumerate(zip(panels, parts.items(), strict=True)):
        _bars(axes, name, part, COLORS[index % len(COLORS)])
    panels[-1].set_xlim(0, right)  # shared by all
    what = "times as fast as the base" if rows[0].unit == "s" else "times less memory than the base"
    panels[-1].set_xlabel(f"{what}: median of the rounds' ratios, with quartiles")
    figure.suptitle(title, parse_math=False)
    return figure


def _bars(axes: Axes, name: str, rows: Sequence[Row], color: str) -> None:
    found, places = [row.ratio for row in rows], range(len(rows))
    middle = [ratio.median for ratio in found]
    spread = [[r.median - r.low for r in found], [r.high - r.median for r in found]]
    axes.barh(places, middle, 0.7, xerr=spread, color=color, alpha=0.75, error_kw={"capsize": 3, "ecolor": "black"})
    for place, ratio in zip(places, found, strict=True):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # over the line at 1
        how: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8, "bbox": box}
        axes.annotate(f"{ratio.median:.2f}", (ratio.high, place), (5, 0), **how)
    axes.axvline(1, color="black", linestyle="--", linewidth=0.8)
    axes.set_yticks(places, [row.name for row in rows], parse_math=False)
    axes.set_title(name, loc="left", fontsize=10, parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(alpha=0.3, axis="x")


def write_pictures(folder: str | Path, results: Results) -> list[Path]:
    """One PNG per set; the files written."""
    files = []
    for name, rows in results.sets.items():
        files.append(Path(folder) / f"{name.replace(':', '.')}.png")
        write_bytes(files[-1], png(picture(name, rows)))
    return files
