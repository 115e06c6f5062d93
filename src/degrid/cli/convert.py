"""degrid convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[Path, typer.Argument(help="An old checkpoint; with --modernise a model folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the model.")],
    system: Annotated[
        str | None, typer.Option("--as", help="The system that wrote it; by default told by its names.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the network, as in --set output_stride=8.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Folder with classes.csv or classes.txt; by default VOC's or Cityscapes' by number."),
    ] = None,
    allow_unused: Annotated[bool, typer.Option("--allow-unused", help="Leave out tensors that are unknown.")] = False,
    modernise: Annotated[
        bool, typer.Option("--modernise", help="From the original code's behaviour to the papers', where exact.")
    ] = False,
) -> None:
    """Turn an old checkpoint into a model folder that computes the same logits.

    Reads TensorFlow checkpoints (V1, V2), caffemodel, .pth, .npz, .npy and safetensors, without those frameworks.
    ImageNet weights become an encoder folder for --set model.pretrained=FOLDER.

    \b
    degrid convert model.ckpt-20000 -o models/voc
    degrid convert train2_iter_20000.caffemodel -o models/voc
    degrid convert resnet_v1_101.ckpt -o models/resnet101
    degrid convert models/voc -o models/voc_new --modernise
    """
    from degrid.data import class_table
    from degrid.types import UserError
    from degrid.verbs import convert as conversion
    from degrid.verbs import modernise as modernisation

    if modernise:
        print(modernisation.modernise(source, out))
        print(f"model: {out}; try: degrid predict {out} IMAGES")
        return
    labels, _ = class_table(classes) if classes else (None, None)
    if classes and labels is None:
        raise UserError(f"no classes.csv and no classes.txt in {classes}")
    report = conversion.convert(source, out, system=system, allow_unused=allow_unused, settings=settings, labels=labels)
    print(report)
    if report.kind == "model":
        print(f"model: {out}; try: degrid predict {out} IMAGES")
    else:
        encoder = report.config["encoder"]
        print(f"encoder: {out}; use: degrid train .. --set model.encoder={encoder} --set model.pretrained={out}")
