"""Training curves and receptive fields as pictures, and one HTML page that holds all curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from degrid.analysis.curves import Curves, distinct
from degrid.analysis.field_numbers import mass_side, radial_profile, spectrum
from degrid.analysis.page import COLORS, figure, image, page, png, table
from degrid.files import write_bytes, write_text
from degrid.lookup import percent
from degrid.types import UserError

LINES = ("-", "--", "-.", ":")
HATCHES = ("", "///", "...", "xxx", "\\\\\\")
SIZE = (9.0, 5.0)
"""Width and height of a picture in inches; the bars per class are as high as they need to be."""


def smoothed(values: Sequence[float], weight: float) -> np.ndarray:
    """Exponential average with bias correction, so that it starts at the first value and not at 0.

    The weight is that of the past, 0 up to below 1. A value that is not finite stays as it is, and affects no other.
    """
    found = np.array(values, np.float64)
    average, mass = 0.0, 0.0
    for index, value in enumerate(found):
        if math.isfinite(value):
            average = weight * average + (1 - weight) * value
            mass = weight * mass + (1 - weight)
            found[index] = average / mass
    return found


def epoch_means(values: Sequence[float], epoch_steps: float) -> np.ndarray:
    """Mean of the finite values of each complete epoch; NaN for an epoch without one."""
    epochs = int(len(values) / epoch_steps)
    number = np.floor(np.arange(len(values)) / epoch_steps).astype(np.int64)
    array = np.asarray(values, np.float64)
    use = np.isfinite(array) & (number < epochs)
    count = np.bincount(number[use], minlength=epochs)
    total = np.bincount(number[use], array[use], minlength=epochs)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _canvas(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    drawing = Figure(figsize=size, layout="constrained")
    return drawing, drawing.subplots()


def _style(index: int) -> dict[str, Any]:
    """Colour and line of a run: 28 runs differ in at least one of them."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index % len(LINES)]}


def _plain(text: str) -> str:
    """A name that matplotlib shows as it is: not as a formula, and even with a leading underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _finish(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def _loss_scale(axes: Axes, values: Iterable[float]) -> None:
    """Make the loss axis logarithmic where the values allow it, with plain numbers along it."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) <= 0:
        return
    axes.set_yscale("log")
    span = max(finite) / min(finite)
    # Losses often stay within a decade, which then needs labels inside it; with many decades these would collide.
    marks = (1, 1.5, 2, 3, 4, 5, 7) if span < 30 else (1, 2, 5) if span < 1000 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=marks))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _loss(runs: Sequence[Curves], smooth: float) -> Figure:
    drawing, axes = _canvas()
    for index, run in enumerate(runs):
        style = _style(index)
        axes.plot(run.steps, run.loss, color=style["color"], linewidth=0.6, alpha=0.35, zorder=1)
        axes.plot(run.steps, smoothed(run.loss, smooth), **style, linewidth=1.6, label=_plain(run.name))
    _loss_scale(axes, (value for run in runs for value in run.loss))
    _finish(axes, "optimiser step", "training loss, nats per pixel")
    return drawing


def _epoch_loss(runs: Sequence[Curves], smooth: float) -> Figure | None:
    drawing, axes = _canvas()
    drawn: list[float] = []
    for index, run in enumerate(runs):
        means = epoch_means(run.loss, run.epoch_steps) if run.epoch_steps else np.empty(0)
        if len(means):
            axes.plot(range(1, len(means) + 1), means, **_style(index), marker=".", label=_plain(run.name))
            drawn += means.tolist()
    if not drawn:
        return None
    _loss_scale(axes, drawn)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, "epoch (passes over the training images)", "mean training loss, nats per pixel")
    return drawing


def _miou(runs: Sequence[Curves], smooth: float) -> Figure | None:
    if not any(run.validations for run in runs):
        return None
    drawing, axes = _canvas()
    for index, run in enumerate(runs):
        if run.validations:
            steps, values = zip(*((found.step, 100 * found.miou) for found in run.validations), strict=True)
            axes.plot(steps, values, **_style(index), marker="o", markersize=4, label=_plain(run.name))
    _finish(axes, "optimiser step", "validation mIoU, %")
    return drawing


def _ious(runs: Sequence[Curves], smooth: float) -> Figure | None:
    shown = [(index, run) for index, run in enumerate(runs) if run.validations and run.validations[-1].class_iou]
    if not shown:
        return None
    classes = list(dict.fromkeys(name for _, run in shown for name in run.validations[-1].class_iou))
    # Few viewers open pictures that are much higher, so very many bars become thin instead.
    drawing, axes = _canvas((SIZE[0], min(100.0, 1.2 + len(classes) * (0.12 + 0.17 * len(shown)))))
    thick = 0.82 / len(shown)
    for place, (index, run) in enumerate(shown):
        found = run.validations[-1].class_iou
        values = [100 * (found.get(name) or 0.0) for name in classes]
        at = np.arange(len(classes)) - 0.41 + (place + 0.5) * thick
        style: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "hatch": HATCHES[index % len(HATCHES)]}
        axes.barh(at, values, thick, **style, edgecolor="white", linewidth=0, label=_plain(run.name))
    axes.set_yticks(range(len(classes)), [_plain(name) for name in classes])
    axes.set(xlim=(0, 100), ylim=(len(classes) - 0.4, -0.6), xlabel="IoU at the last validation, %", ylabel="class")
    axes.grid(alpha=0.3, axis="x")
    # Outside the axes, where it hides no bars.
    drawing.legend(loc="outside right upper")
    return drawing


def _learning_rate(runs: Sequence[Curves], smooth: float) -> Figure | None:
    drawing, axes = _canvas()
    for index, run in enumerate(runs):
        if np.isfinite(run.lr).any():
            axes.plot(run.steps, run.lr, **_style(index), label=_plain(run.name))
    if not axes.lines:
        return None
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    _finish(axes, "optimiser step", "learning rate (per step, no unit)")
    return drawing


PICTURES: tuple[tuple[str, Callable[[Sequence[Curves], float], Figure | None], str], ...] = (
    ("loss", _loss, "Training loss per step: raw and smoothed (thick). Original programs' logs include weight decay."),
    ("loss_per_epoch", _epoch_loss, "Mean training loss of each complete epoch."),
    ("miou", _miou, "Mean IoU on the validation images."),
    ("class_iou", _ious, "IoU per class at the last validation; no bar for 0, or for a class that occurs nowhere."),
    ("learning_rate", _learning_rate, "Learning rate of the encoder at each step."),
)
"""File name, drawing function of (runs, smoothing) and caption."""


def curve_pictures(runs: Sequence[Curves], smooth: float = 0.9) -> Iterator[tuple[str, bytes, str]]:
    """Those of `PICTURES` that the runs have something for: file name without ending, PNG file and caption."""
    for stem, draw, caption in PICTURES:
        drawn = draw(runs, smooth)
        if drawn is not None:
            yield stem, png(drawn), caption


def plot_runs(
    curves: Sequence[Curves], out: str | Path, smooth: float = 0.9, epoch_steps: float | None = None
) -> list[Path]:
    """Draw runs over each other: PNG files and index.html, a page with all of them and a table of final scores.

    Pictures of what no run has (validations, learning rates, a known epoch) are left out.

    Args:
        out: the folder to write to; made if need be.
        smooth: weight of the past in the average of the loss, 0 (no smoothing) up to below 1.
        epoch_steps: optimiser steps per epoch, instead of what the runs say.
    Returns:
        The files written; the page is the last.
    Raises:
        UserError: no runs, or a smoothing or epoch out of its range.
    """
    if not curves:
        raise UserError("nothing to plot: expected at least one run")
    if not 0 <= smooth < 1:
        raise UserError(f"expected a smoothing of at least 0 and below 1, got {smooth}")
    if epoch_steps is not None and not epoch_steps >= 1:
        raise UserError(f"expected at least 1 step per epoch, got {epoch_steps}")
    named = zip(curves, distinct(run.name for run in curves), strict=True)
    runs = [replace(run, name=name, epoch_steps=epoch_steps or run.epoch_steps) for run, name in named]
    folder, files, figures = Path(out), [], []
    for stem, data, caption in curve_pictures(runs, smooth):
        files.append(folder / f"{stem}.png")
        write_bytes(files[-1], data)
        figures.append(figure(image(data, caption), caption))
    files.append(folder / "index.html")
    write_text(files[-1], page("Training curves", [_scores(runs, smooth), *figures]))
    return files


def write_rate_search(
    file: Path, rates: Sequence[float], losses: Sequence[float], average: Sequence[float], suggestion: float | None
) -> None:
    """Draw the loss over the learning rate as a PNG, with a mark at the suggested rate."""
    drawing, axes = _canvas()
    axes.plot(rates, losses, color=COLORS[0], linewidth=0.6, alpha=0.35, label="loss of each step")
    axes.plot(rates, average, color=COLORS[0], linewidth=1.6, label="moving average")
    if suggestion:
        axes.axvline(suggestion, color=COLORS[1], linestyle="--", label=f"steepest fall: optim.lr={suggestion:.2g}")
    axes.set_xscale("log")
    _loss_scale(axes, losses)
    _finish(axes, "learning rate of the encoder (optim.lr)", "training loss")
    write_bytes(file, png(drawing))


def _scores(runs: Sequence[Curves], smooth: float) -> str:
    head = ["run", "last step", "final loss", "steps without a finite loss"]
    head += ["mIoU %", "pixel accuracy %", "best mIoU %"]
    rows = []
    for run in runs:
        losses = [value for value in smoothed(run.loss, smooth) if math.isfinite(value)]
        last = run.validations[-1] if run.validations else None
        finite = [found for found in run.validations if math.isfinite(found.miou)]
        best = max(finite, key=lambda found: found.miou, default=None)
        row = [run.name, str(run.steps[-1]) if run.steps else "-", f"{losses[-1]:.4f}" if losses else "-"]
        row += [str(len(run.loss) - len(losses)), percent(last.miou if last else None, 2)]
        row += [percent(last.pixel_accuracy if last else None, 2)]
        rows.append([*row, f"{percent(best.miou, 2)} (step {best.step})" if best else "-"])
    note = f"The final loss is smoothed with weight {smooth:g}; the scores are of the last and of the best validation."
    return f"{table(head, rows)}<p>{note}</p>"


_DECADES = 4
"""Range of a logarithmic map, powers of ten below the peak."""


def draw_field(field: np.ndarray, title: str, unit: str = "pixels of the image") -> Figure:
    """A field from four sides: its map, its map on a logarithmic scale, its radial profile and its spectrum.

    The first three end where nothing is left that the logarithmic scale could show.

    Args:
        field: [H,W], not negative, centre at [H//2, W//2].
        unit: of its positions.
    """
    drawing = Figure(figsize=(9.6, 9), layout="constrained")
    (plain, logarithmic), (profile, frequencies) = drawing.subplots(2, 2)
    side, reach = mass_side(field), _reach(field)
    drawing.suptitle(f"{title}\n95 % of the influence in the white square, side {side}")
    for axes, values, name in (
        (plain, np.sqrt(field / field.max()), "square root of the influence"),
        (logarithmic, np.log10(np.maximum(field / field.max(), 10.0**-_DECADES)), "logarithm of the influence"),
    ):
        shown = _map(axes, values, unit)
        axes.set(title=name, xlabel=f"offset, {unit}")
        edge = np.array([-side, side, side, -side, -side]) / 2
        axes.plot(edge, np.roll(edge, 1), color="white", linewidth=0.8, scalex=False, scaley=False)
        height, width = (min(reach, whole // 2) + 0.5 for whole in field.shape)
        axes.set(xlim=(-width, width), ylim=(height, -height))
        if axes is logarithmic:
            drawing.colorbar(shown, ax=axes, shrink=0.8, label="powers of ten below the peak")
    means = radial_profile(field)[: reach + 1]
    profile.plot(means / means.max(), color=COLORS[0], marker="." if len(means) < 60 else "")
    lowest = max(10.0**-_DECADES, means[means > 0].min() / means.max() / 2)
    profile.set(title="mean influence at a distance", xlabel=f"distance, {unit}", ylim=(lowest, 2))
    profile.set_yscale("log")
    profile.grid(alpha=0.3, which="both")
    power = np.log10(np.maximum(spectrum(field), 10.0**-_DECADES))
    shown = frequencies.imshow(power, cmap="magma", extent=(-0.5, 0.5, 0.5, -0.5), interpolation="nearest")
    frequencies.set(title="spectrum; a grid has peaks beside the centre", xlabel="cycles per pixel", ylabel="")
    drawing.colorbar(shown, ax=frequencies, shrink=0.8, label="powers of ten below the centre")
    return drawing


def draw_fields(
    rows: Mapping[str, Mapping[str, np.ndarray]], unit: str = "feature pixels", panel: float = 2.0
) -> Figure:
    """Several fields beside one another, square-root scale.

    Args:
        rows: by the name of a row, the fields of its panels by their titles; fields as for `draw_field`.
        unit: of their positions.
        panel: side of a panel, inches.
    """
    columns = max(len(fields) for fields in rows.values())
    drawing = Figure(figsize=(0.6 + panel * max(2, columns), 0.4 + (panel + 0.4) * len(rows)), layout="constrained")
    panels = drawing.subplots(len(rows), columns, squeeze=False, sharex="row", sharey="row")
    for line, (name, fields) in zip(panels, rows.items(), strict=True):
        for axes in line[len(fields) :]:
            axes.set_axis_off()
        for axes, (title, field) in zip(line, fields.items(), strict=False):
            _map(axes, np.sqrt(field / field.max()), unit)
            axes.set_title(title, fontsize=10)
        line[0].set_ylabel(name, fontsize=11)
    drawing.supxlabel(f"offset from the centre, {unit}", fontsize=10)
    return drawing


def _reach(field: np.ndarray) -> int:
    """How far from the centre, along rows or columns, a field is above the least that a logarithmic map shows."""
    rows, columns = np.nonzero(field > field.max() * 10.0**-_DECADES)
    height, width = (side // 2 for side in field.shape)
    return max(1, int(np.abs(rows - height).max()), int(np.abs(columns - width).max()))


def _map(axes: Axes, values: np.ndarray, unit: str) -> AxesImage:
    """The values around the centre, by their offset from it."""
    height, width = (side / 2 for side in values.shape)
    shown = axes.imshow(values, cmap="magma", extent=(-width, width, height, -height), interpolation="nearest")
    return shown
