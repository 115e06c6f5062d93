"""One HTML page, with everything inside it, that compares trained networks."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from degrid.analysis.curves import Curves
from degrid.analysis.figures import COLORS, svg
from degrid.analysis.page import Raw, figure, image, page, percent, table
from degrid.analysis.receptive_field import hole_ratio
from degrid.files import write_text
from degrid.image import overlay_classes
from degrid.types import LabelSpace, Sample, Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ReportRun:
    """One trained network.

    predictions: uint8 [H,W] for each sample shown; receptive_field: float [H,W], the effective one of its last dilated
    stage; gridding: its score, 0..1.
    """

    name: str
    curves: Curves
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
        runs: at most four.
        samples: the images to show, with their true labels.
    """
    sections = [
        intro,
        "<h2>Scores on held-out images</h2>",
        _totals(runs),
        "<h2>Training</h2>",
        figure(svg(_curves(runs)), "Loss (running mean) and validation mIoU over the optimiser steps."),
        "<h2>IoU per class</h2>",
        _classes(runs, labels),
        "<h2>Effective receptive field</h2>",
        figure(
            svg(_receptive_fields(runs)),
            "How much the centre of the last dilated stage's output depends on each position of its input: mean "
            "absolute gradient, square-root scale; the bright centre is the residual connection. Holes are positions "
            "with hardly any influence, as a percentage of the square that holds 95 % of the field. The gridding "
            "score is 1 when a single phase of the dilation grid has influence, 0 when all have the same.",
        ),
        "<h2>Predictions</h2>",
        _overlays(runs, samples, labels),
        outro,
    ]
    write_text(path, page(title, sections))


def _totals(runs: Sequence[ReportRun]) -> str:
    head = ("network", "mIoU %", "boundary IoU %", "pixel accuracy %", "mean accuracy %", "training, s")
    rows = []
    for run in runs:
        found = (run.scores.miou, run.scores.boundary_iou, run.scores.pixel_accuracy, run.scores.mean_accuracy)
        rows.append((run.name, *map(percent, found), f"{run.train_seconds:.0f}"))
    return table(head, rows)


def _classes(runs: Sequence[ReportRun], labels: LabelSpace) -> str:
    head = ["class", *(f"{run.name}, %" for run in runs), "fraction of pixels %"]
    total = max(1, sum(runs[0].scores.class_pixels))
    rows = []
    for index, (name, color) in enumerate(zip(labels.names, labels.colors, strict=True)):
        swatch = Raw(f'<span class="swatch" style="background:rgb{color}"></span>{html.escape(name)}')
        values = [percent(run.scores.class_iou[index]) for run in runs]
        rows.append((swatch, *values, percent(runs[0].scores.class_pixels[index] / total)))
    return table(head, rows)


def _curves(runs: Sequence[ReportRun]) -> Figure:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 3.2), layout="constrained")
    loss_axes, miou_axes = drawing.subplots(1, 2)
    for run, color in zip(runs, COLORS, strict=False):
        width = max(1, len(run.curves.loss) // 40)
        smooth = np.convolve(run.curves.loss, np.ones(width) / width, "valid")
        loss_axes.plot(run.curves.steps[width - 1 :], smooth, color=color, label=run.name)
        found = [(each.step, 100 * each.miou) for each in run.curves.validations]
        miou_axes.plot(*zip(*found, strict=True), color=color, marker="o", label=run.name)
    loss_axes.set(xlabel="step", ylabel="cross-entropy, nats per pixel", yscale="log")
    miou_axes.set(xlabel="step", ylabel="validation mIoU, %")
    for axes in (loss_axes, miou_axes):
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    return drawing


def _receptive_fields(runs: Sequence[ReportRun]) -> Figure:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(4.2 * len(runs), 4.2), layout="constrained")
    for axes, run in zip(np.atleast_1d(drawing.subplots(1, len(runs))), runs, strict=True):
        field = run.receptive_field
        radius = min(field.shape) // 2
        half = field.shape[0] / 2
        axes.imshow(np.sqrt(field / field.max()), cmap="magma", extent=(-half, half, half, -half))
        title = f"{run.name}: gridding score {run.gridding:.3f}, {hole_ratio(field):.0%} holes"
        axes.set(title=title, xlabel="offset, feature pixels")
        axes.set(xlim=(-radius, radius), ylim=(radius, -radius))
    return drawing


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
    return image(stream.getvalue(), description)
