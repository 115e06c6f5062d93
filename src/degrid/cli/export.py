"""degrid export."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from degrid.exporters.table import EXPORTERS, formats_with_int8
from degrid.types import UserError

_FORMATS = ", ".join(f"{name} ({each.note})" if each.note else name for name, each in EXPORTERS.items())

_NOT_COMPARED = "not compared: files of this format cannot be run here"
_FLOAT_LAYERS = "Most layers to leave in float32 if int8 loses more; by default a quarter of them."


def export(
    model: Annotated[Path, typer.Argument(help="A model folder or run folder.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The file; by default MODEL with its ending.")] = None,
    kind: Annotated[str, typer.Option("--format", help=f"{_FORMATS}, or your own, as module:Class.")] = "onnx",
    output: Annotated[
        str, typer.Option(help="ids: class ids at the image's size; logits: for --scales, --flip, --crf.")
    ] = "ids",
    input_type: Annotated[str, typer.Option("--input", help="Type of the RGB pixels: uint8 or float32.")] = "uint8",
    size: Annotated[str | None, typer.Option(help="For images of HEIGHTxWIDTH only, instead of any size.")] = None,
    batch: Annotated[int | None, typer.Option(help="For this many images only; by default any, with --size 1.")] = None,
    opset: Annotated[int | None, typer.Option(help="With onnx: version of the operators, 18 (default) to 23.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help=f"Static int8, weights per channel ({', '.join(formats_with_int8())}).")
    ] = False,
    calibrate: Annotated[str | None, typer.Option(help="With --int8: a dataset, as for degrid train --data.")] = None,
    split: Annotated[str, typer.Option(help="Its split: half to calibrate on, half to measure on.")] = "train",
    images: Annotated[int, typer.Option(min=1, help="Most images to calibrate on.")] = 100,
    max_drop: Annotated[float, typer.Option(help="Most points of mIoU that int8 may lose.")] = 2.0,
    float_layers: Annotated[int | None, typer.Option(min=0, help=_FLOAT_LAYERS)] = None,
) -> None:
    """Write a model for another runtime: RGB pixels of any size in, class ids out; nothing else is needed there.

    The file is run and compared with the model at several sizes before it counts, and `degrid predict` takes it.

    \b
    degrid export runs/my_photos -o my_photos.onnx
    degrid export runs/my_photos -o my_photos.xml --format openvino --int8 --calibrate my_photos
    degrid export runs/my_photos -o tiny.onnx --size 512x512 --input float32 --opset 19
    degrid export runs/my_photos -o my_photos.tflite --format litert --size 512x512
    degrid export runs/my_photos -o my_photos.mine --format my_module:MyExporter
    degrid predict my_photos.xml photos/ -o results
    degrid predict my_module:MyExporter=my_photos.mine photos/ -o results
    """
    import degrid
    from degrid.cli.options import parse_size
    from degrid.cli.progress import progress_bar
    from degrid.exporters.facts import ImageInput
    from degrid.exporters.onnx import Onnx

    if int8 != (calibrate is not None):
        raise UserError("--int8 and --calibrate DATA go together: int8 needs images to choose its ranges by")
    if opset is not None and kind != "onnx":
        raise UserError(f"--opset is for --format onnx, not for {kind}")
    with progress_bar() as bar:
        result = degrid.export(
            model,
            out,
            format=kind if opset is None else Onnx(opset),
            output=output,
            takes=ImageInput(input_type, parse_size(size) if size else None, batch),
            int8=degrid.Int8(calibrate, split, images, max_drop, float_layers) if calibrate else None,
            progress=bar,
            tell=bar.tell,
        )
    for line in [str(each) for each in (result.int8, *result.comparisons) if each] or [_NOT_COMPARED]:
        print(line)
    hint = f"; try: degrid predict {shlex.quote(result.name)} IMAGES" if result.comparisons else ""
    print(f"{result.files[-1]} ({result.num_bytes / 2**20:.1f} MiB){hint}")
