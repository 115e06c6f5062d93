"""One training run: settings in, a run folder out."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from degrid import config as configs
from degrid import recipes
from degrid.config import RunConfig, TrainConfig
from degrid.data import Share
from degrid.data.inspection.preview import preview_sheet, write_sheet
from degrid.engine.device import arithmetic, on_device, pick_device
from degrid.engine.memory import enough_memory
from degrid.engine.ranks import (
    as_any_sees,
    check_same,
    gathered,
    in_contact,
    is_first,
    joined,
    rank_and_count,
    together,
)
from degrid.engine.training.asynchronous import Server
from degrid.engine.training.claim import claimed
from degrid.engine.training.cycles import Cycles, TrainingScore
from degrid.engine.training.log import RunLog
from degrid.engine.training.loop import Advance, Plan, Training, in_this_process, kept
from degrid.engine.training.loop import train as train_loop
from degrid.engine.training.trackers import make_trackers
from degrid.engine.training.turns import Turns
from degrid.files import check_utf8, parse_json, printable, read_json, write_json
from degrid.image import as_rgb, overlay_classes
from degrid.lookup import counted, flat
from degrid.model_folder import save
from degrid.models import Segmenter
from degrid.threads import cpu_name
from degrid.types import Dataset, OnProgress, Sample, Scores, Tell, UserError
from degrid.verbs.evaluate import Measures, evaluate
from degrid.verbs.fixed_crops import check_fixed_crops, fixed_crops
from degrid.verbs.run_settings import (
    check_class_weights,
    check_settings,
    losses_of,
    make_objective,
    make_plan,
    make_state,
    with_steps,
)
from degrid.verbs.run_start import RunData, open_data, run_batches, start_network, turn_pieces
from degrid.version import VERSION

JOB = "TORCHELASTIC_RUN_ID"
"""Environment variable with torchrun's name of a job, which stays when its processes are started again."""
LAG = 10
"""Steps after which a GPU's losses are read."""
NUM_PANELS = 4
"""Validation images whose predictions are recorded as pictures."""


@dataclass(frozen=True)
class RunResult:
    """Where a run left its results.

    Attributes:
        folder: the run folder; `degrid.load` and `degrid predict` take it.
        best_miou: of the best validation, 0 to 1; None without one.
        notes: what was decided for the user, such as how the images were split.
    """

    folder: Path
    best_miou: float | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        score = f"best val mIoU {100 * self.best_miou:.2f} %; " if self.best_miou is not None else ""
        return f"{score}model: {self.folder / 'model'}; try: degrid predict {shlex.quote(str(self.folder))} IMAGES"


def run(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    start_iteration: int | None = None,
    progress: OnProgress | None = None,
    tell: Tell | None = None,
) -> RunResult:
    """Train as a config says; everything the run leaves is in `folder`.

    Started by torchrun, its processes share each step, and the first one writes; see docs/gpu.md.

    Args:
        folder: the run folder; must not hold a run yet, unless `resume` is set or this job began the run.
        resume: continue the run in `folder`; `config` has its own settings but for those of where it is continued.
        start_iteration: with `resume`, continue from the kept state of this validation, counted from 1; the best model
            is then that of the validations after it.
        progress, tell: see `degrid.train`.
    Raises:
        UserError: settings or data that cannot be used, or a folder that is taken.
        OtherProcessError: another process failed.
        Stopped: the user stopped the run; it is saved.
    """
    seconds = config.train.timeout
    with (
        joined(pick_device(config.train.device), seconds) as device,
        in_contact(),
        enough_memory(),
        ExitStack() as held,
    ):
        # Training begins from its seed; random numbers drawn by the caller afterwards are unaffected.
        held.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if not is_first():
            progress = tell = None
        claim: AbstractContextManager[None] = nullcontext()
        with together():
            # Its earlier processes are gone.
            again = as_any_sees(lambda: _began(folder), str(folder / "run.json"), seconds)
            if again and not resume:
                resume, config = True, recipes.load(str(folder / "run.json"))
            if is_first():
                claim = claimed(folder, tell or (lambda _: None), again)
            check_settings(config)
            check_fixed_crops(config)
            if not resume:
                _check_new(folder)
            check_same({"degrid": VERSION, "torch": torch.__version__, **_of_all(config)})
            if resume:
                held.enter_context(claim)
            work = _prepare(config, folder, device, resume, start_iteration)
            read = {"training": work.data.train, "validation": work.data.val}
            check_same({f"{part} images": None if data is None else len(data) for part, data in read.items()})
        with arithmetic(device, config.train.deterministic), work.server(progress) as server:
            with together():
                if not resume:  # only now, since mistakes until here leave no folder
                    held.enter_context(claim)
                    _check_new(folder)
            return work.train(resume, progress, tell, server)


@dataclass
class _Work:
    """A run that is ready to begin or to continue."""

    config: RunConfig
    settings: TrainConfig
    """Those of the config, with the number of steps."""
    folder: Path
    data: RunData
    state: Training
    share: Share
    cycles: Cycles | None
    plan: Plan
    device: torch.device
    notes: tuple[str, ...]
    """Where the weights come from."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the run is to stop."""

    @contextmanager
    def server(self, progress: OnProgress | None) -> Iterator[Server | None]:
        """In asynchronous training, what turns the workers' results into steps; workers live as long as the context.

        Raises:
            UserError: Ray's cluster cannot be reached.
        """
        settings, own = self.settings, self.settings.asynchronous
        if not own.workers:
            yield None
            return
        from degrid.verbs.workers import hired

        model = cast(Segmenter, self.state.model)
        objective = make_objective(settings, self.data.train, model, self.device, progress)
        weights = objective.class_weights  # counted once, and not by every worker
        settings = dataclasses.replace(
            settings, epochs=0.0, ema=0.0, class_weights="none" if weights is None else tuple(weights.tolist())
        )
        config = dataclasses.replace(self.config, train=settings, data=dataclasses.replace(self.config.data, val=""))
        size = sum(value.nbytes for value in model.state_dict().values())
        pieces = turn_pieces(settings, cast(Turns, self.state.turns))
        with hired(config, len(self.data.train), pieces, size, self.device.type == "cuda") as crew:
            most = 4 * own.workers if own.max_staleness is None else own.max_staleness
            yield Server(
                crew,
                self.plan,
                most,
                own.average_every,
                objective.names,
                predict=own.predict,
                pieces=pieces,
                stop=self.stop,
            )

    def train(
        self, resume: bool, progress: OnProgress | None, tell: Tell | None, server: Server | None = None
    ) -> RunResult:
        """The rest of the run; with a server, its workers step."""
        config, folder, state, data, plan = self.config, self.folder, self.state, self.data, self.plan
        model, first = cast(Segmenter, state.model), is_first()
        sheet = None
        if first and not state.step:  # how the training data were understood, written first
            sheet = preview_sheet(data.train, title=f"{config.data.path}, {config.data.train}")
            write_sheet(sheet, folder / "preview.png")
        if first and not resume:
            write_json(folder / "run.json", _provenance(config, list(data.notes)))
        trackers = make_trackers(self.settings.trackers, folder, configs.to_dict(config), tell) if first else ()
        with RunLog(folder, plan.steps, state.step, self.cycles, trackers, progress, tell, writes=first) as log:
            for line in (_greeting(self), *data.notes, *self.notes):
                log.say(line)
            if server:
                server.tell = log.say
            if sheet is not None:
                log.image(0, "train/preview", sheet)
                if state.bare is None:  # otherwise this process has only parts of the weights
                    log.graph(model, torch.zeros(1, model.bands.count, *config.data.crop, device=self.device))
            try:
                train_loop(
                    state,
                    server or self._stepping(log),
                    folder,
                    log,
                    plan,
                    validate=_validation(data.val, self.settings, self.device, log) if data.val is not None else None,
                    publish=lambda network: save(cast(Segmenter, network), folder / "model") if first else None,
                    stop=self.stop,
                )
            finally:
                if server:
                    log.say(f"asynchronous: {server.figures}")
                    told = read_json(folder / "run.json", "the run's settings")
                    write_json(folder / "run.json", told | {"asynchronous": server.figures.to_dict()})
        return RunResult(folder, state.best_miou if data.val is not None else None, data.notes)

    def _stepping(self, log: RunLog) -> Advance:
        """Number of steps that this process computes."""
        config, data, state = self.config, self.data.train, self.state
        if self.settings.fixed_crops:
            model = cast(Segmenter, state.model)
            state.forward, crops = fixed_crops(config, data, model, self.folder, log.progress)
            batches = crops.batches(self.settings.batch_size, state.step * self.share.pieces)
        else:
            batches = run_batches(config, data, self.cycles, state.step, log.progress, self.share)
        return in_this_process(
            on_device(batches, self.device),
            make_objective(self.settings, data, cast(Segmenter, state.model), self.device, log.progress),
            self.plan,
        )


def _prepare(config: RunConfig, folder: Path, device: torch.device, resume: bool, start_iteration: int | None) -> _Work:
    """Everything before the first step; nothing is written.

    Raises:
        UserError: settings, data or a state that cannot be used.
    """
    data, config = open_data(config)
    rank, processes = rank_and_count()
    began_with = parse_json((folder / "run.json").read_text("utf-8")).get("processes", 1) if resume else processes
    settings = with_steps(config.train, len(data.train), began_with)
    share = Share.of(settings.batch_size * settings.accumulate * began_with, settings.batch_size, rank, processes)
    _check_in_step(share, settings)
    check_class_weights(settings.class_weights, data.train)
    torch.manual_seed(settings.seed)
    last = folder / "last.ckpt"
    interrupted = resume and as_any_sees(last.exists, str(last), settings.timeout)
    model, start = start_network(config, data, device, interrupted)
    if rank:  # all begin with the same weights; each process has its own dropout
        torch.manual_seed(int(np.random.SeedSequence([settings.seed, rank]).generate_state(1)[0]))
    state = make_state(config, model)
    cycles = Cycles(settings.eval_every, config.compat) if settings.cyclic else None
    state.turns = Turns() if settings.asynchronous.workers else None
    state.score = TrainingScore(len(data.train.labels), cycles, model.resize) if cycles else None
    plan = make_plan(config.optim, settings, cycles, share.pieces, LAG if device.type == "cuda" else 0)
    if interrupted or start_iteration is not None:
        _restore(state, folder, start_iteration, plan.eval_every)
    return _Work(config, settings, folder, data, state, share, cycles, plan, device, start)


def _check_in_step(share: Share, settings: TrainConfig) -> None:
    """Refuse processes that would wait within a step for one that has no further micro-batch.

    Raises:
        UserError: what they exchange then is needed, and shares are of different numbers of micro-batches.
    """
    numbers, needs = gathered(share.pieces), []
    if settings.batch_norm == "synchronised":
        needs.append("train.batch_norm=synchronised")
    if any(loss.joins for loss in losses_of(settings)):
        needs.append(f"train.loss={settings.loss}")
    if needs and len(set(numbers)) > 1:
        raise UserError(
            f"{needs[0]}: {len(numbers)} processes would divide a step's {share.total} images into "
            f"{', '.join(map(str, numbers))} micro-batches, but all need the same number; use as many processes as "
            "divide the step evenly"
        )


def _of_all(config: RunConfig) -> dict[str, object]:
    """The settings by their paths, without those in which machines may differ."""
    found = flat(configs.to_dict(config))
    return {path: value for path, value in found.items() if path not in ("data.path", "data.workers", "train.device")}


def _began(folder: Path) -> bool:
    """Whether the run in a folder is that of this very job, restarted by torchrun or the cluster."""
    job, file = os.environ.get(JOB, "none"), folder / "run.json"
    return job != "none" and file.exists() and parse_json(file.read_text("utf-8")).get("job") == job


def _check_new(folder: Path) -> None:
    """Refuse a folder that a run cannot use."""
    check_utf8(folder)
    if (folder / "run.json").exists():
        ways = f"continue it with --resume {shlex.quote(str(folder))} (resume=...), or choose another -o (out=...)"
        raise UserError(f"{folder} holds a run already; {ways}")


def _restore(state: Training, folder: Path, iteration: int | None, eval_every: int) -> None:
    """Continue from the last state, or from that after a number of validations.

    Raises:
        UserError: it was not kept.
    """
    if iteration is None:
        state.restore(folder / "last.ckpt")
        return
    file = kept(folder, iteration * eval_every)
    if not file.exists():
        steps = sorted(int(found.stem.removeprefix("step_")) for found in folder.glob("step_*.ckpt"))
        there = ", ".join(str(step // eval_every) for step in steps) or "none"
        raise UserError(
            f"the state after iteration {iteration} was not kept: {file} is missing; kept iterations: {there} "
            "(train.keep_checkpoints=true keeps them)"
        )
    state.restore(file)
    state.best_miou, state.since_best = -1.0, 0


def _validation(
    dataset: Dataset, settings: TrainConfig, device: torch.device, log: RunLog
) -> Callable[[nn.Module, int], Scores]:
    """A function that scores a network on the validation data, and records image | label | prediction of a few."""
    shown = {round(i * (len(dataset) - 1) / (NUM_PANELS - 1)) for i in range(NUM_PANELS)}

    def validate(network: nn.Module, step: int) -> Scores:
        def record(index: int, sample: Sample, ids: Tensor) -> None:
            if index in shown:
                image = as_rgb(sample.image.permute(1, 2, 0).numpy())
                drawn = [overlay_classes(image, each.numpy(), dataset.labels) for each in (sample.label, ids)]
                log.image(step, f"val/{printable(sample.name)}", np.concatenate([image, *drawn], axis=1))

        return evaluate(
            network,
            dataset,
            device=str(device),
            precision=settings.precision,
            measures=Measures(boundary=False),
            on_image=record,
            progress=log.progress,
        )

    return validate


def _greeting(work: _Work) -> str:
    config, data, model, start = work.config, work.data, cast(Segmenter, work.state.model), work.state.step
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    at = f", from step {start}" if start else ""
    others = f" in {count} processes" if (count := rank_and_count()[1]) > 1 else ""
    if (own := work.settings.asynchronous).workers:
        team = counted(own.workers, "worker")
        others = f" by {team}, not waiting for one another"
        if own.average_every:  # each of them takes whole steps
            others = f" by each of {team}, averaged every {own.average_every} steps"
    return (
        f"{config.model.network} on {config.model.encoder}, output stride {config.model.output_stride}, "
        f"{config.model.smoothing.operator} dilated convolutions, {millions:.1f} M parameters; "
        f"{len(data.train)} training and {len(data.val) if data.val is not None else 0} validation images, "
        f"{len(data.train.labels)} classes; {work.settings.steps} steps of "
        f"{work.share.total} images on {work.device}{others}{at}"
    )


def _provenance(config: RunConfig, notes: list[str]) -> dict[str, Any]:
    """The contents of run.json: the settings, and how to understand and repeat the run."""
    return {
        "config": configs.to_dict(config),
        "notes": notes,
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": {
            "degrid": VERSION,
            "git": _git_hash(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "processes": rank_and_count()[1],
        "job": os.environ.get(JOB, "none"),
        "machine": {
            "cpu": cpu_name(),
            "instructions": torch.backends.cpu.get_cpu_capability(),  # some processors do not report their kind
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
    }


def _git_hash() -> str | None:
    """Commit of the source tree that this package runs from, with "+" for uncommitted changes; None outside one."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside another project's repository: only a tracked file counts.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain") else "")
