"""degrid.demo: train with plain and with smoothed dilated convolutions on the built-in scenes, and compare."""

from __future__ import annotations

import html
import io
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from degrid import recipes
from degrid.analysis import dilated_stage_receptive_field, gridding_score, hole_ratio
from degrid.analysis.curves import Curves, read_curves
from degrid.analysis.page import COLORS, Raw, figure, image, page, percent, svg, table
from degrid.arguments import checked
from degrid.config import RunConfig, override
from degrid.data import open_dataset
from degrid.engine.inference.predictor import Predictor
from degrid.files import write_text
from degrid.image import overlay_classes
from degrid.model_folder import load
from degrid.recipes.deeplab_v3 import synthetic
from degrid.types import Dataset, LabelSpace, OnProgress, Sample, Scores, Tell
from degrid.verbs.evaluate import evaluate
from degrid.verbs.run import run as train

OPERATORS = ("regular", "tent")
NUM_SHOWN = 6


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


@dataclass(frozen=True)
class DemoResult:
    """The page with curves, scores, predictions and effective receptive fields, and what it shows of each training.

    The run folders are beside the page, under the names of the runs.
    """

    report: Path
    runs: tuple[ReportRun, ...]


@checked
def demo(
    out: str | Path = "demo",
    *,
    steps: int | None = None,
    scenes: int | None = None,
    seed: int = 0,
    progress: OnProgress | None = None,
    tell: Tell | None = None,
) -> DemoResult:
    """Train on the built-in scenes with plain and with smoothed dilated convolutions, and compare, as `degrid demo`.

    Takes a few minutes on 2 CPU cores and needs no download.

    Args:
        out: folder for everything the demo makes; what an earlier demo left there is replaced.
        steps: optimiser steps of each training, if not the recipe's.
        scenes: scenes per split, for a quick look.
        seed: of weights, order and augmentation.
        progress, tell: see `degrid.train`.
    Raises:
        UserError: a place in `out` holds a run of your own.
    """
    out = Path(out)
    settings = {"train.seed": seed, "train.steps": steps, "data.path": scenes and f"synthetic:{scenes}"}
    recipe = override(synthetic(), {key: value for key, value in settings.items() if value is not None})
    held_out = open_dataset(recipe.data.path, "test")
    shown = [held_out[index] for index in range(min(NUM_SHOWN, len(held_out)))]
    runs = []
    for operator in OPERATORS:
        if tell:
            tell(f"== {operator} dilated convolutions")
        if _is_earlier_demo(out / operator):
            shutil.rmtree(out / operator)
        config = override(recipe, {"name": operator, "model.smoothing.operator": operator})
        runs.append(_train_and_score(config, out / operator, held_out, shown, progress, tell))
    report = out / "report.html"
    sections = _sections(recipe.train.steps, out, runs, shown, held_out)
    write_text(report, page("Dilated convolutions with and without the grid", sections))
    return DemoResult(report, tuple(runs))


def _is_earlier_demo(folder: Path) -> bool:
    """Whether a folder holds what an earlier demo made; a run of the user's own is never removed."""
    file = folder / "run.json"
    return file.exists() and recipes.load(str(file)).data.path.startswith("synthetic")


def _train_and_score(
    config: RunConfig,
    folder: Path,
    held_out: Dataset,
    shown: list[Sample],
    progress: OnProgress | None,
    tell: Tell | None,
) -> ReportRun:
    began = time.monotonic()
    train(config, folder, progress=progress, tell=tell)
    seconds = time.monotonic() - began
    model = load(folder)
    scores = evaluate(model, held_out, progress=progress)
    predictor = Predictor(model)
    predictions = [predictor(sample.image) for sample in shown]
    field = dilated_stage_receptive_field(model.encoder)
    return ReportRun(folder.name, read_curves(folder), scores, predictions, field, gridding_score(field, 2), seconds)


def _sections(
    steps: int, out: Path, runs: Sequence[ReportRun], samples: Sequence[Sample], held_out: Dataset
) -> list[str]:
    """The page as HTML: totals, curves, IoU per class, effective receptive fields and overlays."""
    return [
        f"<p>Two DeepLab v3+ networks, trained from scratch for {steps} steps on the same computer-generated street "
        f"scenes with the same seed. They differ in one thing: the first has plain dilated convolutions, the second "
        f"smooths their input, so that neighbouring outputs share what they see. There is one run of each, so small "
        f"differences may be chance. Scored on {len(held_out)} scenes that neither has seen.</p>",
        "<h2>Scores on held-out images</h2>",
        _totals(runs),
        "<h2>Training</h2>",
        figure(svg(_curves(runs)), "Loss (running mean) and validation mIoU over the optimiser steps."),
        "<h2>IoU per class</h2>",
        _classes(runs, held_out.labels),
        "<h2>Effective receptive field</h2>",
        figure(
            svg(_receptive_fields(runs)),
            "How much the centre of the last dilated stage's output depends on each position of its input: mean "
            "absolute gradient, square-root scale; the bright centre is the residual connection. Holes are positions "
            "with hardly any influence, as a percentage of the square that holds 95 % of the field. The gridding "
            "score is 1 when a single phase of the dilation grid has influence, 0 when all have the same.",
        ),
        "<h2>Predictions</h2>",
        _overlays(runs, samples, held_out.labels),
        "<h2>Next</h2><p>Train on your own folder of images and masks, and use the result:</p>"
        "<pre><code>degrid data check FOLDER\ndegrid train --data FOLDER --operator tent\n"
        "degrid predict runs/FOLDER IMAGES -o results</code></pre>"
        f"<p>The networks of this page are in <code>{out}</code>: "
        f"<code>degrid info {out / OPERATORS[0]}</code>.</p>",
    ]


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
    drawing = Figure(figsize=(4.2 * len(runs), 4.2), layout="constrained")
    for axes, run in zip(np.atleast_1d(drawing.subplots(1, len(runs))), runs, strict=True):
        field = run.receptive_field
        radius, half = min(field.shape) // 2, field.shape[0] / 2
        axes.imshow(np.sqrt(field / field.max()), cmap="magma", extent=(-half, half, half, -half))
        title = f"{run.name}: gridding score {run.gridding:.3f}, {hole_ratio(field):.0%} holes"
        axes.set(title=title, xlabel="offset, feature pixels", xlim=(-radius, radius), ylim=(radius, -radius))
    return drawing


def _overlays(runs: Sequence[ReportRun], samples: Sequence[Sample], labels: LabelSpace) -> str:
    names = ["image", "truth", *(run.name for run in runs)]
    cells = [f"<b>{html.escape(name)}</b>" for name in names]
    for index, sample in enumerate(samples):
        pixels = sample.image.permute(1, 2, 0).numpy()
        ids = [sample.label.numpy(), *(run.predictions[index] for run in runs)]
        shown = [pixels, *(overlay_classes(pixels, each, labels, 0.7) for each in ids)]
        for name, picture in zip(names, shown, strict=True):
            stream = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="PNG", optimize=True)
            cells.append(image(stream.getvalue(), f"{name} of {sample.name}"))
    return f'<div class="grid" style="--columns:{len(names)}">{"".join(cells)}</div>'
