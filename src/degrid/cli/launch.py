"""degrid launch and degrid sweep."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from degrid.cli.train import Data, Init, Operator, Out, Recipe, Settings
from degrid.config import parse_settings
from degrid.types import UserError

Slurm = Annotated[bool, typer.Option("--slurm", help="A job of Slurm.")]
Lsf = Annotated[bool, typer.Option("--lsf", help="A job of LSF.")]
Nodes = Annotated[int, typer.Option(help="Machines.")]
Gpus = Annotated[int, typer.Option(help="GPUs per machine; 0: one process per machine, on the CPU.")]
Cpus = Annotated[int, typer.Option(help="Cores per GPU.")]
Time = Annotated[str, typer.Option(help="Limit, HH:MM or D-HH:MM; the run is saved before it and queues again.")]
Mem = Annotated[str, typer.Option(help="Memory of a machine, such as 64G.")]
GpuModel = Annotated[str, typer.Option(help="As the cluster calls it, such as a100.")]
Queue = Annotated[str, typer.Option(help="Partition or queue.")]
Mail = Annotated[str, typer.Option(help="Address that gets a message at the end.")]
Env = Annotated[list[str] | None, typer.Option(help="Line to run first, such as 'module load cuda'; repeatable.")]
Submit = Annotated[bool, typer.Option("--submit", help="Hand the job to sbatch or bsub.")]


def launch(
    recipe: Recipe = None,
    data: Data = None,
    operator: Operator = None,
    settings: Settings = None,
    out: Out = None,
    init: Init = None,
    slurm: Slurm = False,
    lsf: Lsf = False,
    nodes: Nodes = 1,
    gpus: Gpus = 1,
    cpus: Cpus = 8,
    time: Time = "24:00",
    mem: Mem = "",
    gpu_model: GpuModel = "",
    queue: Queue = "",
    mail: Mail = "",
    env: Env = None,
    submit: Submit = False,
) -> None:
    """Write a training as a job of a cluster: a script that starts it on all machines, saves before the time limit,
    queues again and continues.

    \b
    degrid launch --data my_photos --slurm --nodes 2 --gpus 4 --time 24:00 --submit
    degrid launch camvid --data CamVid --lsf --gpu-model NVIDIAGeForceGTX1080Ti --mem 10G --mail me@uni.org
    """
    asked = _cluster(slurm, lsf, nodes, gpus, cpus, time, mem, gpu_model, queue, mail, tuple(env or ()))
    _write(asked, {}, submit, recipe=recipe, data=data, operator=operator, settings=settings, out=out, init=init)


def sweep(
    grid: Annotated[list[str], typer.Argument(help="A setting and its values, such as 'optim.lr=0.01 0.02'.")],
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, or the run.json of an earlier run.")] = None,
    data: Data = None,
    operator: Operator = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the runs; by default runs/NAME.")] = None,
    init: Init = None,
    slurm: Slurm = False,
    lsf: Lsf = False,
    nodes: Nodes = 1,
    gpus: Gpus = 1,
    cpus: Cpus = 8,
    time: Time = "24:00",
    mem: Mem = "",
    gpu_model: GpuModel = "",
    queue: Queue = "",
    mail: Mail = "",
    env: Env = None,
    submit: Submit = False,
) -> None:
    """Write an array of jobs, one for every combination of some settings' values; each run has a folder below --out.

    \b
    degrid sweep 'optim.lr=0.01 0.02' 'model.smoothing.operator=ssc gi tent' --data my_photos --slurm --submit
    degrid sweep 'train.seed=0 1 2 3 4' --recipe camvid --data CamVid --lsf -o runs/seeds
    """
    values = {}
    for text in grid:
        path, equals, words = text.partition("=")
        if not equals:
            raise UserError(f"expected a setting and its values, such as 'optim.lr=0.01 0.02', got \"{text}\"")
        values[path] = [parse_settings([f"{path}={word}"])[path] for word in shlex.split(words)]
    asked = _cluster(slurm, lsf, nodes, gpus, cpus, time, mem, gpu_model, queue, mail, tuple(env or ()))
    _write(asked, values, submit, recipe=recipe, data=data, operator=operator, settings=settings, out=out, init=init)


def _cluster(slurm: bool, lsf: bool, *asked: Any) -> Any:
    from degrid.verbs.launch import Cluster

    if slurm == lsf:
        raise UserError("say which system runs the cluster: either --slurm or --lsf")
    return Cluster("slurm" if slurm else "lsf", *asked)


def _write(cluster: Any, grid: dict[str, list[object]], submit: bool, *, settings: Any, **chosen: Any) -> None:
    import degrid

    given = parse_settings(settings or [])
    script = degrid.launch(**chosen, settings=given, cluster=cluster, grid=grid, submit=submit)
    by_hand = ("sbatch " if cluster.system == "slurm" else "bsub < ") + shlex.quote(str(script))
    print(f"submitted: {script}" if submit else f"job: {script}; submit it with: {by_hand}")
