"""degrid info."""

from __future__ import annotations

from typing import Annotated

import typer

from degrid.cli.options import parse_size


def info(
    model: Annotated[str, typer.Argument(help="A model folder, run folder, exported model, recipe name or run.json.")],
    size: Annotated[str, typer.Option(help="Image size for the multiply-adds, HEIGHTxWIDTH.")] = "512x512",
    classes: Annotated[int, typer.Option(help="Number of classes of a recipe's network.")] = 21,
    json_output: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Show the layers, rates, parameters and multiply-adds of a network, and which layers are smoothed.

    \b
    degrid info runs/my_photos
    degrid info my_photos.onnx
    degrid info folder --size 1024x2048
    """
    import json

    from degrid.verbs.describe import describe

    found = describe(model, size=parse_size(size), num_classes=classes)
    print(json.dumps(found.to_dict(), indent=2) if json_output else found)
