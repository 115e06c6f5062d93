"""degrid gridding."""

from __future__ import annotations

from typing import Annotated

import typer

from degrid.cli.options import Inspected, InspectedImages, RandomWeights, parse_size


def gridding(
    model: Inspected,
    images: InspectedImages = None,
    size: Annotated[str, typer.Option(help="Image size, HEIGHTxWIDTH.")] = "321x321",
    runs: Annotated[int, typer.Option(min=1, help="Number of images, real or noise.")] = 4,
    random: RandomWeights = None,
    repairs: Annotated[bool, typer.Option(help="Also measure what smoothing and other rates would change.")] = True,
    json_output: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Tell whether a network with dilated convolutions sees a grid, how many networks it falls apart into, and what
    helps.

    Any network of PyTorch can be looked into: module:function names a function of yours that returns it.

    \b
    degrid gridding runs/my_photos --images photos/
    degrid gridding deeplabv2_voc12 --json
    degrid gridding my_network:make --no-repairs
    """
    import json

    import degrid
    from degrid.cli.progress import progress_bar

    with progress_bar(lines=True) as bar:
        found = degrid.gridding(
            model,
            images or [],
            size=parse_size(size),
            runs=runs,
            random_weights=random,
            repairs=repairs,
            progress=bar,
        )
    print(json.dumps(found.to_dict(), indent=2) if json_output else found)
