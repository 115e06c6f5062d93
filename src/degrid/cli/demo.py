"""degrid demo: what `make demo` runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from degrid.analysis.report import ReportRun
    from degrid.config import RunConfig
    from degrid.types import Dataset, Sample

OPERATORS = ("regular", "tent")
NUM_SHOWN = 6


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything the demo makes.")] = Path("demo"),
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each training, if not the recipe's.")] = None,
    scenes: Annotated[int | None, typer.Option(help="Scenes per split, for a quick look.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
) -> None:
    """Train on the built-in scenes with plain and with smoothed dilated convolutions, and compare.

    Takes a few minutes on 2 CPU cores and needs no download. Ends with a page of curves, scores, overlays and
    effective receptive fields.

    \b
    degrid demo -o demo
    """
    import shutil

    import degrid
    from degrid.analysis.report import write_report
    from degrid.config import override
    from degrid.recipes.synthetic import synthetic

    settings = {"train.seed": seed, "train.steps": steps, "data.path": scenes and f"synthetic:{scenes}"}
    recipe = override(synthetic(), [f"{key}={value}" for key, value in settings.items() if value is not None])
    held_out = degrid.open_dataset(recipe.data.path, "test")
    shown = [held_out[index] for index in range(min(NUM_SHOWN, len(held_out)))]
    runs = []
    for operator in OPERATORS:
        print(f"== {operator} dilated convolutions", flush=True)
        folder = out / operator
        if _is_earlier_demo(folder):
            shutil.rmtree(folder)
        config = override(recipe, [f"name={operator}", f"model.smoothing.operator={operator}"])
        runs.append(_train_and_score(config, folder, held_out, shown))
    report = out / "report.html"
    intro, outro = _words(recipe.train.steps, len(held_out), out)
    write_report(report, "Dilated convolutions with and without the grid", intro, runs, shown, held_out.labels, outro)
    for run in runs:
        print(f"{run.name}: test mIoU {100 * run.scores.miou:.1f} %, gridding score {run.gridding:.3f}")
    print(f"report: {report}")
    print(
        f"next, on your own images and masks: degrid train --data FOLDER   (this one: degrid info {out / OPERATORS[1]})"
    )


def _is_earlier_demo(folder: Path) -> bool:
    """Whether a folder holds what an earlier demo made; a run of the user's own is never removed."""
    from degrid import recipes

    file = folder / "run.json"
    return file.exists() and recipes.load(str(file)).data.path.startswith("synthetic")


def _train_and_score(config: RunConfig, folder: Path, held_out: Dataset, shown: list[Sample]) -> ReportRun:
    import time

    import degrid
    from degrid.analysis import dilated_stage_receptive_field, gridding_score
    from degrid.analysis.report import ReportRun
    from degrid.cli.progress import progress
    from degrid.engine.training.log import read_metrics
    from degrid.verbs import train as runs

    began = time.monotonic()
    runs.run(config, folder)
    seconds = time.monotonic() - began
    model = degrid.load(folder)
    with progress("evaluating", len(held_out)) as advance:
        scores = degrid.evaluate(model, held_out, on_image=lambda *_: advance())
    predictor = degrid.Predictor(model)
    field = dilated_stage_receptive_field(model.encoder)
    return ReportRun(
        name=folder.name,
        records=read_metrics(folder),
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
        f"smooths their input, so that neighbouring outputs share what they see. One run each, so small "
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
