"""One training run: settings in, a run folder out."""

from __future__ import annotations

import dataclasses
import math
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
from degrid.config import OptimConfig, RunConfig, TrainConfig
from degrid.data import TrainTransform, open_dataset, training_batches
from degrid.data.inspection.stats import class_pixels
from degrid.engine.device import PRECISIONS, pick_device
from degrid.engine.evaluation.evaluate import evaluate
from degrid.engine.training.cycles import Cycles, TrainingScore
from degrid.engine.training.log import RunLog
from degrid.engine.training.loop import Training, kept
from degrid.engine.training.loop import train as train_loop
from degrid.engine.training.loss_table import make_losses, uses_class_weights
from degrid.engine.training.losses import CLASS_WEIGHTS, LOSS_SIZES, Loss, given_class_weights, median_frequency_weights
from degrid.engine.training.optim import SCHEDULES, make_optimizer, moving_average, parameter_groups, schedule
from degrid.engine.training.trackers import check_trackers, make_trackers
from degrid.files import write_json
from degrid.image import overlay_classes
from degrid.model_folder import save, start_from
from degrid.models import Segmenter, checkpoint_activations, freeze_batch_norm
from degrid.networks import build_model
from degrid.types import Batch, Dataset, Sample, Scores, UserError
from degrid.version import VERSION


@dataclass(frozen=True)
class RunResult:
    """Where a run left its results."""

    folder: Path
    best_miou: float | None

    def __str__(self) -> str:
        score = f"best val mIoU {100 * self.best_miou:.2f} %; " if self.best_miou is not None else ""
        return f"{score}model: {self.folder / 'model'}; try: degrid predict {self.folder} IMAGES"


def run(
    config: RunConfig, folder: Path, *, resume: bool = False, start_iteration: int | None = None, quiet: bool = False
) -> RunResult:
    """Train as a config says; everything the run leaves is in `folder`.

    Args:
        folder: the run folder; must not hold a run already, unless `resume`.
        resume: continue the run in `folder` with its own settings; `config` is ignored.
        start_iteration: with `resume`, go on after this many validations; their state was kept. The best model is that
            of the validations from there on.
        quiet: nothing on the console.
    Raises:
        UserError: settings or data that cannot be used, or a folder that is taken.
        Stopped: the user stopped the run; it is saved.
    """
    if resume:
        config = recipes.load(str(folder / "run.json"))
    elif (folder / "run.json").exists():
        raise UserError(f"{folder} holds a run already; continue it with --resume {folder}, or choose another -o")
    _check(config)
    data = config.data
    transform = TrainTransform(data.crop, data.scale, data.flip, data.jitter, data.centred)
    dataset = open_dataset(data.path, data.train)
    settings = _with_steps(config.train, len(dataset))
    _check_num_weights(settings.class_weights, dataset)
    held_out: Dataset | None = open_dataset(data.path, data.val, labels=dataset.labels) if data.val else None
    device = pick_device(settings.device)
    torch.manual_seed(settings.seed)
    interrupted = resume and (folder / "last.ckpt").exists()
    # The weights come from the checkpoint then; what they started from may be gone.
    fresh = not interrupted and not settings.init
    wanted = config.model if fresh else dataclasses.replace(config.model, pretrained=False)
    model = build_model(wanted, dataset.labels)
    anew = start_from(model, settings.init, settings.init_head) if settings.init and not interrupted else []
    model.to(device)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    if settings.batch_norm == "frozen":
        freeze_batch_norm(model)
    if settings.checkpoint_activations:
        checkpoint_activations(model)
    model.scales_in_turn = settings.scales_in_turn
    state = _training_state(config, model)
    cycles = Cycles(settings.eval_every, config.compat) if settings.cyclic else None
    updates = cycles.total(settings.steps) if cycles else settings.steps
    eval_every = cycles.updates if cycles else settings.eval_every
    if start_iteration is not None:
        state.restore(_kept_state(folder, start_iteration, eval_every))
        state.best_miou = -1.0
    elif interrupted:
        state.restore(folder / "last.ckpt")
    if not resume:
        write_json(folder / "run.json", _provenance(config))

    def batches_from(number: int) -> Iterator[Batch]:
        return training_batches(dataset, transform, settings.batch_size, settings.seed, number, data.workers)

    batches = (
        cycles.batches(batches_from, state.step, settings.accumulate)
        if cycles
        else batches_from(state.step * settings.accumulate)
    )
    lr_at = _schedule(config.optim, settings.steps)
    trackers = make_trackers(settings.trackers, folder, configs.to_dict(config), folder.name)
    with RunLog(folder, updates, state.step, quiet, cycles, trackers) as log:
        log.say(_greeting(config, model, dataset, held_out, device, state.step, settings.steps))
        if not state.step:
            log.graph(model, torch.zeros(1, 3, *data.crop, device=device))
        if settings.init and not interrupted:
            some = f" ({', '.join(anew[:3])}{', ...' * (len(anew) > 3)})" if anew else ""
            log.say(f"started from {settings.init}; {len(anew)} tensors start anew{some}")

        def validate(network: nn.Module, step: int) -> Scores:
            assert held_out is not None
            panels = _Panels(held_out)
            found = evaluate(
                network,
                held_out,
                device=str(device),
                precision=settings.precision,
                boundary=False,
                on_image=panels.collect,
            )
            for name, picture in panels.pictures.items():
                log.panel(step, f"val/{name}", picture)
            return found

        train_loop(
            state,
            batches,
            folder,
            log,
            steps=updates,
            lr_at=(lambda update: lr_at(cycles.step(update))) if cycles else lr_at,
            accumulate=settings.accumulate,
            loss_size=settings.loss_size,
            class_weights=_class_weights(settings.class_weights, dataset),
            losses=_losses(settings),
            precision=settings.precision,
            eval_every=eval_every,
            save_every=settings.save_every,
            keep=settings.keep_checkpoints,
            score=TrainingScore(len(dataset.labels), cycles, model.resize) if cycles else None,
            validate=validate if held_out is not None else None,
            publish=lambda network: save(cast(Segmenter, network), folder / "model"),
        )
    return RunResult(folder, state.best_miou if held_out is not None else None)


def _with_steps(settings: TrainConfig, num_images: int) -> TrainConfig:
    """The settings with the steps that their epochs take, where epochs count."""
    if not settings.epochs:
        return settings
    per_epoch = num_images / (settings.batch_size * settings.accumulate)
    steps, eval_every = (max(1, math.ceil(count * per_epoch)) for count in (settings.epochs, 1))
    return dataclasses.replace(settings, steps=steps, eval_every=eval_every)


def _kept_state(folder: Path, iteration: int, eval_every: int) -> Path:
    """The state after a number of validations.

    Raises:
        UserError: it was not kept.
    """
    file = kept(folder, iteration * eval_every)
    if not file.exists():
        steps = sorted(int(found.stem.removeprefix("step_")) for found in folder.glob("step_*.ckpt"))
        there = ", ".join(str(step // eval_every) for step in steps) or "none"
        raise UserError(
            f"the state after iteration {iteration} was not kept: {file} is missing; kept iterations: {there} "
            "(train.keep_checkpoints=true keeps them)"
        )
    return file


def _schedule(optim: OptimConfig, steps: int) -> Callable[[int], float]:
    return schedule(
        optim.schedule,
        optim.lr,
        steps,
        power=optim.power,
        warmup=optim.warmup,
        every=optim.step_every,
        factor=optim.step_factor,
    )


def run_stages(
    config: RunConfig,
    folder: Path,
    *,
    settings: list[str] | None = None,
    resume: bool = False,
    start_iteration: int | None = None,
    quiet: bool = False,
) -> RunResult:
    """Train as a config says, and then as the recipes in `then` say, each from the best model of the one before.

    A later stage takes data, smoothing, device and seed from the first; its folder is that of the first with "_stage2",
    "_stage3", .. added. What could stop it is checked before the first stage begins.

    Args:
        settings: "a.b=c", applied to every later stage too.
        resume: continue where it stopped, in whichever stage that was.
        start_iteration: of the first stage, see `run`.
    Raises:
        UserError, Stopped: see `run`.
    """
    if resume:
        config = recipes.load(str(folder / "run.json"))
    stages = [(config, folder)]
    while stages[-1][0].then:
        following = _next_stage(*stages[-1], settings or [])
        place = folder.with_name(f"{folder.name}_stage{len(stages) + 1}")
        if following.name in [stage.name for stage, _ in stages]:
            raise UserError(f'the recipes named by "then" go round in a circle: {following.name} comes twice')
        if not resume and (place / "run.json").exists():
            raise UserError(f"{place} holds a run already; move it, or choose another -o")
        open_dataset(following.data.path, following.data.train)
        stages.append((following, place))
    for stage, place in stages:
        goes_on = resume and (place / "run.json").exists()
        result = run(
            stage,
            place,
            resume=goes_on,
            start_iteration=start_iteration if place == folder else None,
            quiet=quiet,
        )
    return result


def _next_stage(config: RunConfig, folder: Path, settings: list[str]) -> RunConfig:
    found = recipes.load(config.then)
    return configs.override(
        dataclasses.replace(
            found,
            model=dataclasses.replace(found.model, smoothing=config.model.smoothing),
            data=dataclasses.replace(found.data, path=config.data.path, val=config.data.val),
            train=dataclasses.replace(
                found.train, init=str(folder.absolute()), device=config.train.device, seed=config.train.seed
            ),
        ),
        [setting for setting in settings if not setting.replace(" ", "").startswith(("name=", "then=", "train.init="))],
    )


def _training_state(config: RunConfig, model: Segmenter) -> Training:
    optim = config.optim
    groups = parameter_groups(model, optim.weight_decay, optim.head_factor, optim.head_bias_factor, optim.decay_all)
    optimizer = make_optimizer(optim.name, groups, optim.lr, optim.momentum)
    average = moving_average(model, config.train.ema) if config.train.ema else None
    return Training(model, optimizer, average)


def _check(config: RunConfig) -> None:
    """Refuse settings that could only fail later."""
    settings = config.train
    for path, value in (
        ("train.steps", settings.steps),
        ("train.batch_size", settings.batch_size),
        ("train.accumulate", settings.accumulate),
        ("train.eval_every", settings.eval_every),
        ("optim.step_every", config.optim.step_every),
    ):
        if value < 1:
            raise UserError(f'setting "{path}": expected at least 1, got {value}')
    for path, choice, known in (
        ("train.loss_size", settings.loss_size, LOSS_SIZES),
        ("train.batch_norm", settings.batch_norm, ("train", "frozen")),
        ("train.precision", settings.precision, PRECISIONS),
        ("optim.schedule", config.optim.schedule, SCHEDULES),
    ):
        if choice not in known:
            raise UserError(f'setting "{path}": expected {" or ".join(known)}, got "{choice}"')
    check_trackers(settings.trackers)
    if settings.epochs < 0:
        raise UserError(f'setting "train.epochs": expected 0 (off) or more, got {settings.epochs}')
    if settings.cyclic and (settings.epochs or settings.steps % settings.eval_every):
        raise UserError(
            'setting "train.cyclic": a cycle is train.eval_every steps, so train.steps must be a multiple of it and '
            f"train.epochs 0; got {settings.steps}, {settings.eval_every} and {settings.epochs:g}"
        )
    if not 0 <= settings.ema < 1:
        raise UserError(f'setting "train.ema": expected 0 (off) or a decay below 1, got {settings.ema}')
    losses = _losses(settings)
    if given_class_weights(settings.class_weights) and not uses_class_weights(losses):
        raise UserError(
            f'setting "train.class_weights": numbers have no effect on the loss "{settings.loss}"; set '
            "train.class_weights=none, or add a loss of pixels, as in train.loss=cross_entropy+dice"
        )


def _losses(settings: TrainConfig) -> tuple[Loss, ...]:
    return make_losses(settings.loss, settings.label_smoothing, settings.focal_gamma, settings.ohem_share)


def _check_num_weights(text: str, dataset: Dataset) -> None:
    given, names = given_class_weights(text), dataset.labels.names
    if given and len(given) != len(names):
        raise UserError(
            f'setting "train.class_weights": expected {len(names)} numbers, one per class ({", ".join(names)}), '
            f"got {len(given)}"
        )


def _class_weights(kind: str, dataset: Dataset) -> Tensor | None:
    """Weights that are given, or those of a name from the training set's pixels."""
    given = given_class_weights(kind)
    if given:
        return torch.tensor(given)
    if kind == "none":
        return None
    return median_frequency_weights(torch.tensor(class_pixels(dataset).class_pixels), CLASS_WEIGHTS[kind])


def _provenance(config: RunConfig) -> dict[str, Any]:
    """What it takes to understand and repeat a run."""
    return {
        "config": configs.to_dict(config),
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": {
            "degrid": VERSION,
            "git": _git_hash(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "machine": {
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
    }


def _git_hash() -> str | None:
    """Commit of the source tree this package runs from, with "+" for uncommitted changes; None outside one."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside somebody else's repository: only a tracked file counts.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain") else "")


def _greeting(
    config: RunConfig,
    model: Segmenter,
    dataset: Dataset,
    held_out: Dataset | None,
    device: torch.device,
    start: int,
    steps: int,
) -> str:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    at = f", from step {start}" if start else ""
    return (
        f"{config.model.network} on {config.model.encoder}, output stride {config.model.output_stride}, "
        f"{config.model.smoothing.operator} dilated convolutions, {millions:.1f} M parameters; "
        f"{len(dataset)} training and {len(held_out) if held_out is not None else 0} validation images, "
        f"{len(dataset.labels)} classes; {steps} steps of "
        f"{config.train.batch_size * config.train.accumulate} images on {device}{at}"
    )


class _Panels:
    """Image | truth | prediction of a few images spread over a dataset, for TensorBoard."""

    def __init__(self, dataset: Dataset, count: int = 4) -> None:
        self.wanted = {round(i * (len(dataset) - 1) / max(1, count - 1)) for i in range(count)}
        self.labels = dataset.labels
        self.pictures: dict[str, np.ndarray] = {}

    def collect(self, index: int, sample: Sample, ids: Tensor) -> None:
        if index in self.wanted:
            image = sample.image.permute(1, 2, 0).numpy()
            truth = overlay_classes(image, sample.label.numpy(), self.labels)
            guess = overlay_classes(image, ids.numpy(), self.labels)
            self.pictures[sample.name] = np.concatenate([image, truth, guess], axis=1)
