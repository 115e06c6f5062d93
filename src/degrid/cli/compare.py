"""degrid compare."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from degrid.cli.evaluate import each_of, percent
from degrid.cli.options import Crf, Flip, Fusion, Overlap, Precision, Scales, Window, inference
from degrid.types import UserError

if TYPE_CHECKING:
    from degrid.engine.evaluation.bootstrap import Difference
    from degrid.types import LabelSpace, Scores


def compare(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="Model folders or run folders, two or more.")],
    data: Annotated[str, typer.Option(help="The data: a folder, dataset.yaml, list file or 'synthetic'.")],
    split: Annotated[str, typer.Option(help="Split to score.")] = "val",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write the comparison as JSON here.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    precision: Precision = "float32",
    draws: Annotated[int, typer.Option(min=1, help="Draws of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    scales: Scales = "1",
    flip: Flip = False,
    fusion: Fusion = "mean",
    window: Window = None,
    overlap: Overlap = 0.5,
    crf: Crf = False,
) -> None:
    """Score models on the same images: difference to the first, with a 95 % interval over the images.

    \b
    degrid compare runs/regular runs/tent --data my_photos
    degrid compare runs/regular runs/tent runs/ssc --data my_photos --split test -o compare.json
    degrid compare runs/regular runs/tent --data my_photos --scales 0.75,1,1.25 --flip
    """
    import degrid
    from degrid.cli.progress import progress
    from degrid.engine.evaluation.bootstrap import ImageConfusions, paired_bootstrap
    from degrid.files import write_json

    if len(models) < 2:
        raise UserError("a comparison needs two models or more: degrid compare MODEL MODEL --data PATH")
    how = inference(scales, flip, fusion, window, overlap, crf)
    networks = [degrid.load(model) for model in models]  # all of them first: a wrong one shows before the long part
    check_classes([network.labels for network in networks], models)
    dataset = degrid.open_dataset(data, split, labels=networks[0].labels)
    found, stacks = [], []
    with progress("comparing", len(models) * len(dataset)) as advance:
        for network in networks:
            collect = ImageConfusions(len(dataset.labels))
            hook = each_of([collect, lambda *_: advance()])
            found.append(
                degrid.evaluate(
                    network, dataset, device=device, precision=precision, options=how, boundary=False, on_image=hook
                )
            )
            stacks.append(collect.stacked())
    differences = [paired_bootstrap(stacks[0], stack, draws, seed) for stack in stacks[1:]]
    print_comparison([str(model) for model in models], found, differences)
    if out is not None:
        settings = {"data": data, "split": split, "inference": dataclasses.asdict(how), "draws": draws, "seed": seed}
        write_json(out, {**settings, "models": _records(models, found, differences)})
        print(f"comparison: {out}")


def check_classes(labels: list[LabelSpace], models: list[Path]) -> None:
    """Refuse models that do not all know the same classes in the same order.

    Raises:
        UserError: they do not; it names the first that differs.
    """
    for space, model in zip(labels, models, strict=True):
        if space.names != labels[0].names:
            raise UserError(
                f"{model} and {models[0]} do not predict the same classes ({len(space)} and {len(labels[0])}, "
                "by name and order), so their scores cannot be compared"
            )


def _records(models: list[Path], found: list[Scores], differences: list[Difference]) -> list[dict[str, Any]]:
    to_first = [None, *(dataclasses.asdict(difference) for difference in differences)]
    return [
        {"model": str(model), "difference_to_first": difference, **scores.to_dict()}
        for model, scores, difference in zip(models, found, to_first, strict=True)
    ]


def print_comparison(names: list[str], found: list[Scores], differences: list[Difference]) -> None:
    """One column per model, in percent and percentage points, and a sentence on the best.

    Args:
        names: of the models. found: their scores. differences: of the second and further ones to the first.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("%")
    for name in names:
        table.add_column(escape(name), justify="right", overflow="fold")
    table.add_row("mIoU", *(percent(scores.miou) for scores in found))
    table.add_row("pixel accuracy", *(percent(scores.pixel_accuracy) for scores in found))
    table.add_row("mIoU difference", "-", *(f"{100 * d.difference:+.2f}" for d in differences))
    table.add_row("95 % interval", "-", *(_interval(difference) for difference in differences))
    table.add_row("sign flips in", "-", *(percent(difference.p) for difference in differences), end_section=True)
    for index, name in enumerate(found[0].class_names):
        table.add_row(escape(f"IoU {name}"), *(percent(scores.class_iou[index]) for scores in found))
    console = Console()
    console.print(table)
    console.print(_verdict(names, found, differences), soft_wrap=True, highlight=False, markup=False)


def _verdict(names: list[str], found: list[Scores], differences: list[Difference]) -> str:
    best = max(range(len(found)), key=lambda index: found[index].miou)
    text = f"best of {len(found)} on {found[0].num_images} images: {names[best]}, mIoU {percent(found[best].miou)} %"
    if best == 0:
        return text
    difference = differences[best - 1]
    return f"{text}, {100 * difference.difference:+.2f} {_interval(difference)} to {names[0]}"


def _interval(difference: Difference) -> str:
    return f"[{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"
