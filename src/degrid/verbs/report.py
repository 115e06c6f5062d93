"""One page on a model, or on several side by side, as `degrid report` writes it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from degrid import config as configs
from degrid.analysis import sections
from degrid.analysis.curves import Curves, distinct, read_curves
from degrid.analysis.page import page, paragraph, table
from degrid.analysis.sections import ReportedModel
from degrid.arguments import checked
from degrid.config import ModelConfig, RunConfig
from degrid.contracts import ExportedNetwork
from degrid.data import notes_of
from degrid.engine.evaluation.bootstrap import Difference, miou_interval
from degrid.engine.evaluation.metrics import hits_and_unions, mean_iou
from degrid.engine.evaluation.seeds import mean_and_reach, mean_scores
from degrid.engine.inference.predictor import Predictor, activation_bytes, predictor_of
from degrid.files import check_place, write_text
from degrid.lookup import counted, flat, percent, some
from degrid.model_places import is_named
from degrid.models import Segmenter
from degrid.models import describe as describe_network
from degrid.types import Dataset, LabelSpace, OnProgress, Progress, Sample, UserError
from degrid.verbs.compare import (
    AnyModels,
    Run,
    grouped,
    interval,
    recipes_of,
    run_folders,
    run_record,
    to_first,
    with_data,
)
from degrid.verbs.erf import measured
from degrid.verbs.evaluate import AnyData, counting, name_of_data
from degrid.verbs.gridding import GriddingReport, gridding_of
from degrid.verbs.look_inside import filled
from degrid.verbs.open_network import AnyModel, name_of
from degrid.verbs.scored import Scored, files_of, scored, scored_once

DRAWS = 10_000
MIB = 1 << 20
TIMED, ENOUGH = 5, 3.0
"""Most times that an image is predicted to measure how long that takes, and seconds after which no further time."""
LOOKED_AT, SEEN_SIDE = 4, 513
"""Images whose gradients are taken, and the longest sides of the parts of them that are, pixels: they take memory."""


@dataclass(frozen=True)
class Report:
    """What is on the page.

    Attributes:
        path: of the page.
        models: in the order given; one for several runs of a recipe.
        differences: of mIoU to the first model, one per further model.
        data, split, labels: what the models were scored on.
        samples: the images shown, by their index: first those of lowest mean mIoU, then the others, beginning with the
            best.
        worst: how many of them are of the first kind.
        notes: what was decided when the dataset was opened, one sentence each.
    """

    path: Path
    models: tuple[ReportedModel, ...]
    differences: tuple[Difference, ...]
    data: str
    split: str
    labels: LabelSpace
    samples: Mapping[int, Sample]
    worst: int
    over: str
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One sentence: what was scored on what, and the best."""
        best = max(self.models, key=lambda model: model.scores.miou)
        on = f"{counted(best.scores.num_images, 'image')} of {self.data}, {self.split}"
        low, high = best.interval
        found = f"mIoU {percent(best.scores.miou, 2)} % [{percent(low, 2)}, {percent(high, 2)}]"
        first = f"best of {len(self.models)}: " if len(self.models) > 1 else ""
        return f"{first}{best.name}, {found} on {on}"

    def sections(self) -> list[str]:
        """The page as HTML, without its title."""
        models, labels = self.models, self.labels
        drawn = sections.curves(models)
        indices = list(self.samples)
        worst = {index: self.samples[index] for index in indices[: self.worst]}
        best = {index: self.samples[index] for index in indices[self.worst :]}
        parts = {
            "Scores": sections.totals(models, self.over) + self._differences() + "".join(map(paragraph, self.notes)),
            "Classes": sections.classes(models, labels),
            "Confusion": sections.confusions(models, labels),
            "Training": drawn or paragraph("No model here has kept its training curves."),
            "Worst images": sections.legend(labels) + sections.predictions(models, worst, labels),
            "Best images": sections.predictions(models, best, labels) if best else "",
            "Receptive field and gridding": sections.receptive_fields(models),
            "Speed and size": sections.facts(models),
            "Settings": sections.settings(models, flat(configs.to_dict(RunConfig()))),
        }
        return [f"<h2>{title}</h2>\n{part}" for title, part in parts.items() if part]

    def _differences(self) -> str:
        if not self.differences:
            return ""
        first, *others = self.models
        head = (f"mIoU, difference to {first.name}", "points", f"95 % interval over {self.over}", "p, two-sided")
        rows = [
            (model.name, f"{100 * found.difference:+z.2f}", interval(found), f"{found.p:.2g}")
            for model, found in zip(others, self.differences, strict=True)
        ]
        return table(head, rows)


@checked
def report(
    models: AnyModels,
    out: str | os.PathLike[str] = "report.html",
    *,
    data: AnyData | None = None,
    split: str | None = None,
    device: str = "auto",
    precision: str = "float32",
    images: int = 4,
    progress: OnProgress | None = None,
) -> Report:
    """Write a page on models that needs no other file: settings, curves, scores, images, receptive fields and speed.

    Scores are computed once: as long as neither the model nor the images change, later reports reuse what is kept of
    them in degrid's folder in the user's cache.

    Args:
        models: model folders, run folders, exported files or networks; the runs of one recipe, which then counts by
            the mean of its seeds, as a list or as paths joined by commas.
        out: the page.
        data, split: what to score the models on; by default what the runs were validated on.
        device, precision: see `degrid.Predictor`; "float32" is exact.
        images: how many of the images of lowest, and of highest, mIoU are shown.
        progress: called after each image, and for each model.
    Raises:
        UserError: models that do not predict the same classes, or no data; see also `degrid.compare`.
    """
    check_place(Path(out))
    found = gather(models, Path(out), data, split, device, precision, images, progress)
    intro = [paragraph(f"{found.verdict}."), *([paragraph(_OF_RECIPES)] if found.over == "seeds" else [])]
    title = some((model.name for model in found.models), 4)
    write_text(found.path, page(title, [*intro, *found.sections()]))
    return found


def gather(
    models: AnyModels,
    path: Path,
    data: AnyData | None,
    split: str | None,
    device: str,
    precision: str,
    images: int,
    progress: OnProgress | None,
) -> Report:
    """All that a report shows, see `report`; writes nothing."""
    recipes = recipes_of(models)
    paths = [each for recipe in recipes for each in recipe]
    if not paths:
        raise UserError("nothing to report: expected at least one model or run")
    if images < 1:
        raise UserError(f"images: expected at least 1, got {images}")
    data, split = _data_of(paths, data, split)
    pairs = with_data(paths, data, split)

    def score(path: AnyModel, network: nn.Module, dataset: Dataset) -> Scored:
        count = counting(progress, f"evaluating {name_of(path)}", len(dataset))
        settings = f"{device} {precision}"
        return scored_once(
            path, dataset, settings, lambda: scored(network, dataset, device, precision, None, count, boundary=True)
        )

    found = [score(path, *pair) for path, pair in zip(paths, pairs, strict=True)]
    runs = grouped(recipes, found)
    stacks = [each.confusions for each in found]
    firsts = [sum(map(len, recipes[:number])) for number in range(len(recipes))]
    mious = np.stack([_image_mious(stacks[first]) for first in firsts])
    worst, best = _chosen(mious.mean(0), images)
    names = distinct(_short_name(recipe) for recipe in recipes)
    reported = []
    for number, (name, recipe, first) in enumerate(zip(names, recipes, firsts, strict=True)):
        if progress:
            progress(Progress("looking inside", number + 1, len(recipes)))
        inside = _look(recipe[0], *pairs[first], [*worst, *best], device, precision, progress)
        shown = ReportedModel(name, *_score_of(runs[number], stacks[first]), image_mious=mious[number], **inside)
        reported.append(dataclasses.replace(shown, curves=_curves(recipe, name)))
    dataset = pairs[0][1]
    return Report(
        path,
        tuple(reported),
        tuple(to_first(runs, stacks, DRAWS, 0)),
        name_of_data(data),
        split,
        dataset.labels,
        {index: dataset[index] for index in [*worst, *best]},
        len(worst),
        "seeds" if len(recipes[0]) > 1 else "images",
        tuple(notes_of(dataset)),
    )


def _data_of(paths: Sequence[AnyModel], data: AnyData | None, split: str | None) -> tuple[AnyData, str]:
    """The requested data, or those that the runs were validated on.

    Raises:
        UserError: no run says, or two say different things; a model that is not there.
    """
    known: dict[tuple[str, str], AnyModel] = {}
    for path in paths:
        used = (run_record(path) or {}).get("config", {}).get("data", {})
        if "path" in used:
            known[used["path"], split or used.get("val") or "val"] = path
    if data is not None:
        return data, split or next((named for _, named in known), "val")
    if len(known) == 1:
        return next(iter(known))
    if known:
        each = " and ".join(f"{model} ({place}, {named})" for (place, named), model in known.items())
        raise UserError(f"these runs were validated on different data: {each}; name one with --data and --split")
    raise _without_data(paths[0])


def _without_data(path: AnyModel) -> UserError:
    if isinstance(path, (str, os.PathLike)) and not is_named(path) and not Path(path).exists():
        return UserError(f"{path}: no such model or run folder")
    return UserError(f"{name_of(path)} does not record what it was validated on; name images with --data (data=...)")


def _image_mious(stack: np.ndarray) -> np.ndarray:
    """The mIoU of each image, float [N], NaN without a valid pixel; of confusions [N,C,C]."""
    return np.where(stack.sum((1, 2)) > 0, mean_iou(*hits_and_unions(stack)), np.nan)


def _chosen(mious: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """The indices of the worst images, the worst first, and of the best, the best first; none is among both."""
    order = [index for index in np.argsort(mious, kind="stable").tolist() if np.isfinite(mious[index])]
    worst = order[: min(count, -(-len(order) // 2))]
    return worst, order[::-1][: min(count, len(order) - len(worst))]


def _short_name(recipe: Sequence[AnyModel]) -> str:
    """The last parts of the paths; of model/ in a run folder that of the run."""
    found = []
    for model in recipe:
        path = Path(name_of(model))
        run = path.name == "model" and run_record(model) is not None
        found.append(path.absolute().parent.name if run else path.name)
    return ", ".join(found)


def _score_of(runs: Sequence[Run], stack: np.ndarray) -> tuple[Any, tuple[float, float]]:
    """The scores of a recipe and the interval of its mIoU: over seeds, or of a single run over images."""
    if len(runs) > 1:
        mean, reach = mean_and_reach([run.scores.miou for run in runs])
        return mean_scores([run.scores for run in runs]), (mean - reach, mean + reach)
    return runs[0].scores, miou_interval(stack, DRAWS)


def _curves(recipe: Sequence[AnyModel], name: str) -> tuple[Curves, ...]:
    """The curves of the runs that kept them."""
    found = []
    for model in recipe:
        for folder in run_folders(model):
            if (folder / "metrics.jsonl").is_file():
                with contextlib.suppress(UserError):
                    found.append(read_curves(folder))
                break
    return tuple(dataclasses.replace(each, name=name) if len(found) == 1 else each for each in found)


def _look(
    model: AnyModel,
    network: nn.Module,
    dataset: Dataset,
    indices: Sequence[int],
    device: str,
    precision: str,
    progress: OnProgress | None,
) -> dict[str, Any]:
    """Facts, size and predictions of a single model, as arguments of `ReportedModel`."""
    record = run_record(model)
    with predictor_of(network, device, precision, whole=True) as predictor:
        predictions = {index: predictor.class_ids(dataset[index].image).cpu().numpy() for index in indices}
        image = dataset[indices[0]].image
        facts = {"model": name_of(model), **_size(model, network, tuple(image.shape[-2:])), **_speed(predictor, image)}
    images = [dataset[index].image for index in indices[:LOOKED_AT]]
    seen = {} if isinstance(network, ExportedNetwork) else _seen(network, images, progress)
    made = record or {}
    versions = made.get("versions", {})
    facts |= {"trained": str(made["date"])} if "date" in made else {}
    facts |= {"with": f"degrid {versions.get('degrid')}, torch {versions.get('torch')}"} if versions else {}
    if record is not None:
        settings = flat(record["config"])
    else:
        config = getattr(network, "config", None)
        values = configs.to_dict(config) if isinstance(config, ModelConfig) else {}
        settings = {f"model.{name}": value for name, value in flat(values).items()}
    return {"settings": settings, "facts": facts, "predictions": predictions, **seen}


def _seen(network: nn.Module, images: Sequence[Tensor], progress: OnProgress | None) -> dict[str, Any]:
    """What a network sees of images, uint8 [C,H,W] each, as arguments of `ReportedModel`.

    From its first dilated layer on; of a network without one, what its output sees of the image.
    """
    parameter = next(network.parameters(), torch.zeros(()))
    height, width = (min(side, SEEN_SIDE) for side in images[0].shape[-2:])
    given = [filled(image[None].float(), (height, width)).to(parameter) for image in images]
    try:
        found = gridding_of(network, given, real=True, progress=progress)
    except UserError:  # nothing dilated, or nothing that can be traced
        with contextlib.suppress(UserError):
            field = measured(network, given, ("", ""))
            sides = {"95 % of the influence within": f"{field.box}x{field.box} pixels of the image"}
            sees = "from the image to the output"
            return {"receptive_field": field.field, "sees": sees, "unit": "pixels of the image", "grid": sides}
        return {}
    sees = f"from the input of {found.start} to {found.end or 'its output'}"
    return {
        "receptive_field": found.field,
        "gridding": found.score,
        "sees": sees,
        "unit": "feature pixels",
        "grid": _grid(found),
        "layers": str(found),
    }


def _grid(found: GriddingReport) -> dict[str, str]:
    """The headlines of `degrid gridding`, as rows of a table."""
    period = max(found.period)
    return {
        "independent networks": f"{found.networks}{', joined by averages over the image' * found.joined_by_averages}",
        f"gridding score at period {period}": f"{found.score:.4f}",
        "of a field as wide without a grid": f"{found.score_of_width:.4f}",
        "phase exchange": f"{found.exchange:.3f} (all mixed: {1 - 1 / math.prod(found.period):.3f})",
        "holes": f"{percent(found.holes)} %",
        "checkerboard in the logits": "not measured: too small" if found.unmeasured else f"{found.checkerboard:.2f}",
    }


def _size(model: AnyModel, network: nn.Module, size: tuple[int, ...]) -> dict[str, str]:
    """Parameters, multiply-adds and memory, as far as they are known."""
    height, width = size
    found = {}
    if isinstance(network, Segmenter):
        info = describe_network(network, (height, width))
        smoothed = sum(conv.smoothing is not None for conv in info.dilated)
        found["network"] = f"{info.network} on {info.encoder}, output stride {info.output_stride}"
        found["dilated convolutions"] = f"{len(info.dilated)}, {smoothed} smoothed"
        found["multiply-adds"] = f"{info.multiply_adds / 1e9:.2f} G at {height}x{width}"
    if count := sum(parameter.numel() for parameter in network.parameters()):
        found["parameters"] = f"{count / 1e6:.2f} M"
    if files := files_of(model):
        found["on disk"] = f"{sum(file.stat().st_size for file in files) / MIB:.1f} MiB"
    with contextlib.suppress(UserError):
        found["feature maps"] = f"{activation_bytes(network, (height, width)) / MIB:.0f} MiB at {height}x{width}"
    return found


def _speed(predictor: Predictor, image: Tensor) -> dict[str, str]:
    """How long the prediction of an image, uint8 [C,H,W], takes: the median, and the range."""
    took: list[float] = []
    while len(took) < TIMED and sum(took) < 1000 * ENOUGH:
        began = time.perf_counter()
        predictor.class_ids(image).cpu()
        took.append(1000 * (time.perf_counter() - began))
    spread = f"{statistics.median(took):.0f} ms ({min(took):.0f} to {max(took):.0f} in {counted(len(took), 'time')})"
    where = f"{predictor.device.type}, {counted(torch.get_num_threads(), 'thread')}, {predictor.network}"
    return {"time per image": f"{spread} at {image.shape[-2]}x{image.shape[-1]}", "measured on": where}


_OF_RECIPES = (
    "Scores are means over the runs of a recipe; images, receptive field, settings and speed are of its first run."
)
