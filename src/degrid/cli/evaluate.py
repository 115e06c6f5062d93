"""degrid eval."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from degrid.cli.options import (
    Crf,
    Flip,
    Fusion,
    Memory,
    Msc,
    Overlap,
    Precision,
    Scales,
    Window,
    inference,
    multi_scale,
    rest_idle_threads,
)

if TYPE_CHECKING:
    from degrid.engine.evaluation.trimap import TrimapPoint
    from degrid.engine.evaluation.worst_images import ScoredImage
    from degrid.types import ConfidenceBin, LabelSpace, Scores


def evaluate(
    model: Annotated[Path, typer.Argument(help="A model folder, a run folder, or an exported model.")],
    data: Annotated[str, typer.Option(help="The data: a folder, dataset.yaml, list file or 'synthetic'.")],
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write the scores as JSON here.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    precision: Precision = "float32",
    scales: Scales = "1",
    flip: Flip = False,
    fusion: Fusion = "mean",
    window: Window = None,
    overlap: Overlap = 0.5,
    memory: Memory = None,
    msc: Msc = False,
    crf: Crf = False,
    trimap: Annotated[bool, typer.Option("--trimap", help="Also the mIoU close to the class borders.")] = False,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Also the expected calibration error; a reliability diagram with -o.")
    ] = False,
    worst: Annotated[int, typer.Option(min=0, help="List this many images of lowest mIoU; pictures with -o.")] = 0,
) -> None:
    """Score a model: mIoU, accuracies, boundary IoU, and a table per class.

    \b
    degrid eval runs/my_photos --data my_photos
    degrid eval runs/my_photos --data my_photos --split test -o scores.json
    degrid eval runs/my_photos --data my_photos --scales 0.5,0.75,1,1.25,1.5,1.75 --flip
    degrid eval runs/my_photos --data my_photos --window 512x512
    degrid eval runs/my_photos --data my_photos --trimap --worst 10 -o scores.json
    degrid eval runs/my_photos --data my_photos --calibration -o scores.json
    """
    rest_idle_threads(model)
    import degrid
    from degrid.cli.progress import progress
    from degrid.engine.evaluation.trimap import TrimapCounts
    from degrid.engine.evaluation.worst_images import WorstImages
    from degrid.engine.inference.fast_network import keep_freed_memory
    from degrid.files import write_json
    from degrid.model_folder import load_any

    keep_freed_memory()
    how = inference(scales, flip, fusion, window, overlap, crf, memory)
    network = load_any(model)
    if msc:
        multi_scale(network)
    dataset = degrid.open_dataset(data, split, labels=network.labels)
    bands = TrimapCounts(len(dataset.labels))
    lowest = WorstImages(len(dataset.labels), worst)
    wanted: list[Callable[..., object]] = [*([bands] if trimap else []), *([lowest] if worst else [])]
    with progress("evaluating", len(dataset)) as advance:
        hook = each_of([*wanted, lambda *_: advance()])
        found = degrid.evaluate(
            network, dataset, device=device, precision=precision, options=how, calibration=calibration, on_image=hook
        )
    print_scores(found)
    if trimap:
        print_trimap(bands.curve())
    if worst:
        print_worst(lowest.found)
    if out is not None:
        looks = dataclasses.asdict(how)
        record = {"model": str(model), "data": data, "split": split, "inference": looks, **found.to_dict()}
        if trimap:
            record["trimap"] = [dataclasses.asdict(point) for point in bands.curve()]
        if worst:
            record["worst"] = [{"name": image.sample.name, "miou": image.miou} for image in lowest.found]
        write_json(out, record)
        if worst:
            print(f"pictures: {write_worst(lowest.found, dataset.labels, out)}")
        if found.reliability:
            print(f"reliability diagram: {write_reliability(found.reliability, percent(found.ece), out)}")
        print(f"scores: {out}")


def each_of(hooks: Iterable[Callable[..., object]]) -> Callable[..., None]:
    """One hook that calls several, in order, with its arguments."""
    hooks = tuple(hooks)

    def call(*arguments: object) -> None:
        for hook in hooks:
            hook(*arguments)

    return call


def percent(value: float | None) -> str:
    """A share as percent with two decimals; a dash for None."""
    return "-" if value is None else f"{100 * value:.2f}"


def write_worst(images: Sequence[ScoredImage], labels: LabelSpace, out: Path) -> Path:
    """Write a picture per image, image | truth | prediction, into a folder beside the scores; its path.

    Args:
        images: the worst first; their rank begins the file's name.
        out: the file of the scores; for scores.json the folder is scores_worst.
    Raises:
        UserError: the place cannot be written to.
    """
    import numpy as np
    from PIL import Image

    from degrid.files import atomic_write
    from degrid.image import overlay_classes

    folder = out.with_name(f"{out.stem}_worst")
    for rank, image in enumerate(images, start=1):
        pixels = image.sample.image.permute(1, 2, 0).numpy()
        shown = (overlay_classes(pixels, ids.numpy(), labels) for ids in (image.sample.label, image.ids))
        # Names hold sub-folders; the pictures lie side by side.
        name = f"{rank:03d}_{image.sample.name}.png".replace("/", "_")
        with atomic_write(folder / name) as temporary:
            Image.fromarray(np.concatenate([pixels, *shown], axis=1)).save(temporary, format="PNG")
    return folder


def write_reliability(bins: Sequence[ConfidenceBin], ece: str, out: Path) -> Path:
    """Draw accuracy against confidence, and how the pixels spread over the bins, beside the scores; the file's path.

    Args:
        bins: of equal width, from 0 to 1.
        ece: the expected calibration error in percent.
        out: the file of the scores; for scores.json the picture is scores_reliability.png.
    Raises:
        UserError: the place cannot be written to.
    Source: Guo et al. 2017, arXiv 1706.04599, figure 1.
    """
    from matplotlib.figure import Figure

    from degrid.analysis.figures import COLORS, png
    from degrid.files import atomic_write

    edges = [100 * index / len(bins) for index in range(len(bins))]
    width, total = 100 / len(bins), max(1, sum(each.pixels for each in bins))
    figure = Figure(figsize=(5.0, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    look = {"width": width, "align": "edge", "color": COLORS[0], "edgecolor": "white", "linewidth": 0.5}
    upper.bar(edges, [100 * (each.accuracy or 0.0) for each in bins], **look, label="accuracy of a bin")
    upper.plot([0, 100], [0, 100], color=COLORS[1], linestyle="--", label="as sure as right")
    upper.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy, %", title=f"expected calibration error {ece} %")
    upper.legend(loc="upper left")
    lower.bar(edges, [100 * each.pixels / total for each in bins], **look)
    lower.set(xlabel="confidence, %", ylabel="pixels, %")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    path = out.with_name(f"{out.stem}_reliability.png")
    with atomic_write(path) as temporary:
        temporary.write_bytes(png(figure))
    return path


def print_trimap(curve: Sequence[TrimapPoint]) -> None:
    """The mIoU per width of the band along the class borders."""
    from rich.console import Console
    from rich.table import Table

    table = Table("pixels from a class border", "mIoU %", "pixels counted")
    for column in table.columns:
        column.justify = "right"
    for point in curve:
        table.add_row(f"up to {point.width}", percent(point.miou) if point.pixels else "-", f"{point.pixels:,}")
    Console().print(table)


def print_worst(images: Sequence[ScoredImage]) -> None:
    """The images of lowest mIoU, the worst first."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("worst images", "mIoU %")
    table.columns[0].overflow = "fold"
    table.columns[1].justify = "right"
    for image in images:
        table.add_row(escape(image.sample.name), percent(image.miou))
    Console().print(table)


def print_scores(found: Scores) -> None:
    """The table per class and the totals, in percent."""
    from rich.console import Console
    from rich.table import Table

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
    calibration = "" if found.ece is None else f"expected calibration error {percent(found.ece)} %   "
    console.print(
        f"mIoU {percent(found.miou)} %   pixel accuracy {percent(found.pixel_accuracy)} %   "
        f"mean accuracy {percent(found.mean_accuracy)} %   "
        f"frequency-weighted IoU {percent(found.frequency_weighted_iou)} %   "
        f"boundary IoU {percent(found.boundary_iou)} %   {calibration}"
        f"({found.num_images} images, {found.num_classes_counted} of {len(found.class_names)} classes)",
        soft_wrap=True,
        highlight=False,
    )
