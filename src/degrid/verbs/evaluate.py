"""Score a model, as `degrid eval` does."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from degrid.arguments import check_fields, checked
from degrid.data import notes_of, open_dataset
from degrid.data.dataset import Arrays
from degrid.engine.evaluation.evaluate import OnImage, score
from degrid.engine.evaluation.failures import ScoredImage, TrimapCounts, TrimapPoint, WorstImages
from degrid.engine.evaluation.robustness import (
    Corrupted,
    CorruptedScore,
    ShiftCounts,
    ShiftPoint,
    parse_corruptions,
)
from degrid.engine.inference.options import InferenceOptions
from degrid.engine.ranks import own_items
from degrid.files import atomic_write, write_bytes, write_json
from degrid.image import as_rgb, overlay_classes
from degrid.types import AnyDataset, Bands, ConfidenceBin, Dataset, LabelSpace, OnProgress, Progress, Scores
from degrid.verbs.open_network import AnyModel, AnyPredictor, FilePredictor, name_of, open_predictor

AnyData = str | os.PathLike[str] | Dataset
"""A dataset, or what `degrid.open_dataset` opens."""


@dataclass(frozen=True)
class Measures:
    """What is measured besides mIoU and accuracies.

    Attributes:
        boundary: boundary IoU.
        calibration: the expected calibration error, and the bins of a reliability diagram.
        trimap: the mIoU in bands along the class borders.
        worst: how many images of lowest mIoU to keep.
        corruptions: noise and blur under which the mIoU is measured again: "noise" or "blur" for severities 1 to 5,
            "noise:3" for one.
        shift: the largest shift in pixels for which the agreement of predictions is measured; 0: none.
    Raises:
        UserError: an unknown corruption.
    """

    boundary: bool = True
    calibration: bool = False
    trimap: bool = False
    worst: int = 0
    corruptions: tuple[str, ...] = ()
    shift: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        parse_corruptions(self.corruptions)


@dataclass(frozen=True)
class Evaluation(Scores):
    """Scores, and what they were computed from and how.

    Attributes:
        model, data, split: what was scored; a path, or the class name of an object.
        labels: the classes.
        options: the test-time options.
        multi_scale: whether the network got DeepLab v2's multi-scale input.
        precision: the precision of the network, as a sentence.
        windowed: how many images were larger than a window, and so were processed in several; none unless the options
            ask for it.
        windows: the sizes of these windows, height and width.
        notes: what was decided when the dataset was opened, one sentence each.
        trimap: the mIoU per width of the band along the class borders; None unless asked for.
        worst: the images of lowest mIoU, the worst first; with several processes those of this one.
        corrupted, shifts: the mIoU under noise and blur, and the agreement under shifts; empty unless asked for.
    """

    model: str = ""
    data: str = ""
    split: str = ""
    labels: LabelSpace = field(default_factory=lambda: LabelSpace.of_size(1), repr=False)
    options: InferenceOptions = field(default_factory=InferenceOptions)
    multi_scale: bool = False
    precision: str = ""
    windowed: int = 0
    windows: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()
    trimap: tuple[TrimapPoint, ...] | None = None
    worst: tuple[ScoredImage, ...] = field(default=(), repr=False, compare=False)
    corrupted: tuple[CorruptedScore, ...] = ()
    shifts: tuple[ShiftPoint, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        record = {
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "inference": dataclasses.asdict(self.options),
            "multi_scale": self.multi_scale,
            "precision": self.precision,
            "images_in_windows": self.windowed,
            "windows": list(self.windows),
            "notes": list(self.notes),
            **Scores(**{each.name: getattr(self, each.name) for each in dataclasses.fields(Scores)}).to_dict(),
        }
        if self.trimap is not None:
            record["trimap"] = [dataclasses.asdict(point) for point in self.trimap]
        if self.corrupted:
            record["corrupted"] = [dataclasses.asdict(each) for each in self.corrupted]
        if self.shifts:
            record["shifts"] = [dataclasses.asdict(point) for point in self.shifts]
        if self.worst:
            record["worst"] = [{"name": image.name, "miou": image.miou} for image in self.worst]
        return record

    def save(self, path: str | os.PathLike[str]) -> dict[str, Path]:
        """Write the scores as JSON and, if there are any, pictures of the worst images and a reliability diagram.

        Returns:
            The places written to: "pictures", "reliability diagram", "scores".
        Raises:
            UserError: the place cannot be written to.
        """
        out, written = Path(path), {}
        write_json(out, self.to_dict())
        if self.worst:
            written["pictures"] = _write_worst(self.worst, self.labels, out)
        if self.reliability and self.ece is not None:
            written["reliability diagram"] = _write_reliability(self.reliability, self.ece, out)
        return {**written, "scores": out}


@checked
def evaluate(
    model: AnyModel,
    data: AnyData,
    split: str = "val",
    *,
    device: str = "auto",
    precision: str = "float32",
    options: InferenceOptions | None = None,
    measures: Measures | None = None,
    multi_scale: bool = False,
    on_image: OnImage | None = None,
    progress: OnProgress | None = None,
) -> Evaluation:
    """Predict every image of a dataset, whole and at its own size, and score the predictions.

    Where `torch.distributed` is initialised every process must call this; see `degrid.engine.evaluation.evaluate`.

    Args:
        model: a model folder, run folder, exported file or network, whose modules return to their modes afterwards.
        data: a dataset, or what `degrid.open_dataset` opens, of which `split` is scored.
        device, precision: see `degrid.Predictor`; "float32" is exact.
        options: scales, flips, windows and CRF; by default the network runs once on the whole image.
        measures: what to measure besides mIoU and accuracies; by default boundary IoU.
        multi_scale: DeepLab v2's multi-scale input: the maximum over scales 1, 0.75 and 0.5.
        on_image: called after each image with its index, the sample and the predicted ids, a uint8 tensor [H,W].
        progress: called after each image.
    Raises:
        UserError: no such model or data, an image that cannot be read, or classes that do not fit.
    """
    measures, options = measures or Measures(), options or InferenceOptions()
    arrays = on_image is None and not measures.calibration
    with open_predictor(model, device, precision, options, False, multi_scale, whole=True, arrays=arrays) as predictor:
        dataset = opened(data, split, predictor.labels, predictor.bands)
        trimap = TrimapCounts(len(dataset.labels)) if measures.trimap else None
        worst = WorstImages(len(dataset.labels), measures.worst)
        rounds = 1 + len(parse_corruptions(measures.corruptions))
        count = counting(progress, "evaluating", rounds * len(own_items(len(dataset))))
        shifts = ShiftCounts(predictor, measures.shift) if measures.shift else None
        hook = each_of(trimap, worst if measures.worst else None, shifts, on_image, count)
        images = samples_for(predictor, dataset)
        found = score(predictor, images, boundary=measures.boundary, calibration=measures.calibration, on_image=hook)
        corrupted = _corrupted(predictor, dataset, measures.corruptions, count)
    return Evaluation(
        **vars(found),
        model=name_of(model),
        data=name_of_data(data),
        split=split,
        labels=dataset.labels,
        options=predictor.options,
        multi_scale=multi_scale,
        precision=str(predictor.network),
        windowed=predictor.windowed,
        windows=tuple(sorted(predictor.windows)),
        notes=tuple(notes_of(dataset)),
        trimap=trimap.curve() if trimap else None,
        worst=tuple(worst.found),
        corrupted=corrupted,
        shifts=shifts.curve() if shifts else (),
    )


def samples_for(predictor: AnyPredictor, dataset: Dataset) -> AnyDataset:
    """The dataset as a predictor takes it: of tensors, or of arrays."""
    return Arrays(dataset) if isinstance(predictor, FilePredictor) else dataset


def _corrupted(
    predictor: AnyPredictor, dataset: Dataset, corruptions: Sequence[str], count: OnImage
) -> tuple[CorruptedScore, ...]:
    """The mIoU on corrupted images."""
    worse = ((*each, samples_for(predictor, Corrupted(dataset, *each))) for each in parse_corruptions(corruptions))
    return tuple(
        CorruptedScore(kind, severity, score(predictor, images, boundary=False, on_image=count).miou)
        for kind, severity, images in worse
    )


# Doubts that concern learning, and ids that the network's classes explain.
_NO_MATTER = ("one-class", "nearly-void", "sparse-ids", "names-alike")


def opened(data: AnyData, split: str, labels: LabelSpace | None, bands: Bands) -> Dataset:
    """The dataset itself, or the one that is opened, with the classes and bands of a network.

    Raises:
        UserError: see `degrid.open_dataset`.
    """
    if not isinstance(data, str | os.PathLike):
        return data
    return open_dataset(os.fspath(data), split, labels=labels, bands=bands, accept=_NO_MATTER)


def name_of_data(data: AnyData) -> str:
    """The path of data, or their class where an object was passed."""
    return os.fspath(data) if isinstance(data, str | os.PathLike) else type(data).__name__


def each_of(*hooks: OnImage | None) -> OnImage:
    """One hook that calls several, in order, with its arguments."""
    return lambda index, sample, ids: [hook(index, sample, ids) for hook in hooks if hook is not None]


def counting(progress: OnProgress | None, task: str, total: int) -> OnImage:
    """A hook that reports progress after each image."""
    numbers = itertools.count(1)
    return lambda *_: progress(Progress(task, next(numbers), total)) if progress else None


def _write_worst(images: Sequence[ScoredImage], labels: LabelSpace, out: Path) -> Path:
    """A picture per image, image | truth | prediction, in a folder beside the scores: scores_worst for scores.json."""
    folder = out.with_name(f"{out.stem}_worst")
    for rank, image in enumerate(images, start=1):
        pixels = as_rgb(image.image.transpose(1, 2, 0))
        shown = (overlay_classes(pixels, ids, labels) for ids in (image.label, image.ids))
        # Names hold sub-folders; the pictures lie side by side.
        name = f"{rank:03d}_{image.name}.png".replace("/", "_")
        with atomic_write(folder / name) as temporary:
            Image.fromarray(np.concatenate([pixels, *shown], axis=1)).save(temporary, format="PNG")
    return folder


def _write_reliability(bins: Sequence[ConfidenceBin], ece: float, out: Path) -> Path:
    """Draw accuracy against confidence, and the pixels per bin, beside the scores: scores_reliability.png.

    Source: Guo et al. 2017, arXiv 1706.04599, figure 1.
    """
    from matplotlib.figure import Figure  # imported here because they are slow

    from degrid.analysis.page import COLORS, png

    edges = [100 * index / len(bins) for index in range(len(bins))]
    width, total = 100 / len(bins), max(1, sum(each.pixels for each in bins))
    figure = Figure(figsize=(5.0, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    look = {"width": width, "align": "edge", "color": COLORS[0], "edgecolor": "white", "linewidth": 0.5}
    upper.bar(edges, [100 * (each.accuracy or 0.0) for each in bins], **look, label="accuracy of a bin")
    upper.plot([0, 100], [0, 100], color=COLORS[1], linestyle="--", label="perfectly calibrated")
    upper.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy, %", title=f"expected calibration error {100 * ece:.2f} %")
    upper.legend(loc="upper left")
    lower.bar(edges, [100 * each.pixels / total for each in bins], **look)
    lower.set(xlabel="confidence, %", ylabel="pixels, %")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    path = out.with_name(f"{out.stem}_reliability.png")
    write_bytes(path, png(figure))
    return path
