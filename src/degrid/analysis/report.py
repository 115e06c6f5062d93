"""One HTML page, with everything inside it, that compares trained networks."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from degrid.analysis.receptive_field import hole_ratio
from degrid.files import write_text
from degrid.image import overlay_classes
from degrid.types import LabelSpace, Sample, Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's colours: told apart by colour-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


@dataclass(frozen=True)
class ReportRun:
    """One trained network.

    records: the lines of its metrics.jsonl; predictions: uint8 [H,W] for each shown sample;
    receptive_field: float [H,W], the effective receptive field of its last dilated stage; gridding: its score, 0..1.
    """

    name: str
    records: list[dict[str, Any]]
    scores: Scores
    predictions: list[np.ndarray]
    receptive_field: np.ndarray
    gridding: float
    train_seconds: float


def write_report(
    path: Path,
    title: str,
    intro: str,
    runs: Sequence[ReportRun],
    samples: Sequence[Sample],
    labels: LabelSpace,
    outro: str,
) -> None:
    """Write the page: totals, curves, IoU per class, overlays and effective receptive fields.

    Args:
        intro, outro: HTML paragraphs before and after.
        runs: at most four; the first is the one the others are compared with.
        samples: the images shown, with their truth.
    """
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        intro,
        "<h2>Scores on held-out images</h2>",
        _totals(runs),
        "<h2>Training</h2>",
        _figure(_curves(runs), "Loss (running mean) and validation mIoU over the optimiser steps."),
        "<h2>IoU per class</h2>",
        _classes(runs, labels),
        "<h2>Effective receptive field</h2>",
        _figure(
            _receptive_fields(runs),
            "How much each position at the input of the last dilated stage moves the centre of its output: mean "
            "absolute gradient, square-root scale; the bright centre is the residual connection. Holes are positions "
            "that the output hardly sees, as a share of the square that holds 95 % of the field. The gridding score "
            "is 1 when a single phase of the dilation grid is seen, 0 when all are seen alike.",
        ),
        "<h2>Predictions</h2>",
        _overlays(runs, samples, labels),
        outro,
    ]
    page = _PAGE.replace("{title}", html.escape(title)).replace("{body}", "\n".join(sections))
    write_text(path, page)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _totals(runs: Sequence[ReportRun]) -> str:
    head = ("network", "mIoU %", "boundary IoU %", "pixel accuracy %", "mean accuracy %", "training, s")
    rows = [
        (
            run.name,
            _percent(run.scores.miou),
            _percent(run.scores.boundary_iou),
            _percent(run.scores.pixel_accuracy),
            _percent(run.scores.mean_accuracy),
            f"{run.train_seconds:.0f}",
        )
        for run in runs
    ]
    return _table(head, rows)


def _classes(runs: Sequence[ReportRun], labels: LabelSpace) -> str:
    head = ["class", *(f"{run.name}, %" for run in runs), "share of pixels %"]
    total = max(1, sum(runs[0].scores.class_pixels))
    rows = []
    for index, (name, color) in enumerate(zip(labels.names, labels.colors, strict=True)):
        swatch = f'<span class="swatch" style="background:rgb{color}"></span>{html.escape(name)}'
        values = [_percent(run.scores.class_iou[index]) for run in runs]
        rows.append((swatch, *values, _percent(runs[0].scores.class_pixels[index] / total)))
    return _table(head, rows, raw_first=True)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], raw_first: bool = False) -> str:
    lines = ["<table><tr>", *(f"<th>{html.escape(cell)}</th>" for cell in head), "</tr>"]
    for first, *rest in rows:
        lines += ["<tr>", f"<td>{first if raw_first else html.escape(first)}</td>"]
        lines += [*(f"<td>{html.escape(cell)}</td>" for cell in rest), "</tr>"]
    return "".join([*lines, "</table>"])


def _curves(runs: Sequence[ReportRun]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    loss_axes, miou_axes = figure.subplots(1, 2)
    for run, color in zip(runs, COLORS, strict=False):
        losses = [(record["step"], record["loss"]) for record in run.records if "loss" in record]
        steps, values = (np.array(column) for column in zip(*losses, strict=True))
        width = max(1, len(values) // 40)
        smooth = np.convolve(values, np.ones(width) / width, "valid")
        loss_axes.plot(steps[width - 1 :], smooth, color=color, label=run.name)
        found = [(record["step"], 100 * record["val"]["miou"]) for record in run.records if "val" in record]
        miou_axes.plot(*zip(*found, strict=True), color=color, marker="o", label=run.name)
    loss_axes.set(xlabel="step", ylabel="cross-entropy, nats per pixel", yscale="log")
    miou_axes.set(xlabel="step", ylabel="validation mIoU, %")
    for axes in (loss_axes, miou_axes):
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    return figure


def _receptive_fields(runs: Sequence[ReportRun]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(runs), 4.2), layout="constrained")
    for axes, run in zip(np.atleast_1d(figure.subplots(1, len(runs))), runs, strict=True):
        field = run.receptive_field
        radius = min(field.shape) // 2
        half = field.shape[0] / 2
        axes.imshow(np.sqrt(field / field.max()), cmap="magma", extent=(-half, half, half, -half))
        title = f"{run.name}: gridding score {run.gridding:.3f}, {hole_ratio(field):.0%} holes"
        axes.set(title=title, xlabel="offset, feature pixels")
        axes.set(xlim=(-radius, radius), ylim=(radius, -radius))
    return figure


def _figure(figure: Figure, caption: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _overlays(runs: Sequence[ReportRun], samples: Sequence[Sample], labels: LabelSpace) -> str:
    names = ["image", "truth", *(run.name for run in runs)]
    cells = [f"<b>{html.escape(name)}</b>" for name in names]
    for index, sample in enumerate(samples):
        image = sample.image.permute(1, 2, 0).numpy()
        shown = [image, overlay_classes(image, sample.label.numpy(), labels, 0.7)]
        shown += [overlay_classes(image, run.predictions[index], labels, 0.7) for run in runs]
        cells += [_picture(picture, f"{name} of {sample.name}") for name, picture in zip(names, shown, strict=True)]
    return f'<div class="grid" style="--columns:{len(names)}">{"".join(cells)}</div>'


def _picture(pixels: np.ndarray, description: str) -> str:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .9rem; }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em; border: 1px solid #0003; }
.grid { display: grid; grid-template-columns: repeat(var(--columns), 1fr); gap: .4rem; }
.grid img { width: 100%; image-rendering: pixelated; }
code { background: #f3f3f3; padding: .1em .3em; border-radius: 3px; }
</style>
<body>
{body}
</body>
</html>
"""
