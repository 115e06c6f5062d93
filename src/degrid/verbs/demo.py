"""degrid.demo: train with plain and with smoothed dilated convolutions on the built-in scenes, and compare."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from degrid import recipes
from degrid.analysis import dilated_stage_receptive_field, gridding_score
from degrid.analysis.curves import read_curves
from degrid.analysis.report import ReportRun, write_report
from degrid.config import RunConfig, override
from degrid.data import open_dataset
from degrid.engine.inference.predictor import Predictor
from degrid.model_folder import load
from degrid.recipes.deeplab_v3plus import synthetic
from degrid.types import Dataset, OnProgress, Sample, Tell
from degrid.verbs.evaluate import evaluate
from degrid.verbs.run import run

OPERATORS = ("regular", "tent")
NUM_SHOWN = 6


@dataclass(frozen=True)
class DemoResult:
    """The page with curves, scores, predictions and effective receptive fields, and what it shows of each training.

    The run folders are beside the page, under the names of the runs.
    """

    report: Path
    runs: tuple[ReportRun, ...]


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
    intro, outro = _words(recipe.train.steps, len(held_out), out)
    write_report(report, "Dilated convolutions with and without the grid", intro, runs, shown, held_out.labels, outro)
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
    run(config, folder, progress=progress, tell=tell)
    seconds = time.monotonic() - began
    model = load(folder)
    scores = evaluate(model, held_out, progress=progress)
    predictor = Predictor(model)
    field = dilated_stage_receptive_field(model.encoder)
    return ReportRun(
        name=folder.name,
        curves=read_curves(folder),
        scores=scores,
        predictions=[predictor(sample.image) for sample in shown],
        receptive_field=field,
        gridding=gridding_score(field, 2),
        train_seconds=seconds,
    )


def _words(steps: int, num_images: int, out: Path) -> tuple[str, str]:
    intro = (
        f"<p>Two DeepLab v3+ networks, trained from scratch for {steps} steps on the same computer-generated street "
        f"scenes with the same seed. They differ in one thing: the first has plain dilated convolutions, the second "
        f"smooths their input, so that neighbouring outputs share what they see. There is one run of each, so small "
        f"differences may be chance. Scored on {num_images} scenes that neither has seen.</p>"
    )
    outro = (
        "<h2>Next</h2><p>Train on your own folder of images and masks, and use the result:</p>"
        "<pre><code>degrid data check FOLDER\ndegrid train --data FOLDER --operator tent\n"
        "degrid predict runs/FOLDER IMAGES -o results</code></pre>"
        f"<p>The networks of this page are in <code>{out}</code>: "
        f"<code>degrid info {out / OPERATORS[0]}</code>.</p>"
    )
    return intro, outro
