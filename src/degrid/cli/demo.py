"""degrid demo: what `make demo` runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


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
    import degrid
    from degrid.cli.progress import progress_bar

    with progress_bar(lines=True) as bar:
        made = degrid.demo(out, steps=steps, scenes=scenes, seed=seed, progress=bar, tell=bar.tell)
    for run in made.runs:
        print(f"{run.name}: test mIoU {100 * run.scores.miou:.1f} %, gridding score {run.gridding:.3f}")
    print(f"report: {made.report}")
    last = shlex.quote(str(out / made.runs[-1].name))
    print(f"next, on your own images and masks: degrid train --data FOLDER   (this one: degrid info {last})")
