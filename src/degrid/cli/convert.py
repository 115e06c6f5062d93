"""degrid convert."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint of another program; with --modernise a model folder.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the model; without it nothing is written.")
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("--as", help='The program that wrote it, or "module:Class"; by default recognised by its names.'),
    ] = None,
    reader: Annotated[
        str | None, typer.Option(help='The kind of file, or "module:Class"; by default recognised by its bytes.')
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the network, as in --set output_stride=8.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Folder with classes.csv or classes.txt; by default VOC's for 21, Cityscapes' for 19."),
    ] = None,
    allow_unused: Annotated[bool, typer.Option("--allow-unused", help="Leave out unknown tensors.")] = False,
    modernise: Annotated[
        bool, typer.Option("--modernise", help="From the original code's behaviour to the papers', where exact.")
    ] = False,
) -> None:
    """Turn a checkpoint of another program into a model folder that computes the same logits.

    Reads TensorFlow checkpoints (V1, V2) and frozen graphs, caffemodel, .pth, .pkl, .pdparams, .npz, .npy and
    safetensors, without those frameworks; a config.json beside the weights is read, too.
    ImageNet weights become an encoder folder for --set model.pretrained=FOLDER.

    \b
    degrid convert model.ckpt-20000                          says what it holds
    degrid convert model.ckpt-20000 -o models/voc
    degrid convert train2_iter_20000.caffemodel -o models/voc
    degrid convert resnet_v1_101.ckpt -o models/resnet101
    degrid convert other.pth -o models/mine --as my_module:MySystem
    degrid convert models/voc -o models/voc_new --modernise
    """
    import degrid

    if modernise:
        if out is None:
            raise degrid.UserError("--modernise needs a folder for the new model: -o FOLDER")
        print(degrid.modernise(source, out))
        print(f"model: {out}; try: degrid predict {shlex.quote(str(out))} IMAGES")
        return
    report = degrid.convert(
        source, out, system=system, reader=reader, settings=settings or (), classes=classes, allow_unused=allow_unused
    )
    print(report)
    if out is None:
        print("nothing was written; -o FOLDER writes it")
    elif report.kind == "model":
        print(f"model: {out}; try: degrid predict {shlex.quote(str(out))} IMAGES")
    else:
        encoder = report.config["encoder"]
        pretrained = shlex.quote(f"model.pretrained={out}")
        print(f"encoder: {out}; use: degrid train ... --set model.encoder={encoder} --set {pretrained}")
