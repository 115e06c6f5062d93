"""degrid erf."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from degrid.cli.options import InspectedImages, RandomWeights, parse_size
from degrid.types import UserError


def erf(
    model: Annotated[
        str | None, typer.Argument(help="A model folder, run folder, recipe, run.json, or module:function of yours.")
    ] = None,
    layer: Annotated[str, typer.Option(help="Dotted name of the layer whose output is measured.")] = "",
    start: Annotated[str, typer.Option(help="Look from this layer's input on, in place of the image.")] = "",
    images: InspectedImages = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the picture, numbers and field; or a .png.")
    ] = Path("erf"),
    size: Annotated[str, typer.Option(help="Image size, HEIGHTxWIDTH; odd for a true centre.")] = "321x321",
    runs: Annotated[int, typer.Option(min=1, help="Number of images, real or noise, whose mean is taken.")] = 8,
    random: RandomWeights = None,
    operators: Annotated[
        str | None, typer.Option(help="Compare operators: all, or names such as regular,ssc,tent.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Draw what the centre of a network's output, or of a layer's, sees: its effective receptive field.

    Any network of PyTorch can be looked into: module:function names a function of yours that returns it. With
    --operators and no MODEL, the operators are compared on one convolution and on a block of three units.

    \b
    degrid erf runs/my_photos -o erf
    degrid erf runs/my_photos --layer encoder.layer3 --images photos/ -o erf
    degrid erf my_network:make --size 225x225 --random 0
    degrid erf --operators all -o operators
    """
    import json

    import degrid
    from degrid.cli.progress import progress_bar
    from degrid.smoothing.table import OPERATORS
    from degrid.verbs.erf import picture_in

    if model is None and operators is None:
        raise UserError("expected a MODEL, or --operators all to compare the operators without one; see degrid erf -h")
    settings: dict[str, Any] = {"start": start, "size": parse_size(size), "runs": runs, "random_weights": random}
    given = (layer, images or [], out)
    with progress_bar(lines=True) as bar:
        settings["progress"] = bar
        if operators is None:
            found = [degrid.erf(str(model), *given, **settings)]
        else:
            names = list(OPERATORS) if operators == "all" else operators.split(",")
            found = list(degrid.erf_of_operators(model, *given, operators=names, **settings))
    if json_output:
        print(json.dumps([each.to_dict() for each in found], indent=2))
    else:
        print(*found, f"picture: {picture_in(out)}", sep="\n\n")
