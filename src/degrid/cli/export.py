"""degrid export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from degrid.types import UserError

if TYPE_CHECKING:
    from torch import nn

    from degrid.exporters import Quantization
    from degrid.types import Dataset, LabelSpace, Sample


def export(
    model: Annotated[Path, typer.Argument(help="A model folder or run folder.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The file; by default MODEL with its ending.")] = None,
    kind: Annotated[
        str, typer.Option("--format", help="onnx, openvino, torch-export or aot-inductor (needs a C++ compiler).")
    ] = "onnx",
    output: Annotated[
        str, typer.Option(help="ids: class ids at the image's size; logits: for --scales, --flip, --crf.")
    ] = "ids",
    input_type: Annotated[str, typer.Option("--input", help="Type of the RGB pixels: uint8 or float32.")] = "uint8",
    int8: Annotated[bool, typer.Option("--int8", help="Static int8, weights per channel (onnx, openvino).")] = False,
    calibrate: Annotated[str | None, typer.Option(help="With --int8: a dataset, as for degrid train --data.")] = None,
    split: Annotated[str, typer.Option(help="Its split: half to calibrate on, half to measure on.")] = "train",
    images: Annotated[int, typer.Option(min=1, help="Most images to calibrate on.")] = 100,
    max_drop: Annotated[float, typer.Option(help="Most points of mIoU that int8 may lose.")] = 2.0,
) -> None:
    """Write a model for another runtime: RGB pixels of any size in, class ids out; nothing else is needed there.

    The file is run and compared with the model at several sizes before it counts, and `degrid predict` takes it.

    \b
    degrid export runs/my_photos -o my_photos.onnx
    degrid export runs/my_photos -o my_photos.xml --format openvino --int8 --calibrate my_photos
    degrid predict my_photos.xml photos/ -o results
    """
    import sys

    import degrid
    from degrid.exporters import FORMATS, QUANTIZERS, export_model
    from degrid.models import Segmenter

    network = degrid.load(model)
    if not isinstance(network, Segmenter):
        raise UserError(f"{model} is an exported model already; export the model folder it came from")
    if kind not in FORMATS:
        raise UserError(f'unknown format "{kind}"; known: {", ".join(FORMATS)}')
    if int8 and kind not in QUANTIZERS:
        raise UserError(f"int8 is for {' and '.join(QUANTIZERS)}, not for {kind}")
    if int8 != (calibrate is not None):
        raise UserError("--int8 and --calibrate DATA go together: int8 needs images to choose its ranges by")
    path = out or model.with_name(f"{model.name}{'.int8' if int8 else ''}{FORMATS[kind][0]}")
    found = export_model(
        network,
        network.labels,
        path,
        kind,
        output=output,
        input_type=input_type,
        version=degrid.__version__,
        int8=_quantization(calibrate, split, images, max_drop, network.labels) if calibrate else None,
        tell=lambda line: print(line, file=sys.stderr),
    )
    for comparison in found:
        print(comparison)
    print(f"{path} ({_size(path)}); try: degrid predict {path} IMAGES")


def _quantization(data: str, split: str, count: int, max_drop: float, labels: LabelSpace) -> Quantization:
    """Every other image calibrates, the others measure: neighbours in a sequence are alike, halves are not."""
    from degrid.data import open_dataset
    from degrid.exporters import Quantization

    dataset = open_dataset(data, split, labels=labels)
    if len(dataset) < 2:
        raise UserError(f'the split "{split}" of {data} has {len(dataset)} images; int8 needs one half to measure on')
    step = max(2, len(dataset) // count)
    chosen = list(range(0, len(dataset), step))[:count]
    pictures = [dataset[index].image.permute(1, 2, 0).numpy() for index in chosen]
    rest = _Part(dataset, [index for index in range(len(dataset)) if index % step == 1][:count])

    def judge(exact: nn.Module, small: nn.Module) -> None:
        import degrid

        before, after = (
            100 * degrid.evaluate(each, rest, device="cpu", boundary=False).miou for each in (exact, small)
        )
        print(f"mIoU on {len(rest)} images that were not calibrated on: float32 {before:.2f}, int8 {after:.2f}")
        if before - after > max_drop:
            raise UserError(
                f"int8 loses {before - after:.2f} points of mIoU, more than {max_drop:g} (--max-drop); nothing is "
                "written. Calibrate on images like those to come, or stay with float32"
            )

    return Quantization(pictures, judge)


class _Part:
    """Some images of a dataset."""

    def __init__(self, dataset: Dataset, indices: list[int]) -> None:
        self.labels, self.dataset, self.indices = dataset.labels, dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Sample:
        return self.dataset[self.indices[index]]


def _size(path: Path) -> str:
    from degrid.exporters.formats import files_of

    return f"{sum(file.stat().st_size for file in files_of(path)) / 2**20:.1f} MiB"
