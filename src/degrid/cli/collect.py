"""degrid collect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from degrid.lookup import counted

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="The archive to write, .tar.gz or .tgz.")]
Weights = Annotated[bool, typer.Option("--weights", help="Also the trained model/; no training states.")]


def collect(runs: Runs, out: Out = Path("runs.tar.gz"), weights: Weights = False) -> None:
    """Pack what is worth keeping of runs: settings, logs, curves, scores; with --weights the models too.

    \b
    degrid collect runs/my_photos
    degrid collect runs/a runs/b -o results.tar.gz --weights
    """
    import degrid

    archive = degrid.collect(runs, out, weights=weights)
    for link in archive.left_out:
        print(f"left out, a symbolic link: {link}")
    size = _size(archive.path.stat().st_size)
    print(f"{archive.path}: {counted(len(archive.files), 'file')} of {counted(len(runs), 'run')}, {size}")


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
