"""degrid.launch: a training run as a cluster job, in one script that can be read, kept and submitted."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from degrid import config as configs
from degrid.arguments import check_fields, checked
from degrid.config import RunConfig, Settings
from degrid.data import absolute
from degrid.files import check_utf8, make_folder, write_text
from degrid.types import UserError
from degrid.verbs.run_settings import check_settings
from degrid.verbs.train import run_config

GRACE = 5
"""Minutes before the time limit at which a job is told to save and to queue again."""


@dataclass(frozen=True)
class Cluster:
    """What a job asks its cluster for.

    Attributes:
        system: "slurm" or "lsf".
        nodes: machines.
        gpus: per machine, one process for each; 0: one process per machine, on the CPU.
        cpus: cores per process.
        time: the limit, as HH:MM or D-HH:MM; shortly before it the run is saved, and the job queues again.
        memory: of a machine, such as "64G"; empty: the cluster's default.
        gpu_model: as the cluster calls it, such as "a100"; empty: any.
        queue: partition or queue; empty: the default.
        mail: address that gets a message at the end; empty: none.
        environment: lines that run first, such as "module load cuda".
    Raises:
        UserError: a value that no cluster takes.
    """

    system: str = "slurm"
    nodes: int = 1
    gpus: int = 1
    cpus: int = 8
    time: str = "24:00"
    memory: str = ""
    gpu_model: str = ""
    queue: str = ""
    mail: str = ""
    environment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.system not in _SYSTEMS:
            raise UserError(f'the cluster\'s system: expected {" or ".join(_SYSTEMS)}, got "{self.system}"')
        if self.nodes < 1 or self.gpus < 0 or self.cpus < 1:
            raise UserError(
                "--nodes and --cpus (nodes, cpus): expected 1 or more, and --gpus (gpus) 0 or more; got "
                f"{self.nodes}, {self.cpus} and {self.gpus}"
            )
        if not re.fullmatch(r"(\d+-)?\d+:[0-5]\d", self.time) or self.minutes <= GRACE:
            raise UserError(
                f"--time (time): expected more than {GRACE} minutes as HH:MM or D-HH:MM, such as 24:00 or 3-12:00, got "
                f'"{self.time}"'
            )
        if self.memory and not re.fullmatch(r"\d+[MG]", self.memory):
            raise UserError(f'--mem (memory): expected a number with M or G, such as 64G, got "{self.memory}"')
        for name in ("gpu_model", "queue", "mail"):
            if re.search(r"[^\w.@+:-]", getattr(self, name)):
                raise UserError(f'--{name.replace("_", "-")} ({name}): expected one word, got "{getattr(self, name)}"')

    @property
    def processes(self) -> int:
        """Per machine."""
        return max(1, self.gpus)

    @property
    def minutes(self) -> int:
        """The time limit."""
        days, _, clock = self.time.rpartition("-")
        hours, minutes = map(int, clock.split(":"))
        return 24 * 60 * int(days or 0) + 60 * hours + minutes


@checked
def launch(
    recipe: str | Path | None = None,
    *,
    data: str | Path | None = None,
    operator: str | None = None,
    settings: Settings = (),
    init: str | Path | None = None,
    out: str | Path | None = None,
    cluster: Cluster | None = None,
    grid: Mapping[str, Sequence[object]] | None = None,
    submit: bool = False,
) -> Path:
    """Write the job that trains as `degrid.train` would, given the same arguments, and submit it if asked to.

        degrid.launch(data="my_photos", operator="ssc", cluster=degrid.Cluster(nodes=2, gpus=4))

    The script starts torchrun on every machine. Before the time limit the run is saved and the job queues again; it
    then continues the run in its folder.

    Args:
        recipe, data, operator, settings, init, out: see `degrid.train`; all machines must see these paths.
        cluster: what to ask for; by default one machine with one GPU of a Slurm cluster.
        grid: settings with the values to try; every combination becomes a job of an array, with a folder of its own
            below `out`, named by its number from 1.
        submit: hand the script to sbatch or bsub.
    Returns:
        The script, job.sh in the run folder.
    Raises:
        UserError: settings that cannot be used, a folder that holds a run, or a cluster that refuses the job.
    """
    cluster, grid, given = cluster or Cluster(), grid or {}, configs.parse_settings(settings)
    variants = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if not variants:
        raise UserError("a setting without values gives no run; expected some, as in degrid sweep 'optim.lr=0.01 0.02'")
    for variant in variants:  # without a grid there is one cell, which changes nothing
        config = run_config(recipe, data=data, operator=operator, settings={**given, **variant}, init=init)
        _check(config, cluster)
    folder = (Path(out) if out is not None else Path("runs") / config.name).absolute()
    _check_folder(folder, cluster.system)
    if (folder / "run.json").exists():
        raise UserError(f"{folder} holds a run already; choose another -o (out=...)")
    words = [] if recipe is None else [str(Path(recipe).absolute()) if Path(recipe).is_file() else str(recipe)]
    words += ["--data", absolute(data)] if data is not None else []
    words += ["--operator", operator] if operator is not None else []
    words += ["--init", str(Path(init).absolute())] if init is not None else []
    make_folder(folder)
    script = folder / "job.sh"
    text = job_script(config.name, [*words, *_as_options(given)], folder, cluster, variants if grid else ())
    write_text(script, text)
    if submit:
        _SYSTEMS[cluster.system].submit(script)
    return script


def _check_folder(folder: Path, system: str) -> None:
    """Refuse a folder that the system would understand as another one, where it names the job's output.

    Raises:
        UserError: says why.
    """
    check_utf8(folder)
    wrong = re.search(r"[\\\x00-\x1f\x7f]" + "|%[IJ]" * (system == "lsf"), str(folder))
    if wrong:
        raise UserError(
            f"the name of a job's folder cannot have {wrong[0]!r} in it, which {system} interprets: "
            f"{str(folder)!r}; choose another -o (out=...)"
        )


def _check(config: RunConfig, cluster: Cluster) -> None:
    """Refuse settings that could only fail in the job.

    Raises:
        UserError: names it.
    """
    check_settings(config)
    if config.train.asynchronous.workers and cluster.nodes * cluster.processes > 1:
        raise UserError(
            "asynchronous training (train.asynchronous.workers) is started once, and Ray starts its workers: "
            f"expected --nodes 1 and --gpus 0 or 1, got {cluster.nodes} and {cluster.gpus}; for several machines "
            "start Ray on them, see docs/cluster.md"
        )


def job_script(
    name: str, words: Sequence[str], folder: Path, cluster: Cluster, variants: Sequence[Mapping[str, object]] = ()
) -> str:
    """The text of a job.

    Args:
        name: of the job.
        words: arguments of `degrid train`, without the folder.
        folder: of the run.
        variants: further settings, for each job of an array.
    """
    system = _SYSTEMS[cluster.system]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", name)  # all that LSF takes
    train, out = shlex.join(words), shlex.quote(str(folder))
    lines = ["#!/usr/bin/env bash", *system.asks(name, folder, cluster, len(variants)), "set -eo pipefail"]
    lines += [
        *cluster.environment,
        "set -u  # only now, as what modules and conda run reads variables that are not set",
    ]
    if variants:
        lines += ["", "# What the jobs of the array change.", "variants=("]
        lines += [shlex.quote(shlex.join(_as_options(variant))) for variant in variants]
        lines += [")", f'eval "variant=(${{variants[{system.index} - 1]}})"']
        train, out = f'{train} "${{variant[@]}}"', f"{out}/{system.index}"
    own = f"{system.job}_{system.index}" if variants else system.job
    return "\n".join(lines) + _BODY.format(
        hosts=system.hosts,
        port=system.port if variants else system.job,
        own=own,
        start=system.start,
        signal=system.signal,
        save=system.save.format(own=own),
        python=shlex.quote(sys.executable),
        nodes=cluster.nodes,
        processes=cluster.processes,
        train=train,
        out=out,
        again=system.again.format(own=own),
    )


_BODY = """
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240  # seconds for finishing a step and saving

# The processes meet on the first machine. The name of their meeting stays when the job is queued again, so that the
# run in the folder is continued.
{hosts}
port=$((10000 + ({port}) % 20000))

# Shortly before the time limit: save, then queue again.
again=
trap 'again=yes; {save}' {signal}
{start} {python} -m torch.distributed.run --nnodes={nodes} --nproc-per-node={processes} \\
    --rdzv-backend=c10d --rdzv-endpoint="$host:$port" --rdzv-id={own} \\
    -m degrid train {train} -o {out} &
work=$!
code=0
wait "$work" || code=$?
if [ -n "$again" ]; then
    wait "$work" || true
    {again}
fi
exit "$code"
"""


@dataclass(frozen=True)
class _System:
    """The words of a job system.

    Attributes:
        job, index: what stands for the numbers of the job, or array, and of the job in an array.
        port: a number that no other job of the array has, which may be on the same machine.
        hosts: sets `host`, the first machine.
        start: runs a command once on every machine.
        signal: tells the script that its time is nearly over.
        save: has `work`, of the job {own}, saved.
        again: queues it again.
    """

    job: str
    index: str
    port: str
    hosts: str
    start: str
    signal: str
    save: str
    again: str

    def asks(self, name: str, folder: Path, cluster: Cluster, jobs: int) -> list[str]:
        """The lines at the top; `jobs` of an array, 0: no array."""
        raise NotImplementedError

    def submit(self, script: Path) -> None:
        """Hand a script over."""
        raise NotImplementedError


class _Slurm(_System):
    def asks(self, name: str, folder: Path, cluster: Cluster, jobs: int) -> list[str]:
        """See `_System`."""
        gpus = f"{cluster.gpu_model}:{cluster.gpus}" if cluster.gpu_model else str(cluster.gpus)
        days, hours = divmod(cluster.minutes // 60, 24)
        asked = {
            "job-name": name,
            "array": f"1-{jobs}" if jobs else "",
            "nodes": cluster.nodes,
            "ntasks-per-node": 1,
            "gpus-per-node": gpus if cluster.gpus else "",
            "cpus-per-task": cluster.cpus * cluster.processes,
            "mem": cluster.memory,
            "time": f"{days}-{hours:02d}:{cluster.minutes % 60:02d}:00",
            "partition": cluster.queue,
            "output": shlex.quote(f"{folder}/".replace("%", "%%") + f"job_{'%A_%a' if jobs else '%j'}.txt"),
            "open-mode": "append",
            "signal": f"B:{self.signal}@{60 * GRACE}",
            "mail-type": "END,FAIL" if cluster.mail else "",
            "mail-user": cluster.mail,
        }
        return [*(f"#SBATCH --{key}={value}" for key, value in asked.items() if value != ""), "#SBATCH --requeue"]

    def submit(self, script: Path) -> None:
        """See `_System`."""
        _handed_over(["sbatch", str(script)])


class _Lsf(_System):
    def asks(self, name: str, folder: Path, cluster: Cluster, jobs: int) -> list[str]:
        """See `_System`."""
        cores = cluster.cpus * cluster.processes
        gpus = f"num={cluster.gpus}:mode=exclusive_process" + (f":gmodel={cluster.gpu_model}" * bool(cluster.gpu_model))
        megabytes = int(cluster.memory[:-1] or 0) * (1024 if cluster.memory.endswith("G") else 1)
        asked = {
            "-J": shlex.quote(f"{name}[1-{jobs}]" if jobs else name),
            "-n": cluster.nodes * cores,
            "-R": f'"span[ptile={cores}]' + (f' rusage[mem={megabytes // cores}]"' if megabytes else '"'),
            "-gpu": f'"{gpus}"' if cluster.gpus else "",
            "-W": f"{cluster.minutes // 60}:{cluster.minutes % 60:02d}",
            "-q": cluster.queue,
            "-o": shlex.quote(f"{folder}/job_%J{'_%I' if jobs else ''}.txt"),
            "-wa": self.signal,
            "-wt": GRACE,
            "-Q": _AGAIN,
            "-u": cluster.mail,
        }
        mail = ["#BSUB -N"] if cluster.mail else []
        return [*(f"#BSUB {key} {value}" for key, value in asked.items() if value != ""), "#BSUB -r", *mail]

    def submit(self, script: Path) -> None:
        """See `_System`."""
        _handed_over(["bsub"], script.read_text(encoding="utf-8"))


_AGAIN = 99
"""Exit code with which LSF queues a job again."""
_SYSTEMS = {
    "slurm": _Slurm(
        job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}",
        index="$SLURM_ARRAY_TASK_ID",
        port="$SLURM_JOB_ID",  # in an array each job has its own, too
        hosts='host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        start='srun --cpus-per-task="$SLURM_CPUS_PER_TASK"',  # since Slurm 22.05, srun does not read it itself
        signal="USR1",
        save='scancel --signal=TERM "{own}"',  # sent to srun, it would become SIGKILL for its processes
        again='scontrol requeue "{own}"',
    ),
    "lsf": _Lsf(
        job="${LSB_JOBID}",
        index="$LSB_JOBINDEX",
        port="LSB_JOBID + 101 * LSB_JOBINDEX",
        hosts="hosts=$(sort -u \"$LSB_DJOB_HOSTFILE\")\nhost=${hosts%%$'\\n'*}",
        start='blaunch -z "$(echo $hosts)"',
        signal="URG",  # goes to all processes of the job; others than the script ignore it
        save='kill -TERM "$work"',
        again=f"exit {_AGAIN}",
    ),
}


def _as_options(settings: Mapping[str, object]) -> list[str]:
    return [word for path, value in settings.items() for word in ("--set", f"{path}={configs.as_given(value)}")]


def _handed_over(command: list[str], text: str | None = None) -> None:
    """Submit a job.

    Raises:
        UserError: there is no such command, or it refuses the job.
    """
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"there is no command {command[0]} here, so the job is only written; submit it on the cluster"
        ) from error
    if done.returncode:
        raise UserError(f"{command[0]} refused the job: {(done.stderr or done.stdout).strip()}")
