"""degrid compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from degrid.cli import options as opt
from degrid.cli.evaluate import in_windows, print_notes

if TYPE_CHECKING:
    from rich.table import Table

    from degrid.verbs.compare import Comparison, Run


def compare(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help="Model folders or run folders, two or more; the runs of a recipe are joined by commas.",
        ),
    ],
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
    """Score models on the same images: difference to the first, with a 95 % interval over images, or over seeds.

    \b
    degrid compare runs/regular runs/tent --data my_photos
    degrid compare runs/regular runs/tent runs/ssc --data my_photos --split test -o compare.json
    degrid compare runs/regular runs/tent --data my_photos --scales 0.75,1,1.25 --flip
    degrid compare runs/regular_0,runs/regular_1 runs/tent_0,runs/tent_1 --data my_photos
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
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from degrid.verbs.compare import interval

    scores, differences = found.scores, found.differences
    table = Table("%")
    for name in found.models:
        table.add_column(escape(name), justify="right", overflow="fold")
    over = differences[0].over
    if over == "seeds":
        _add_runs(table, found.runs)
    table.add_row("mIoU, mean" if over == "seeds" else "mIoU", *(opt.percent(each.miou) for each in scores))
    table.add_row("pixel accuracy", *(opt.percent(each.pixel_accuracy) for each in scores))
    table.add_row("mIoU difference", "-", *(f"{100 * each.difference:+z.2f}" for each in differences))
    pairs = "" if differences[0].paired else ", not in pairs"
    table.add_row(f"95 % interval, {over}{pairs}", "-", *(interval(each) for each in differences))
    table.add_row(
        "p, two-sided",
        "-",
        *(f"{each.p:.4f}" if each.p >= 1e-4 else f"{each.p:.0e}" for each in differences),
        end_section=True,
    )
    for index, name in enumerate(scores[0].class_names):
        table.add_row(escape(f"IoU {name}"), *(opt.percent(each.class_iou[index]) for each in scores))
    Console().print(table)
    windows = in_windows(found.windowed, scores[0].num_images)
    print(f"computed in {'; '.join(dict.fromkeys(found.precisions))}; {windows}")
    print_notes(found.notes)
    print(found.verdict)


def _add_runs(table: Table, runs: Sequence[Sequence[Run]]) -> None:
    """A row for each run of the recipes, with its mIoU in percent and its seed."""
    for number in range(max(map(len, runs))):
        known = [recipe[number] if number < len(recipe) else None for recipe in runs]
        seeds = ["" if run is None or run.seed is None else f" (seed {run.seed})" for run in known]
        values = ["" if run is None else opt.percent(run.scores.miou) for run in known]
        table.add_row(f"mIoU, run {number + 1}", *(value + seed for value, seed in zip(values, seeds, strict=True)))
