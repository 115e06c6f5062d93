"""degrid info."""

from __future__ import annotations

from typing import Annotated

import typer


def info(
    model: Annotated[str, typer.Argument(help="A model folder, run folder, recipe name or run.json.")],
    size: Annotated[str, typer.Option(help="Image size for the multiply-adds, HEIGHTxWIDTH.")] = "512x512",
    classes: Annotated[int, typer.Option(help="Number of classes, where the model does not say it.")] = 21,
    json_output: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Layers, rates, parameters, multiply-adds, and what is smoothed.

    \b
    degrid info runs/my_photos
    degrid info folder --size 1024x2048
    """
    import json

    from degrid import assemble
    from degrid.models import describe

    network = assemble.open_model(model, classes)
    found = describe(network, assemble.parse_size(size))
    print(json.dumps(found.to_dict(), indent=2) if json_output else found)
