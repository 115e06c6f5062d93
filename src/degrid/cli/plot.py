"""degrid plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plot(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, metrics.jsonl files, or logs of old programs."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the pictures and the page.")] = Path("plots"),
    smooth: Annotated[float, typer.Option(help="Smoothing of the loss, 0 (none) up to below 1.")] = 0.9,
    epoch_steps: Annotated[float | None, typer.Option(help="Steps per epoch, for runs that do not say.")] = None,
) -> None:
    """Draw the training curves of one run, or of several in the same pictures.

    \b
    degrid plot runs/my_photos
    degrid plot runs/regular runs/tent -o comparison --smooth 0.95
    degrid plot old/log.txt runs/new --epoch-steps 1058
    """
    from degrid.analysis.curves import read_curves
    from degrid.analysis.plots import plot_runs

    files = plot_runs([read_curves(run) for run in runs], out, smooth, epoch_steps)
    print(f"{len(files) - 1} pictures in {out}; everything on one page: {files[-1]}")
