"""degrid compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from degrid.cli import options as opt
from degrid.cli.evaluate import print_notes

if TYPE_CHECKING:
    from degrid.verbs.compare import Comparison


def compare(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="Model folders or run folders, two or more.")],
    data: opt.Data,
    split: opt.Split = "val",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write the comparison as JSON here.")] = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "float32",
    draws: Annotated[int, typer.Option(min=1, help="Draws of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    scales: opt.Scales = "1",
    flip: opt.Flip = False,
    fusion: opt.Fusion = "mean",
    window: opt.Window = None,
    overlap: opt.Overlap = 0.5,
    crf: opt.Crf = False,
    crf_set: opt.CrfSet = None,
) -> None:
    """Score models on the same images: difference to the first, with a 95 % interval over the images.

    \b
    degrid compare runs/regular runs/tent --data my_photos
    degrid compare runs/regular runs/tent runs/ssc --data my_photos --split test -o compare.json
    degrid compare runs/regular runs/tent --data my_photos --scales 0.75,1,1.25 --flip
    """
    import degrid
    from degrid.cli.progress import progress_bar
    from degrid.files import check_place, write_json

    if out is not None:
        check_place(out)
    options = opt.inference_options(scales, flip, fusion, window, overlap, crf, crf_set)
    with progress_bar() as progress:
        found = degrid.compare(
            models,
            data,
            split,
            device=device,
            precision=precision,
            options=options,
            draws=draws,
            seed=seed,
            progress=progress,
        )
    print_comparison(found)
    if out is not None:
        write_json(out, found.to_dict())
        print(f"comparison: {out}")


def print_comparison(found: Comparison) -> None:
    """One column per model, in percent and percentage points, and a sentence on the best."""
    from degrid.verbs.compare import interval

    scores, differences = found.scores, found.differences
    table = Table("%")
    for name in found.models:
        table.add_column(escape(name), justify="right", overflow="fold")
    table.add_row("mIoU", *(opt.percent(each.miou) for each in scores))
    table.add_row("pixel accuracy", *(opt.percent(each.pixel_accuracy) for each in scores))
    table.add_row("mIoU difference", "-", *(f"{100 * each.difference:+.2f}" for each in differences))
    table.add_row("95 % interval", "-", *(interval(each) for each in differences))
    table.add_row("p, two-sided", "-", *(f"{each.p:.4f}" for each in differences), end_section=True)
    for index, name in enumerate(scores[0].class_names):
        table.add_row(escape(f"IoU {name}"), *(opt.percent(each.class_iou[index]) for each in scores))
    Console().print(table)
    print(f"computed in {'; '.join(dict.fromkeys(found.precisions))}")
    print_notes(found.notes)
    print(found.verdict)
