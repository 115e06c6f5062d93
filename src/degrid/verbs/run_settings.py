"""The settings of a run: checked before it begins, and turned into the parts that they name."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable

import torch

from degrid.acceleration.training import FastConvolutions
from degrid.config import DataConfig, OptimConfig, RunConfig, TrainConfig, to_dict
from degrid.data import Loaders, TrainTransform
from degrid.data.inspection.counting import class_counts
from degrid.data.shards.places import is_address
from degrid.engine.ranks import rank_and_count
from degrid.engine.training.cycles import Cycles
from degrid.engine.training.loop import Maps, Plan, Training
from degrid.engine.training.losses import Loss, loss_names, make_losses, uses_class_weights
from degrid.engine.training.objective import (
    CLASS_WEIGHTS,
    LOSS_SIZES,
    Objective,
    given_class_weights,
    median_frequency_weights,
)
from degrid.engine.training.optimizers import make_optimizer, moving_average, parameter_groups, schedule
from degrid.engine.training.sharding import shard, skeleton
from degrid.engine.training.trackers import check_trackers
from degrid.lookup import flat
from degrid.models import Segmenter
from degrid.models.activation_checkpointing import blocks
from degrid.threads import usable_cores
from degrid.types import PRECISIONS, Dataset, OnProgress, UserError


def check_settings(config: RunConfig) -> None:
    """Refuse settings that could only fail later.

    Raises:
        UserError: names the first such setting.
    """
    settings = config.train
    _check_numbers(config)
    for path, choice, known in (
        ("train.loss_size", settings.loss_size, LOSS_SIZES),
        ("train.batch_norm", settings.batch_norm, ("train", "frozen", "synchronised")),
        ("train.precision", settings.precision, PRECISIONS),
        ("train.sharding", settings.sharding, ("none", "fsdp2")),
    ):
        if choice not in known:
            raise UserError(f'setting "{path}": expected {" or ".join(known)}, got "{choice}"')
    transform_of(config.data)
    _schedule(config.optim, settings.steps)
    check_trackers(settings.trackers)
    if settings.cyclic and (settings.epochs or settings.steps % settings.eval_every):
        raise UserError(
            'setting "train.cyclic": a cycle is train.eval_every steps, so train.steps must be a multiple of it and '
            f"train.epochs 0; got {settings.steps}, {settings.eval_every} and {settings.epochs:g}"
        )
    _check_order(config.data)
    if settings.sharding != "none" and settings.compile:
        raise UserError(
            "setting train.sharding=fsdp2: cannot be combined with train.compile=true; choose one of the two"
        )
    _check_asynchronous(settings)
    losses = losses_of(settings)
    if given_class_weights(settings.class_weights) and not uses_class_weights(losses):
        raise UserError(
            f'setting "train.class_weights": numbers have no effect on the loss "{settings.loss}"; set '
            "train.class_weights=none, or add a per-pixel loss, as in train.loss=cross_entropy+dice"
        )


_AT_LEAST = {
    1: ("train.steps", "train.batch_size", "train.accumulate", "train.eval_every", "train.timeout", "optim.step_every"),
    0: (
        *("train.epochs", "train.patience", "train.save_every", "train.seed", "optim.lr", "optim.warmup"),
        *("optim.weight_decay", "optim.power", "optim.step_factor", "optim.clip_norm"),
        *("optim.head_factor", "optim.head_bias_factor", "optim.smoothing_factor"),
    ),
}


def _check_numbers(config: RunConfig) -> None:
    """Refuse numbers outside their range, NaN and infinity."""
    given = flat(to_dict(config))
    for least, paths in _AT_LEAST.items():
        for path in paths:
            if not least <= given[path] < math.inf:
                raise UserError(f'setting "{path}": expected at least {least}, got {given[path]}')
    for path in ("train.ema", "optim.momentum"):
        if not 0 <= given[path] < 1:
            raise UserError(f'setting "{path}": expected 0 (off) or a number below 1, got {given[path]}')
    if not 0 <= (config.train.batch_norm_momentum or 0) <= 1:
        raise UserError(
            f'setting "train.batch_norm_momentum": expected 0 to 1, or none, got {config.train.batch_norm_momentum}'
        )


_IDLE: tuple[tuple[str, Callable[[RunConfig], object], str], ...] = (
    ("train.init_head", lambda c: c.train.init, "without train.init"),
    ("train.batch_norm_momentum", lambda c: c.train.batch_norm != "frozen", "with train.batch_norm=frozen"),
    ("train.scales_in_turn", lambda c: c.model.scales, "without model.scales"),
    ("train.focal_gamma", lambda c: "focal" in c.train.loss, "without focal in train.loss"),
    ("train.ohem_share", lambda c: "ohem" in c.train.loss, "without ohem in train.loss"),
    ("optim.power", lambda c: c.optim.schedule == "poly" or ":" in c.optim.schedule, "with another schedule than poly"),
    ("optim.step_every", lambda c: c.optim.schedule == "step" or ":" in c.optim.schedule, "with another than step"),
    ("train.sharding", lambda c: rank_and_count()[1] > 1, "in one process"),
    ("train.asynchronous.average_every", lambda c: c.train.asynchronous.workers, "without workers (--async)"),
    ("train.asynchronous.max_staleness", lambda c: c.train.asynchronous.workers, "without workers (--async)"),
)


def idle_settings(config: RunConfig) -> list[str]:
    """A sentence on each setting that was changed, but does nothing beside the others."""
    given, usual = flat(to_dict(config)), flat(to_dict(RunConfig()))
    return [
        f"{path} has no effect {why}" for path, works, why in _IDLE if given[path] != usual[path] and not works(config)
    ]


def transform_of(data: DataConfig) -> TrainTransform:
    """The augmentation of a run.

    Raises:
        UserError: a setting is out of range.
    """
    return TrainTransform(data.crop, data.scale, data.flip, data.jitter, data.centred, data.void_border)


def _check_order(data: DataConfig) -> None:
    if not 0 <= data.repeat_rare <= 1:
        raise UserError(f'setting "data.repeat_rare": expected 0 (off) to 1, got {data.repeat_rare:g}')
    loaders_of(data, "cpu")
    if data.shuffle_buffer < 0:
        raise UserError(f'setting "data.shuffle_buffer": expected 0 (off) or more, got {data.shuffle_buffer}')


_RAY = re.compile(r"auto|local|(ray://)?([\w.-]+|\[[\da-fA-F:.]+\]):\d{1,5}")
"""Addresses of Ray."""


def _check_asynchronous(settings: TrainConfig) -> None:
    """Refuse settings that workers cannot follow without waiting for one another."""
    own = settings.asynchronous
    if min(own.workers, own.average_every, own.max_staleness or 0, own.cores - 1) < 0:
        raise UserError(
            "settings of train.asynchronous: expected cores of at least 1, and workers, average_every and "
            f"max_staleness of at least 0; got {own.cores}, {own.workers}, {own.average_every} and {own.max_staleness}"
        )
    if not own.workers:
        return
    for path, impossible, instead in (
        ("train.cyclic=true", settings.cyclic, "set train.cyclic=false"),
        ("train.sharding=fsdp2", settings.sharding != "none", "set train.sharding=none"),
        ("train.batch_norm=synchronised", settings.batch_norm == "synchronised", "set train.batch_norm=frozen"),
    ):
        if impossible:
            raise UserError(f"setting {path}: cannot be combined with train.asynchronous (--async); {instead}")
    if own.address and not _RAY.fullmatch(own.address):
        raise UserError(
            'setting "train.asynchronous.address" (--address): expected HOST:PORT, such as node1:6379, ray://HOST:PORT '
            f'or auto, got "{own.address}"'
        )
    if rank_and_count()[1] > 1:
        raise UserError(
            "asynchronous training (--async) has workers of its own; start it without torchrun or --devices"
        )
    if importlib.util.find_spec("ray") is None:
        raise UserError("asynchronous training (--async) needs Ray; install it with: pip install degrid[ray]")


def check_class_weights(weights: str | tuple[float, ...], dataset: Dataset) -> None:
    """Refuse numbers of another count than the dataset's classes.

    Raises:
        UserError: there are more or fewer.
    """
    given, names = given_class_weights(weights), dataset.labels.names
    if given and len(given) != len(names):
        raise UserError(
            f'setting "train.class_weights": expected {len(names)} numbers, one per class ({", ".join(names)}), '
            f"got {len(given)}"
        )


def with_steps(settings: TrainConfig, num_images: int, processes: int = 1) -> TrainConfig:
    """The settings with epochs, if they are set, as steps.

    Args:
        num_images: of an epoch.
        processes: how many shared a step when the run began.
    """
    if not settings.epochs:
        return settings
    per_epoch = num_images / (settings.batch_size * settings.accumulate * processes)
    steps, eval_every = (max(1, math.ceil(count * per_epoch)) for count in (settings.epochs, 1))
    return dataclasses.replace(settings, steps=steps, eval_every=eval_every)


def make_plan(optim: OptimConfig, settings: TrainConfig, cycles: Cycles | None, pieces: int, lag: int = 0) -> Plan:
    """How long to train and at which rates.

    Args:
        pieces: micro-batches of a step in this process.
        settings: with the number of steps, see `with_steps`.
        cycles: of a cyclic training, in which updates and steps of the schedule may differ.
        lag: see `Plan`.
    """
    lr_at = _schedule(optim, settings.steps)
    return Plan(
        cycles.total(settings.steps) if cycles else settings.steps,
        (lambda update: lr_at(cycles.step(update))) if cycles else lr_at,
        pieces,
        settings.precision,
        cycles.updates if cycles else settings.eval_every,
        settings.save_every,
        settings.keep_checkpoints,
        optim.clip_norm,
        settings.patience,
        lag,
    )


def loaders_of(data: DataConfig, device: str) -> int | Loaders:
    """How many processes load the training images of a process.

    Args:
        device: the kind of device that trains, "cpu" or "cuda".
    Raises:
        UserError: neither a number nor "auto".
    """
    if data.workers != "auto":
        if not (isinstance(data.workers, int) and data.workers >= 0):
            raise UserError(f'setting "data.workers": expected auto, 0 or a number of processes, got {data.workers}')
        return data.workers
    others = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1
    # Waiting for a server or a GPU leaves the processor idle.
    if device == "cpu" and not is_address(data.path):
        return Loaders(max(0, others), worth=0.1)
    return Loaders(max(1, others))


def make_objective(
    settings: TrainConfig, dataset: Dataset, model: Segmenter, device: torch.device, progress: OnProgress | None = None
) -> Objective:
    """What training minimises; class weights may need a pass over the training set's labels."""
    kind, weights = settings.class_weights, None
    if given := given_class_weights(kind):
        weights = torch.tensor(given, device=device)
    elif kind != "none":
        counted = torch.from_numpy(class_counts(dataset, progress).sum(0)[:-1])
        weights = median_frequency_weights(counted, CLASS_WEIGHTS[str(kind)]).to(device)
    names = loss_names(settings.loss)
    return Objective(losses_of(settings), settings.loss_size, weights, model.resize, names if len(names) > 1 else ())


def make_state(config: RunConfig, model: Segmenter) -> Training:
    """A model with its optimiser and moving average, before the first step."""
    optim = config.optim
    average = moving_average(model, config.train.ema) if config.train.ema else None
    forward = bare = None
    if config.train.sharding == "fsdp2" and rank_and_count()[1] > 1:
        bare, forward = skeleton(model), Maps(model)
        shard(forward, blocks(model))
        if average:
            shard(average.module, blocks(average.module))
    groups = parameter_groups(
        model,
        optim.weight_decay,
        optim.head_factor,
        optim.head_bias_factor,
        optim.decay_all,
        optim.smoothing_factor,
    )
    optimizer = make_optimizer(optim.name, groups, optim.lr, optim.momentum, optim.options)
    compiled = config.train.compile
    fast = config.train.fast and not compiled and forward is None and next(model.parameters()).device.type == "cpu"
    return Training(
        model,
        optimizer,
        average,
        fast=FastConvolutions() if fast else None,
        compiled=compiled,
        forward=forward,
        bare=bare,
    )


def _schedule(optim: OptimConfig, steps: int) -> Callable[[int], float]:
    return schedule(
        optim.schedule,
        optim.lr,
        steps,
        power=optim.power,
        warmup=optim.warmup,
        step_every=optim.step_every,
        step_factor=optim.step_factor,
        options=optim.schedule_options,
    )


def losses_of(settings: TrainConfig) -> tuple[Loss, ...]:
    """What `train.loss` and its options stand for."""
    return make_losses(
        settings.loss, settings.label_smoothing, settings.focal_gamma, settings.ohem_share, settings.loss_options
    )
