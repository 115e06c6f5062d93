"""degrid train."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from degrid.types import MSC_SCALES, UserError


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A recipe's name, or the run.json of an earlier run.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Your data: a folder of images and masks, a dataset.yaml, a list file, or 'synthetic'."),
    ] = None,
    operator: Annotated[
        str | None,
        typer.Option(help="Smoothing operator: regular, ssc, gi, average, gaussian, aggregation, tent."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, as in --set train.steps=2000; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Run folder; by default runs/NAME.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder, exactly.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Start from this model or run folder: its weights and, without a recipe, its network."),
    ] = None,
    start_iteration: Annotated[
        int | None,
        typer.Option(
            help="With --resume: go on after this many validations (train.keep_checkpoints keeps their state)."
        ),
    ] = None,
    msc: Annotated[
        bool, typer.Option("--msc", help="DeepLab v2's multi-scale input; short for --set model.scales=0.75,0.5.")
    ] = False,
    checkpoint: Annotated[
        bool,
        typer.Option("--checkpoint-activations", help="Less memory for more time, for large crops."),
    ] = False,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the images, each validated; short for --set train.epochs=...")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; short for --set train.steps=...")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; short for --set train.device=...")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the last line.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the complete settings and stop.")] = False,
) -> None:
    """Train a network.

    \b
    degrid train --data my_photos                  your folder, with good defaults
    degrid train --data my_photos --operator ssc   the same, with smoothed dilated convolutions
    degrid train camvid --data CamVid              a recipe on your copy of its data
    degrid train --data my_photos --init models/voc   fine-tune a model, such as a converted one
    degrid train eth_voc12 --set compat=true       a paper's experiment as its code ran it
    degrid train --data my_photos --epochs 50      passes instead of steps
    degrid train --resume runs/my_photos           continue after Ctrl-C or a crash
    degrid train runs/my_photos/run.json           repeat a run
    """
    from degrid import config as configs
    from degrid import recipes

    if resume is not None:
        if recipe or data or operator or settings or out or init or msc or steps or epochs or checkpoint or device:
            raise UserError("--resume continues a run with its own settings; give no others beside it")
        chosen, folder = configs.RunConfig(), resume
    else:
        if start_iteration is not None:
            raise UserError("--start-iteration goes on with an earlier run; give it beside --resume RUN")
        if recipe is None and data is None:
            raise UserError(
                "say what to train: `degrid train --data FOLDER`, or a recipe: " + ", ".join(recipes.RECIPES)
            )
        compat = any(setting.replace(" ", "").lower() == "compat=true" for setting in settings or [])
        chosen = recipes.load(recipe or "folder", compat=compat)
        if init is not None and recipe is None:
            from degrid.model_folder import model_settings

            chosen = dataclasses.replace(chosen, model=model_settings(init))
        assignments = [
            f"{key}={value}"
            for key, value in (
                # An absolute path, so that run.json works from any folder.
                ("data.path", str(Path(data).absolute()) if data and Path(data).exists() else data),
                ("model.smoothing.operator", operator),
                ("model.scales", ",".join(map(str, MSC_SCALES)) if msc else None),
                ("train.steps", steps),
                ("train.epochs", epochs),
                ("train.checkpoint_activations", "true" if checkpoint else None),
                ("train.init", str(init.absolute()) if init else None),
                ("train.device", device),
            )
            if value is not None
        ]
        if data is not None and recipe is None:
            assignments.append(f"name={_name_of(data)}")
        chosen = configs.override(chosen, assignments + (settings or []))
        folder = out or Path("runs") / chosen.name
    if show:
        import json

        print(json.dumps(configs.to_dict(chosen), indent=2))
        return

    from degrid.engine.inference.fast_network import keep_freed_memory
    from degrid.engine.training.loop import Stopped
    from degrid.verbs import train as runs

    keep_freed_memory()
    try:
        result = runs.run_stages(
            chosen,
            folder,
            settings=settings,
            resume=resume is not None,
            start_iteration=start_iteration,
            quiet=quiet,
        )
    except Stopped:
        print(f"stopped and saved; continue with: degrid train --resume {folder}", file=sys.stderr)
        sys.exit(130)
    print(result)


def _name_of(data: str) -> str:
    """The folder that the data are in, or the word that stands for them."""
    path = Path(data).absolute()
    return path.parent.name if path.suffix in (".yaml", ".yml", ".txt") else path.name.replace(":", "_")
