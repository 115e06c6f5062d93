"""degrid.demo: train with plain and with smoothed dilated convolutions on the built-in scenes, and compare."""

from __future__ import annotations

import html
import shutil
from dataclasses import dataclass
from pathlib import Path

from degrid import recipes
from degrid.analysis.page import page, paragraph
from degrid.analysis.sections import ReportedModel
from degrid.arguments import checked
from degrid.config import override
from degrid.data import open_dataset
from degrid.data.dataset import is_built_in
from degrid.files import write_text
from degrid.recipes.deeplab_v3 import synthetic
from degrid.types import OnProgress, Tell
from degrid.verbs.report import gather
from degrid.verbs.run import run as train

OPERATORS = ("regular", "tent")
NUM_SHOWN = 3
"""How many of the worst, and of the best, scenes are shown."""


@dataclass(frozen=True)
class DemoResult:
    """The page with curves, scores, predictions and effective receptive fields, and what it shows of each network.

    The run folders are beside the page, under the names of the runs.
    """

    report: Path
    runs: tuple[ReportedModel, ...]


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
        out: folder for everything the demo makes; the results of an earlier demo there are replaced.
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
    for operator in OPERATORS:
        if tell:
            tell(f"== {operator} dilated convolutions")
        if _is_earlier_demo(out / operator):
            shutil.rmtree(out / operator)
        config = override(recipe, {"name": operator, "model.smoothing.operator": operator})
        train(config, out / operator, progress=progress, tell=tell)
    folders = [out / operator for operator in OPERATORS]
    found = gather(folders, out / "report.html", held_out, "test", "auto", "float32", NUM_SHOWN, progress)
    parts = [_about(recipe.train.steps, len(held_out)), *found.sections(), _next(out)]
    write_text(found.path, page("Dilated convolutions with and without the grid", parts))
    return DemoResult(found.path, found.models)


def _is_earlier_demo(folder: Path) -> bool:
    """Whether a folder holds the results of an earlier demo; a run of the user's own is never removed."""
    file = folder / "run.json"
    return file.exists() and is_built_in(recipes.load(str(file)).data.path)


def _about(steps: int, scenes: int) -> str:
    return paragraph(
        f"Two DeepLab v3+ networks, trained from scratch for {steps} steps on the same computer-generated street "
        "scenes with the same seed. They differ in one thing: the first has plain dilated convolutions, the second "
        "smooths their input, so that neighbouring outputs share what they see. There is one run of each, so small "
        f"differences may be chance. Scored on {scenes} scenes that neither has seen."
    )


def _next(out: Path) -> str:
    return (
        "<h2>Next</h2><p>Train on your own folder of images and masks, and use the result:</p>"
        "<pre><code>degrid data check FOLDER\ndegrid train --data FOLDER --operator tent\n"
        "degrid predict runs/FOLDER IMAGES -o results</code></pre>"
        f"<p>The networks of this page are in <code>{html.escape(str(out))}</code>: "
        f"<code>degrid info {html.escape(str(out / OPERATORS[0]))}</code>.</p>"
    )
