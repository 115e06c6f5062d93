"""degrid eval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from degrid.cli import options as opt
from degrid.lookup import counted

if TYPE_CHECKING:
    from degrid.engine.evaluation.failures import ScoredImage, TrimapPoint
    from degrid.types import Scores
    from degrid.verbs.evaluate import Evaluation

Out = Annotated[Path | None, typer.Option("-o", "--out", help="Also write the scores as JSON here.")]
Trimap = Annotated[bool, typer.Option("--trimap", help="Also the mIoU close to the class borders.")]
Calibration = Annotated[
    bool, typer.Option("--calibration", help="Also the expected calibration error; a reliability diagram with -o.")
]
Worst = Annotated[int, typer.Option(min=0, help="List this many images of lowest mIoU; pictures with -o.")]
Corrupt = Annotated[
    list[str] | None,
    typer.Option(help="Also the mIoU under noise or blur, of severities 1 to 5, or of one: noise:3; repeatable."),
]
Shift = Annotated[
    int, typer.Option(min=0, help="Also how many pixels keep their class under shifts of 1 up to this many pixels.")
]


def evaluate(
    model: opt.Model,
    data: opt.Data,
    split: opt.Split = "val",
    out: Out = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "float32",
    scales: opt.Scales = "1",
    flip: opt.Flip = False,
    fusion: opt.Fusion = "mean",
    window: opt.Window = None,
    overlap: opt.Overlap = 0.5,
    memory: opt.Memory = None,
    msc: opt.Msc = False,
    crf: opt.Crf = False,
    crf_set: opt.CrfSet = None,
    trimap: Trimap = False,
    calibration: Calibration = False,
    worst: Worst = 0,
    corrupt: Corrupt = None,
    shift: Shift = 0,
) -> None:
    """Score a model: mIoU, accuracies, boundary IoU, and a table per class.

    \b
    degrid eval runs/my_photos --data my_photos
    degrid eval runs/my_photos --data my_photos --split test -o scores.json
    degrid eval runs/my_photos --data my_photos --scales 0.5,0.75,1,1.25,1.5,1.75 --flip
    degrid eval runs/my_photos --data my_photos --window 512x512
    degrid eval runs/my_photos --data my_photos --crf-set bi_xy_std=50 --crf-set bi_rgb_std=5
    degrid eval runs/my_photos --data my_photos --trimap --worst 10 -o scores.json
    degrid eval runs/my_photos --data my_photos --calibration -o scores.json
    degrid eval runs/my_photos --data my_photos --corrupt noise --corrupt blur:2 --shift 8
    """
    import degrid
    from degrid.cli.progress import progress_bar
    from degrid.engine.memory import settle_memory
    from degrid.files import check_place

    options = opt.inference_options(scales, flip, fusion, window, overlap, crf, crf_set, memory)
    settle_memory(options.memory)
    if out is not None:
        check_place(out)
    measures = degrid.Measures(True, calibration, trimap, worst, tuple(corrupt or ()), shift)
    with progress_bar() as progress:
        found = degrid.evaluate(
            model,
            data,
            split,
            device=device,
            precision=precision,
            options=options,
            measures=measures,
            multi_scale=msc,
            progress=progress,
        )
    print_evaluation(found)
    if out is not None:
        for what, path in found.save(out).items():
            print(f"{what}: {path}")


def print_evaluation(found: Evaluation) -> None:
    """The scores, how they were computed, and what was decided about the data."""
    print_scores(found)
    if found.trimap is not None:
        print_trimap(found.trimap)
    for point in found.corrupted:
        print(f"{point.kind}, severity {point.severity}: mIoU {opt.percent(point.miou)} %")
    for moved in found.shifts:
        print(f"shifted by {counted(moved.shift, 'pixel')}: {opt.percent(moved.agreement)} % of pixels agree")
    if found.worst:
        print_worst(found.worst)
    print(f"computed in {found.precision}; {in_windows(found.windowed, found.num_images, found.windows)}")
    print_notes(found.notes)


def in_windows(windowed: int, images: int, sizes: Sequence[tuple[int, int]] = ()) -> str:
    """How many images were not seen whole, in words."""
    of = " and ".join(f"{height}x{width}" for height, width in sizes)
    text = f"{windowed} of {counted(images, 'image')} in windows"
    return f"{text}{of and f' of {of}'}" if windowed else "every image whole"


def print_notes(notes: Sequence[str]) -> None:
    """What was decided for the user when the data were opened."""
    for note in notes:
        print(f"data: {note}")


def print_trimap(curve: Sequence[TrimapPoint]) -> None:
    """The mIoU per width of the band along the class borders."""
    rows = [
        (f"up to {each.width}", opt.percent(each.miou) if each.pixels else "-", f"{each.pixels:,}") for each in curve
    ]
    opt.print_table(("pixels from a class border", "mIoU %", "pixels counted"), rows, left=0)


def print_worst(images: Sequence[ScoredImage]) -> None:
    """The images of lowest mIoU, the worst first."""
    opt.print_table(("worst images", "mIoU %"), [(image.name, opt.percent(image.miou)) for image in images])


def print_scores(found: Scores) -> None:
    """The table per class and the totals, in percent."""
    from rich.console import Console

    total = max(1, sum(found.class_pixels))
    boundary = found.class_boundary_iou or (None,) * len(found.class_names)
    shares = [pixels / total for pixels in found.class_pixels]
    columns = [map(opt.percent, column) for column in (found.class_iou, found.class_accuracy, boundary, shares)]
    heads = ("class", "IoU %", "accuracy %", "boundary IoU %", "pixels %")
    opt.print_table(heads, zip(found.class_names, *columns, strict=True))
    calibration = "" if found.ece is None else f"expected calibration error {opt.percent(found.ece)} %   "
    Console().print(
        f"mIoU {opt.percent(found.miou)} %   pixel accuracy {opt.percent(found.pixel_accuracy)} %   "
        f"mean accuracy {opt.percent(found.mean_accuracy)} %   "
        f"frequency-weighted IoU {opt.percent(found.frequency_weighted_iou)} %   "
        f"boundary IoU {opt.percent(found.boundary_iou)} %   {calibration}"
        f"({counted(found.num_images, 'image')}, {found.num_classes_counted} of {len(found.class_names)} classes)",
        soft_wrap=True,
        highlight=False,
    )
