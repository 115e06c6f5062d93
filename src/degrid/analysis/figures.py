"""The pictures of training curves, one function each; None where no run has what the picture shows."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from degrid.analysis.curves import Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, told apart by colour-blind readers, without the yellow that is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
HATCHES = ("", "///", "...", "xxx", "\\\\\\")
DPI = 120
SIZE = (9.0, 5.0)
"""Width and height of a picture in inches; the bars per class are as high as they need."""


def smoothed(values: Sequence[float], weight: float) -> np.ndarray:
    """Bias-corrected exponential average: the past counts `weight`, and the start does not pull towards 0.

    A value that is not finite stays as it is and does not spoil those after it.
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


# ---- pictures -----------------------------------------------------------------------------------------------


def _canvas(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _style(index: int) -> dict[str, Any]:
    """Colour and line of a run; no two of 28 runs have both alike."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index % len(LINES)]}


def _plain(text: str) -> str:
    """A name as matplotlib shows it: no formulas, and a leading underscore does not hide it."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _finish(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def _loss_scale(axes: Axes, values: Iterable[float]) -> None:
    """Logarithmic where the numbers allow it, with plain numbers along it."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) <= 0:
        return
    axes.set_yscale("log")
    span = max(finite) / min(finite)
    # Losses often stay within a decade: label inside it, but not so densely that labels of many decades collide.
    marks = (1, 1.5, 2, 3, 4, 5, 7) if span < 30 else (1, 2, 5) if span < 1000 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=marks))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _loss(runs: Sequence[Curves], smooth: float) -> Figure:
    figure, axes = _canvas()
    for index, run in enumerate(runs):
        style = _style(index)
        axes.plot(run.steps, run.loss, color=style["color"], linewidth=0.6, alpha=0.35, zorder=1)
        axes.plot(run.steps, smoothed(run.loss, smooth), **style, linewidth=1.6, label=_plain(run.name))
    _loss_scale(axes, (value for run in runs for value in run.loss))
    _finish(axes, "optimiser step", "training loss, nats per pixel")
    return figure


def _epoch_loss(runs: Sequence[Curves], smooth: float) -> Figure | None:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _canvas()
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
    return figure


def _miou(runs: Sequence[Curves], smooth: float) -> Figure | None:
    if not any(run.validations for run in runs):
        return None
    figure, axes = _canvas()
    for index, run in enumerate(runs):
        if run.validations:
            steps, values = zip(*((found.step, 100 * found.miou) for found in run.validations), strict=True)
            axes.plot(steps, values, **_style(index), marker="o", markersize=4, label=_plain(run.name))
    _finish(axes, "optimiser step", "validation mIoU, %")
    return figure


def _class_iou(runs: Sequence[Curves], smooth: float) -> Figure | None:
    shown = [(index, run) for index, run in enumerate(runs) if run.validations and run.validations[-1].class_iou]
    if not shown:
        return None
    classes = list(dict.fromkeys(name for _, run in shown for name in run.validations[-1].class_iou))
    # Very many bars get thin rather than make a picture that no viewer opens.
    figure, axes = _canvas((SIZE[0], min(100.0, 1.2 + len(classes) * (0.12 + 0.17 * len(shown)))))
    thick = 0.82 / len(shown)
    for place, (index, run) in enumerate(shown):
        found = run.validations[-1].class_iou
        values = [100 * (found.get(name) or 0.0) for name in classes]
        at = np.arange(len(classes)) - 0.41 + (place + 0.5) * thick
        look: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "hatch": HATCHES[index % len(HATCHES)]}
        axes.barh(at, values, thick, **look, edgecolor="white", linewidth=0, label=_plain(run.name))
    axes.set_yticks(range(len(classes)), [_plain(name) for name in classes])
    axes.set(xlim=(0, 100), ylim=(len(classes) - 0.4, -0.6), xlabel="IoU at the last validation, %", ylabel="class")
    axes.grid(alpha=0.3, axis="x")
    # Beside the bars: inside, it would hide some.
    figure.legend(loc="outside right upper")
    return figure


def _learning_rate(runs: Sequence[Curves], smooth: float) -> Figure | None:
    figure, axes = _canvas()
    for index, run in enumerate(runs):
        if np.isfinite(run.lr).any():
            axes.plot(run.steps, run.lr, **_style(index), label=_plain(run.name))
    if not axes.lines:
        return None
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    _finish(axes, "optimiser step", "learning rate (per step, no unit)")
    return figure


def png(figure: Figure) -> bytes:
    """The picture as a PNG file."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    # Long noisy lines overflow the renderer in one piece; a sign missing in the font is drawn as a box, silently.
    with rc_context({"agg.path.chunksize": 10000}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="png", dpi=DPI)
    return stream.getvalue()


PICTURES: tuple[tuple[str, Callable[[Sequence[Curves], float], Figure | None], str], ...] = (
    (
        "loss",
        _loss,
        "Training loss per step: raw (thin) and smoothed (thick). Logs of the original programs include weight decay.",
    ),
    ("loss_per_epoch", _epoch_loss, "Mean training loss of each complete epoch."),
    ("miou", _miou, "Mean IoU on the validation images."),
    ("class_iou", _class_iou, "IoU per class at the last validation; no bar where a class is nowhere, or at 0."),
    ("learning_rate", _learning_rate, "Learning rate of the encoder at each step."),
)
"""File name, drawing function of (runs, smoothing) and caption."""
