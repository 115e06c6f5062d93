"""degrid train."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from degrid.threads import divide_threads
from degrid.types import MSC_SCALES, UserError

if TYPE_CHECKING:
    from degrid.config import RunConfig

Recipe = Annotated[
    str | None, typer.Argument(help="A recipe's name, or the run.json of an earlier run.", show_default=False)
]
Data = Annotated[
    str | None,
    typer.Option(help="Your data: a folder of images and masks, a dataset.yaml, a list file, or 'synthetic'."),
]
Operator = Annotated[
    str | None,
    typer.Option(help="Smoothing operator: regular, decompose, gi, ssc, average, gaussian, aggregation, tent."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting, as in --set train.steps=2000; repeatable.")
]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="Run folder; by default runs/NAME.")]
Resume = Annotated[
    Path | None,
    typer.Option(help="Continue the run in this folder, exactly; --devices, --workers and --device may be others."),
]
Init = Annotated[
    Path | None,
    typer.Option(help="Start from this model or run folder: its weights and, without a recipe, its network."),
]
StartIteration = Annotated[
    int | None,
    typer.Option(help="With --resume: continue from this validation (train.keep_checkpoints keeps their states)."),
]
Msc = Annotated[
    bool, typer.Option("--msc", help="DeepLab v2's multi-scale input; short for --set model.scales=0.75,0.5.")
]
Checkpoint = Annotated[
    bool, typer.Option("--checkpoint-activations", help="Less memory for more time, for large crops.")
]
Epochs = Annotated[
    float | None, typer.Option(help="Passes over the images, each validated; short for --set train.epochs=...")
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps; short for --set train.steps=...")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; short for --set train.device=...")]
Devices = Annotated[
    int,
    typer.Option(min=1, help="GPUs of this machine to train on, or processes on the CPU; each gets batch_size images."),
]
Asynchronous = Annotated[
    bool,
    typer.Option("--async", help="Through Ray, by workers that do not wait for one another; see docs/cluster.md."),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="With --async: how many, by default 2; short for --set train.asynchronous.workers=..."),
]
Address = Annotated[
    str | None, typer.Option(help="With --async: a Ray cluster, such as node1:6379; by default this machine.")
]
MaxStaleness = Annotated[
    int | None, typer.Option(min=0, help="With --async: gradients are dropped if they are more steps old.")
]
SkipBadShards = Annotated[
    bool, typer.Option("--skip-bad-shards", help="Leave out shards that are damaged or missing, and count them.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the last line.")]
Show = Annotated[bool, typer.Option("--show", help="Print the complete settings and stop.")]


def parsed(settings: list[str] | None) -> dict[str, Any]:
    """The values of --set by their names."""
    from degrid.config import parse_settings

    return parse_settings(settings or [])


def _asynchronous(
    chosen: bool, resume: Path | None, workers: int | None, address: str | None, staleness: int | None
) -> dict[str, Any]:
    """The settings of --async and of the options that need it."""
    given = {"workers": workers, "address": address, "max_staleness": staleness}
    if not chosen and any(value is not None for value in given.values()):
        raise UserError("--workers, --address and --max-staleness are those of asynchronous training; add --async")
    if chosen and workers is None:
        from degrid.verbs.train import config_in

        given["workers"] = config_in(resume).train.asynchronous.workers if resume else 0
        given["workers"] = given["workers"] or 2
    return {f"train.asynchronous.{name}": value for name, value in given.items()}


def _check_devices(config: RunConfig, processes: int) -> None:
    """Refuse mistakes that every process would report."""
    from degrid.engine.device import pick_device
    from degrid.engine.ranks import check_gpus

    if pick_device(config.train.device).type == "cuda":
        check_gpus(processes)


def train(
    recipe: Recipe = None,
    data: Data = None,
    operator: Operator = None,
    settings: Settings = None,
    out: Out = None,
    resume: Resume = None,
    init: Init = None,
    start_iteration: StartIteration = None,
    msc: Msc = False,
    checkpoint: Checkpoint = False,
    epochs: Epochs = None,
    steps: Steps = None,
    device: Device = None,
    devices: Devices = 1,
    asynchronous: Asynchronous = False,
    workers: Workers = None,
    address: Address = None,
    max_staleness: MaxStaleness = None,
    skip_bad_shards: SkipBadShards = False,
    quiet: Quiet = False,
    show: Show = False,
) -> None:
    """Train a network.

    \b
    degrid train --data my_photos                  your folder, with good defaults
    degrid train --data my_photos --operator ssc   the same, with smoothed dilated convolutions
    degrid train camvid --data CamVid              a recipe on your copy of its data
    degrid train --data my_photos --init models/voc   fine-tune a model, such as a converted one
    degrid train eth_voc12 --set compat=true       a paper's experiment as its code ran it
    degrid train --data my_photos --epochs 50      passes instead of steps
    degrid train --data my_photos --set data.repeat_rare=0.3 --set "train.loss=cross_entropy + 0.5*dice"
                                                   show images of rare classes more often; a sum of losses
    degrid train --data my_photos --devices 4      four GPUs; several machines: torchrun ... -m degrid train ...
    degrid train --data my_photos --async --workers 8 --address node1:6379
                                                   eight workers on a Ray cluster, each at its own pace
    degrid train --resume runs/my_photos           continue after Ctrl-C or a crash
    degrid train runs/my_photos/run.json           repeat a run
    """
    short = {
        "model.scales": MSC_SCALES if msc else None,
        "train.steps": steps,
        "train.epochs": epochs,
        "train.checkpoint_activations": checkpoint or None,
        "train.device": device,
        "data.skip_bad_shards": skip_bad_shards or None,
        **_asynchronous(asynchronous, resume, workers, address, max_staleness),
    }
    given = {path: value for path, value in short.items() if value is not None} | parsed(settings)
    chosen: dict[str, Any] = {"data": data, "operator": operator, "settings": given, "init": init}
    if show or starts(devices):
        from degrid.config import to_dict
        from degrid.verbs.train import run_config

        config = run_config(resume / "run.json" if resume else recipe, **chosen)  # mistakes are reported once
        if not show:
            _check_devices(config, devices)
        sys.exit(print(json.dumps(to_dict(config), indent=2)) if show else in_processes(devices, sys.argv[1:]))
    _run(recipe, chosen | {"out": out, "resume": resume, "start_iteration": start_iteration}, quiet)


def _run(recipe: str | None, chosen: dict[str, Any], quiet: bool) -> None:
    """Train, and say where the results are."""
    import degrid
    from degrid.cli.progress import progress_bar
    from degrid.engine.memory import keep_freed_memory

    keep_freed_memory()
    try:
        with progress_bar(lines=True, quiet=quiet) as bar:
            result = degrid.train(recipe, **chosen, progress=bar, tell=bar.tell)
    except degrid.Stopped as stopped:
        print(stopped, file=sys.stderr) if speaks() else None
        sys.exit(130)
    print(result) if speaks() else None


def starts(count: int) -> bool:
    """Whether this process has to start others, being none of them itself."""
    return count > 1 and "RANK" not in os.environ


def speaks() -> bool:
    """Whether this process prints what all of them know."""
    return os.environ.get("RANK", "0") == "0"


def in_processes(count: int, arguments: list[str]) -> int:
    """Run `degrid ARGUMENTS` in processes that know one another, until the last has ended or one fails.

    Returns:
        The exit code: 0, or that of the process that failed first.
    Raises:
        UserError: this PyTorch cannot do it, or a process was killed, which it could not say itself.
    """
    import torch.distributed as dist

    if not dist.is_available():
        raise UserError("--devices: this build of PyTorch has no torch.distributed")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Each process reports its own errors. Cores are shared, and a stopped run gets time to be saved.
    logging.disable(logging.ERROR)
    divide_threads(count)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "degrid", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise UserError(_killed(rank, -failure.exitcode)) from error
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException:
        return 130
    return 0


def _killed(rank: int, number: int) -> str:
    """How a process ended that was stopped by a signal."""
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    memory = ", as happens when the system runs out of memory: take fewer --devices, or a smaller train.batch_size"
    return f"process {rank} was ended by {name}{memory if number == signal.SIGKILL else ''}; all others were stopped"
