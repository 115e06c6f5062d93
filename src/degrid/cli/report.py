"""degrid report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from degrid.cli import options as opt


def report(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="Run folders, model folders or exported models; the runs of a recipe are joined by commas.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page.")] = Path("report.html"),
    data: Annotated[
        str | None, typer.Option(help="Data to score on; by default what the runs were validated on.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split to score; by default that of the runs.")] = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "float32",
    images: Annotated[int, typer.Option(min=1, help="How many of the worst, and of the best, images to show.")] = 4,
) -> None:
    """Write a page on a model, or on several side by side, that needs no other file and no internet connection.

    It shows settings, curves, scores by class, confusions, the worst and best images, receptive fields, speed and size.

    \b
    degrid report runs/my_photos
    degrid report runs/regular runs/tent -o comparison.html --split test
    degrid report runs/regular_0,runs/regular_1 runs/tent_0,runs/tent_1 -o seeds.html
    degrid report my_photos.onnx --data my_photos
    """
    import degrid
    from degrid.cli.progress import progress_bar
    from degrid.engine.memory import keep_freed_memory

    keep_freed_memory()
    with progress_bar() as progress:
        found = degrid.report(
            models,
            out,
            data=data,
            split=split,
            device=device,
            precision=precision,
            images=images,
            progress=progress,
        )
    print(found.verdict)
    print(f"report: {found.path}")
