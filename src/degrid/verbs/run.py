"""One training run: settings in, a run folder out."""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from degrid import config as configs
from degrid import recipes
from degrid.config import DataConfig, RunConfig, TrainConfig
from degrid.data import (
    SourceDataset,
    TrainTransform,
    bands_in,
    notes_of,
    open_dataset,
    repeat_factors,
    training_batches,
)
from degrid.data.inspection.counting import class_counts
from degrid.data.inspection.preview import preview_sheet, write_sheet
from degrid.engine.device import pick_device, to_channels_last
from degrid.engine.training.cycles import Cycles, TrainingScore
from degrid.engine.training.log import RunLog
from degrid.engine.training.loop import Training, kept
from degrid.engine.training.loop import train as train_loop
from degrid.engine.training.trackers import make_trackers
from degrid.files import check_utf8, printable, write_json
from degrid.image import as_rgb, overlay_classes
from degrid.lookup import some
from degrid.model_folder import initialise_from, other_classes, save
from degrid.models import Segmenter, checkpoint_activations, freeze_batch_norm
from degrid.networks import bands_of, build_model
from degrid.types import Batch, Dataset, OnProgress, Sample, Scores, Tell, UserError
from degrid.verbs.evaluate import Measures, evaluate
from degrid.verbs.run_settings import (
    check_class_weights,
    check_settings,
    make_objective,
    make_plan,
    make_state,
    with_steps,
)
from degrid.version import VERSION

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
        return f"{score}model: {self.folder / 'model'}; try: degrid predict {self.folder} IMAGES"


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

    Args:
        folder: the run folder; must not hold a run yet, unless `resume` is set.
        resume: continue the run in `folder` with its own settings; `config` is ignored.
        start_iteration: with `resume`, continue from the kept state of this validation, counted from 1; the best model
            is then that of the validations after it.
        progress, tell: see `degrid.train`.
    Raises:
        UserError: settings or data that cannot be used, or a folder that is taken.
        Stopped: the user stopped the run; it is saved.
    """
    if resume:
        config = recipes.load(str(folder / "run.json"))
    else:
        _check_new(folder)
    check_settings(config)
    data, config = open_data(config)
    settings = with_steps(config.train, len(data.train))
    check_class_weights(settings.class_weights, data.train)
    device = pick_device(settings.device)
    torch.manual_seed(settings.seed)
    interrupted = resume and (folder / "last.ckpt").exists()
    model, start = start_network(config, data, device, interrupted)
    state = make_state(config, model)
    cycles = Cycles(settings.eval_every, config.compat) if settings.cyclic else None
    state.score = TrainingScore(len(data.train.labels), cycles, model.resize) if cycles else None
    plan = make_plan(config.optim, settings, cycles)
    if interrupted or start_iteration is not None:
        _restore(state, folder, start_iteration, plan.eval_every)
    sheet = None if state.step else _preview(data, config, folder)
    if not resume:
        write_json(folder / "run.json", _provenance(config, list(data.notes)))
    trackers = make_trackers(settings.trackers, folder, configs.to_dict(config), tell)
    with RunLog(folder, plan.steps, state.step, cycles, trackers, progress, tell) as log:
        for line in (_greeting(config, settings, model, data, device, state.step), *data.notes, *start):
            log.say(line)
        if sheet is not None:
            log.image(0, "train/preview", sheet)
            log.graph(model, torch.zeros(1, model.bands.count, *config.data.crop, device=device))
        train_loop(
            state,
            run_batches(config, data.train, cycles, state.step, log.progress),
            folder,
            log,
            make_objective(settings, data.train, model, device, log.progress),
            plan,
            validate=_validation(data.val, settings, device, log) if data.val is not None else None,
            publish=lambda network: save(cast(Segmenter, network), folder / "model"),
        )
    return RunResult(folder, state.best_miou if data.val is not None else None, data.notes)


@dataclass(frozen=True)
class _Data:
    """The training and validation data of a run, and what was decided about them."""

    train: Dataset
    val: Dataset | None
    notes: tuple[str, ...]


def open_data(config: RunConfig) -> tuple[_Data, RunConfig]:
    """The data, and the settings with what was found in them, which the model and a repeated run keep."""
    data, model = config.data, config.model
    train = open_dataset(data.path, data.train, bands=bands_of(model), accept=data.accept)
    bands = bands_in(train)
    if model.in_channels not in (None, bands.count):
        raise UserError(
            f'setting "model.in_channels": {data.path} gives images of {bands.count} channels, got {model.in_channels}'
        )
    there = train.splits if isinstance(train, SourceDataset) else ()
    val: Dataset | None = None
    notes = notes_of(train)
    if data.val == DataConfig.val and there and data.val not in there:
        notes.append(f'the data have no split "{data.val}": nothing is validated, and the last model is kept')
    elif data.val:
        val = open_dataset(data.path, data.val, train.labels, bands=bands)
        notes += notes_of(val)
    if val is None and config.train.patience:
        notes.append("train.patience has no effect, as nothing is validated: training goes on to its last step")
    if bands.count != 3:
        model = dataclasses.replace(model, in_channels=bands.count)
    if bands.range != "bytes":
        found = bands.range if isinstance(bands.range, str) else tuple(itertools.chain(*bands.range))
        model = dataclasses.replace(model, range=found)
    return _Data(train, val, tuple(dict.fromkeys(notes))), dataclasses.replace(config, model=model)


def _check_new(folder: Path) -> None:
    """Refuse a folder that a run cannot have."""
    check_utf8(folder)
    if (folder / "run.json").exists():
        ways = f"continue it with --resume {folder} (resume=...), or choose another -o (out=...)"
        raise UserError(f"{folder} holds a run already; {ways}")


def _preview(data: _Data, config: RunConfig, folder: Path) -> np.ndarray:
    """What the training data were understood to be, uint8 [H,W,3]; the first that is written to the run folder."""
    sheet = preview_sheet(data.train, title=f"{config.data.path}, {config.data.train}")
    write_sheet(sheet, folder / "preview.png")
    return sheet


def start_network(
    config: RunConfig, data: _Data, device: torch.device, interrupted: bool
) -> tuple[Segmenter, tuple[str, ...]]:
    """The network before the first step, and a sentence on where its weights are from, if from another model."""
    settings = config.train
    # An interrupted run gets its weights from the checkpoint; those it once started from may be gone.
    fresh = not interrupted and not settings.init
    wanted = config.model if fresh else dataclasses.replace(config.model, pretrained=False)
    model = build_model(wanted, data.train.labels)
    told: tuple[str, ...] = ()
    if settings.init and not interrupted:
        anew = initialise_from(model, settings.init, settings.init_head)
        which = f" ({some(anew, 3)})" if anew else ""
        others = other_classes(model, settings.init)
        names = f": its classes are others ({some(others, 4)})" if others and settings.init_head else ""
        told = (f"started from {settings.init}; {len(anew)} tensors start anew{which}{names}",)
    model.to(device)
    if settings.channels_last:
        to_channels_last(model)
    for norm in (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)):
        norm.momentum = norm.momentum if settings.batch_norm_momentum is None else settings.batch_norm_momentum
    if settings.batch_norm == "frozen":
        freeze_batch_norm(model)
    if settings.checkpoint_activations:
        checkpoint_activations(model)
    model.scales_in_turn = settings.scales_in_turn
    return model, told


def run_batches(
    config: RunConfig, dataset: Dataset, cycles: Cycles | None, step: int, progress: OnProgress
) -> Iterator[Batch]:
    """The endless micro-batches from a step on."""
    data, settings = config.data, config.train
    transform = TrainTransform(data.crop, data.scale, data.flip, data.jitter, data.centred, data.void_border)
    rare = data.repeat_rare
    repeats = repeat_factors(class_counts(dataset, progress)[:, :-1] > 0, rare) if rare else None

    def batches_from(number: int) -> Iterator[Batch]:
        return training_batches(dataset, transform, settings.batch_size, settings.seed, number, data.workers, repeats)

    if cycles:
        return cycles.batches(batches_from, step, settings.accumulate)
    return batches_from(step * settings.accumulate)


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


def _greeting(
    config: RunConfig, settings: TrainConfig, model: Segmenter, data: _Data, device: torch.device, start: int
) -> str:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    at = f", from step {start}" if start else ""
    return (
        f"{config.model.network} on {config.model.encoder}, output stride {config.model.output_stride}, "
        f"{config.model.smoothing.operator} dilated convolutions, {millions:.1f} M parameters; "
        f"{len(data.train)} training and {len(data.val) if data.val is not None else 0} validation images, "
        f"{len(data.train.labels)} classes; {settings.steps} steps of "
        f"{settings.batch_size * settings.accumulate} images on {device}{at}"
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
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.platform()},
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
