"""degrid lr-find."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from degrid.cli.train import Data, Device, Init, Operator, Recipe, Settings, parsed


def lr_find(
    recipe: Recipe = None,
    data: Data = None,
    operator: Operator = None,
    settings: Settings = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the picture and the numbers.")] = Path("lr_find"),
    init: Init = None,
    lowest: Annotated[float, typer.Option(help="The first learning rate.")] = 1e-6,
    highest: Annotated[float, typer.Option(help="The last one, if the loss does not explode before.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps, each with a rate of its own.")] = 100,
    device: Device = None,
) -> None:
    """Find a learning rate: train some steps with a growing one, and see where the loss falls fastest.

    \b
    degrid lr-find --data my_photos                before degrid train --data my_photos --set optim.lr=...
    degrid lr-find camvid --data CamVid -o rates --set optim.name=adamw
    """
    import degrid
    from degrid.cli.progress import progress_bar

    given = ({"train.device": device} if device else {}) | parsed(settings)
    with progress_bar(lines=True) as bar:
        found = degrid.find_learning_rate(
            recipe,
            data=data,
            operator=operator,
            settings=given,
            init=init,
            out=out,
            lowest=lowest,
            highest=highest,
            steps=steps,
            progress=bar,
        )
    print(found)
