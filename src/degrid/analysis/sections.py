"""The sections of a report on models, as HTML for `degrid.analysis.page`."""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from degrid.analysis.curves import Curves
from degrid.analysis.page import (
    Raw,
    figure,
    folded,
    grid,
    image,
    lines,
    paragraph,
    png,
    side_by_side,
    swatch,
    table,
)
from degrid.analysis.plots import curve_pictures, draw_field
from degrid.image import as_rgb, overlay_classes
from degrid.lookup import percent
from degrid.types import LabelSpace, Sample, Scores

CURVES = ("loss", "miou", "learning_rate")
"""Those of `degrid.analysis.plots.PICTURES` that are shown; scores by class are in a table."""
MOST_NAMED = 30
"""Classes up to which a confusion matrix names them along its sides; up to half of them its fields hold numbers."""
MOST_CONFUSED = 8
"""Rows of the table of confusions."""
WIDEST = 640
"""Pixels of a shown image's longer side."""


@dataclass(frozen=True)
class ReportedModel:
    """A model on the page; of several runs of one recipe the scores are means, and other things those of the first.

    Attributes:
        name: short; no two models have the same.
        scores: over the images; `interval` is the 95 % interval of the mIoU, 0..1.
        settings: by their paths, such as "train.steps".
        facts: about speed, size, and how the model was made, by their titles.
        curves: of the training of its runs, as far as they are known.
        predictions: of the images shown, by their index: class ids, uint8 [H,W].
        image_mious: of each image, 0..1, NaN without a valid pixel; float [N].
        receptive_field: the effective one, float [H,W]; None where it is not known.
        gridding: score of the field at the period of the grid, 0..1.
        sees: the two ends between which the field is measured, in words; unit: of its positions.
        grid: the numbers that describe the field and the grid in it, by their titles.
        layers: what `degrid gridding` says of the network and its layers, as lines of text; empty where it has nothing.
    """

    name: str
    scores: Scores
    interval: tuple[float, float]
    settings: Mapping[str, object] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    curves: tuple[Curves, ...] = ()
    predictions: Mapping[int, np.ndarray] = field(default_factory=dict)
    image_mious: np.ndarray = field(default_factory=lambda: np.empty(0))
    receptive_field: np.ndarray | None = None
    gridding: float | None = None
    sees: str = ""
    unit: str = ""
    grid: Mapping[str, str] = field(default_factory=dict)
    layers: str = ""


def totals(models: Sequence[ReportedModel], over: str) -> str:
    """A row of scores for each model; `over`: what the intervals are over."""
    head = ["model", "mIoU %", f"95 % interval over {over}"]
    head += ["boundary IoU %", "pixel accuracy %", "mean accuracy %"]
    rows = []
    for model in models:
        low, high = model.interval
        found = (model.scores.boundary_iou, model.scores.pixel_accuracy, model.scores.mean_accuracy)
        span = f"{percent(low)} to {percent(high)}"
        rows.append((model.name, percent(model.scores.miou), span, *map(percent, found)))
    return table(head, rows)


def curves(models: Sequence[ReportedModel]) -> str:
    """Pictures of the trainings; empty if none is known."""
    runs = [run for model in models for run in model.curves]
    drawn = curve_pictures(runs) if runs else ()
    figures = [figure(image(data, text), text) for stem, data, text in drawn if stem in CURVES]
    return side_by_side(figures) if figures else ""


def classes(models: Sequence[ReportedModel], labels: LabelSpace) -> str:
    """IoU and accuracy per class, and how frequent it is."""
    accuracy = [f"{model.name}, accuracy %" for model in models] if len(models) == 1 else []
    head = ["class", *(f"{model.name}, IoU %" for model in models), *accuracy, "fraction of pixels %"]
    pixels = models[0].scores.class_pixels
    rows = []
    for index, (name, color) in enumerate(zip(labels.names, labels.colors, strict=True)):
        values = [percent(model.scores.class_iou[index]) for model in models]
        values += [percent(model.scores.class_accuracy[index]) for model in models[: len(accuracy)]]
        rows.append((swatch(color, name), *values, percent(pixels[index] / max(1, sum(pixels)))))
    return table(head, rows)


def confusions(models: Sequence[ReportedModel], labels: LabelSpace) -> str:
    """A matrix for each model, and what it confuses most."""
    parts = []
    for model in models:
        counts = np.array(model.scores.confusion, np.float64)
        text = f"{model.name}: the share of the pixels of each class (row) that was predicted as each class (column)."
        parts.append(figure(image(png(_matrix(counts, labels)), text) + _most_confused(counts, labels), text))
    return side_by_side(parts)


def receptive_fields(models: Sequence[ReportedModel]) -> str:
    """Pictures of the effective receptive fields and their numbers; a sentence if no model has one."""
    drawn = [_field(model, field) for model in models if (field := model.receptive_field) is not None]
    if not drawn:
        return paragraph("No model here has layers whose receptive field could be measured.")
    text = (
        "How much the centre of the output of a network's dilated part depends on each position of its input, or, "
        "where nothing is dilated, how much the output of the whole depends on each pixel: mean absolute gradient; "
        "a bright centre is a residual connection. Holes are positions with hardly any influence, as a percentage of "
        "the square that holds 95 % of the field. The gridding score is 1 when a single phase of the dilation grid has "
        "influence, 0 when all have the same. The checkerboard is the power of this grid in the logits of the images "
        "over that around it: about 1 without a grid."
    )
    told = [folded(f"{model.name}: gridding layer by layer", lines(model.layers)) for model in models if model.layers]
    numbers = _by_model(models, [model.grid for model in models])
    return paragraph(text) + numbers + side_by_side(drawn) + "".join(told)


def predictions(models: Sequence[ReportedModel], samples: Mapping[int, Sample], labels: LabelSpace) -> str:
    """The samples that are shown, by their index, beside their truth and each model's prediction."""
    head = ["image", "truth", *(model.name for model in models)]
    cells = [f"<b>{html.escape(name)}</b>" for name in head]
    for index, sample in samples.items():
        pixels = _smaller(as_rgb(sample.image.permute(1, 2, 0).numpy()))
        ids = [sample.label.numpy(), *(model.predictions[index] for model in models)]
        shown = [pixels, *(overlay_classes(pixels, _smaller(each), labels, 0.6) for each in ids)]
        words = [sample.name, "", *(f"mIoU {percent(model.image_mious[index])} %" for model in models)]
        for name, picture, said in zip(head, shown, words, strict=True):
            cells.append(image(_jpeg(picture), f"{name}: {sample.name}") + html.escape(said))
    return grid(len(head), cells)


def legend(labels: LabelSpace) -> str:
    """The colours of the classes."""
    named = (f"<span>{swatch(color, name)}</span>" for name, color in zip(labels.names, labels.colors, strict=True))
    return f'<p class="legend">{" ".join(named)}</p>'


def facts(models: Sequence[ReportedModel]) -> str:
    """A row for each fact, a column for each model."""
    in_turn = "Models were timed one after the other: beside other programs these times cannot be compared."
    said = paragraph(in_turn) if len(models) > 1 and any("time per image" in model.facts for model in models) else ""
    return _by_model(models, [model.facts for model in models]) + said


def _by_model(models: Sequence[ReportedModel], known: Sequence[Mapping[str, str]]) -> str:
    names = dict.fromkeys(name for each in known for name in each)
    rows = [(name, *(each.get(name, "-") for each in known)) for name in names]
    return table(["", *(model.name for model in models)], rows)


def settings(models: Sequence[ReportedModel], usual: Mapping[str, object]) -> str:
    """Those that differ from the usual ones, or between models that have settings; the others behind a click."""
    names = dict.fromkeys(name for model in models for name in model.settings)
    head = ["setting", *(model.name for model in models)]

    def rows(special: bool) -> Iterator[list[str]]:
        for name in names:
            if special == any(model.settings[name] != usual.get(name) for model in models if name in model.settings):
                values = (_said(model.settings.get(name)) for model in models)
                yield [Raw(f"<code>{html.escape(name)}</code>"), *values]

    if not names:
        return paragraph("No model here records the settings with which it was made.")
    return table(head, list(rows(True))) + folded("Settings that have their defaults", table(head, list(rows(False))))


def _said(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value).lower() if isinstance(value, bool) else "-" if value is None else str(value)


def _matrix(counts: np.ndarray, labels: LabelSpace) -> Figure:
    """Rows of a confusion matrix as shares."""
    size = len(labels)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(9.0, 2.2 + 0.38 * size)
    drawing = Figure(figsize=(side, side * 0.92), layout="constrained")
    axes = drawing.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="truth")
    if size <= MOST_NAMED:
        names = [name.replace("$", r"\$") for name in labels.names]
        axes.set_xticks(range(size), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(size), names)
    if size <= MOST_NAMED // 2:
        for row, column in np.argwhere(shares >= 0.005):
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", color=color, size=8)
    return drawing


def _most_confused(counts: np.ndarray, labels: LabelSpace) -> str:
    """The pairs of classes with the most pixels."""
    wrong = counts * (1 - np.eye(len(labels)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    rows = []
    for truth, guess in zip(*np.unravel_index(order, wrong.shape), strict=True):
        pixels = wrong[truth, guess]
        if pixels:
            of_class, of_all = pixels / counts[truth].sum(), pixels / counts.sum()
            rows.append((labels.names[truth], labels.names[guess], percent(of_class), percent(of_all)))
    if not rows:
        return paragraph("No pixel is wrong.")
    return folded(
        f"What is confused most: {rows[0][0]}, taken for {rows[0][1]}",
        table(("truth", "prediction", "of the class's pixels %", "of all pixels %"), rows),
    )


def _field(model: ReportedModel, found: np.ndarray) -> str:
    text = f"{model.name}: {model.sees}"
    return figure(image(png(draw_field(found, text, model.unit)), text), text)


def _smaller(pixels: np.ndarray) -> np.ndarray:
    """An image or class ids, [H,W,..], with every n-th row and column."""
    step = -(-max(pixels.shape[:2]) // WIDEST)
    return np.ascontiguousarray(pixels[::step, ::step])


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=88, subsampling=0)
    return stream.getvalue()
