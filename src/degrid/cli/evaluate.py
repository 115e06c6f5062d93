"""degrid eval."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from degrid.cli.looks import Crf, Flip, Fusion, Overlap, Scales, Window, inference

if TYPE_CHECKING:
    from degrid.types import Scores


def evaluate(
    model: Annotated[Path, typer.Argument(help="A model folder or run folder.")],
    data: Annotated[str, typer.Option(help="The data: a folder, dataset.yaml, list file or 'synthetic'.")],
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write the scores as JSON here.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or auto.")] = "float32",
    scales: Scales = "1",
    flip: Flip = False,
    fusion: Fusion = "mean",
    window: Window = None,
    overlap: Overlap = 0.5,
    crf: Crf = False,
) -> None:
    """Score a model: mIoU, accuracies, boundary IoU, and a table per class.

    \b
    degrid eval runs/my_photos --data my_photos
    degrid eval runs/my_photos --data my_photos --split test -o scores.json
    degrid eval runs/my_photos --data my_photos --scales 0.5,0.75,1,1.25,1.5,1.75 --flip
    degrid eval runs/my_photos --data my_photos --window 512x512
    """
    import degrid
    from degrid.cli.progress import progress
    from degrid.files import write_json

    how = inference(scales, flip, fusion, window, overlap, crf)
    network = degrid.load(model)
    dataset = degrid.open_dataset(data, split, labels=network.labels)
    with progress("evaluating", len(dataset)) as advance:
        found = degrid.evaluate(
            network, dataset, device=device, precision=precision, how=how, on_image=lambda *_: advance()
        )
    print_scores(found)
    if out is not None:
        looks = dataclasses.asdict(how)
        write_json(out, {"model": str(model), "data": data, "split": split, "inference": looks, **found.to_dict()})
        print(f"scores: {out}")


def print_scores(found: Scores) -> None:
    """The table per class and the totals, in percent."""
    from rich.console import Console
    from rich.table import Table

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    table = Table("class", "IoU %", "accuracy %", "boundary IoU %", "share of pixels %")
    for column in table.columns[1:]:
        column.justify = "right"
    total = max(1, sum(found.class_pixels))
    boundary = found.class_boundary_iou or (None,) * len(found.class_names)
    for name, iou, accuracy, edge, pixels in zip(
        found.class_names, found.class_iou, found.class_accuracy, boundary, found.class_pixels, strict=True
    ):
        table.add_row(name, percent(iou), percent(accuracy), percent(edge), percent(pixels / total))
    console = Console()
    console.print(table)
    console.print(
        f"mIoU {percent(found.miou)} %   pixel accuracy {percent(found.pixel_accuracy)} %   "
        f"mean accuracy {percent(found.mean_accuracy)} %   "
        f"frequency-weighted IoU {percent(found.frequency_weighted_iou)} %   "
        f"boundary IoU {percent(found.boundary_iou)} %   "
        f"({found.num_images} images, {found.num_classes_counted} of {len(found.class_names)} classes)",
        soft_wrap=True,
        highlight=False,
    )
