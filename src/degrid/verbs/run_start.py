"""What a run begins with: its data, its network and its batches; and the same for a worker of asynchronous training."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from degrid.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from degrid.data import (
    Share,
    SourceDataset,
    bands_in,
    batches_by_number,
    notes_of,
    open_dataset,
    repeat_factors,
    training_batches,
)
from degrid.data.inspection.counting import class_counts
from degrid.engine.device import pick_device, to_channels_last
from degrid.engine.training.asynchronous import Worker, pieces_of
from degrid.engine.training.cycles import Cycles
from degrid.engine.training.turns import Turns
from degrid.lookup import some
from degrid.model_folder import initialise_from, other_classes
from degrid.models import (
    Segmenter,
    as_settings,
    checkpoint_activations,
    freeze_batch_norm,
    likely_input,
    stated_input,
    synchronise_batch_norm,
)
from degrid.networks import bands_of, build_model
from degrid.types import Bands, Batch, Dataset, OnProgress, UserError
from degrid.verbs.fixed_crops import freeze_stages
from degrid.verbs.run_settings import idle_settings, loaders_of, make_objective, make_plan, make_state, transform_of


@dataclass(frozen=True)
class RunData:
    """The training and validation data of a run, and what was decided about them."""

    train: Dataset
    val: Dataset | None
    notes: tuple[str, ...]


def _check_channels(dataset: Dataset, path: str, bands: Bands) -> None:
    """Refuse a dataset of the user's own whose images have other channels than it declares.

    Raises:
        UserError: says how it declares them.
    """
    channels = dataset[0].image.shape[0] if len(dataset) else bands.count
    if channels != bands.count:
        raise UserError(
            f"{path}: expected images of {bands.count} channels, got {channels}; a dataset of your own declares other "
            f"channels by its attribute bands = degrid.types.Bands({channels})"
        )


def open_data(config: RunConfig) -> tuple[RunData, RunConfig]:
    """The data, and the settings with what was found in them, which the model and a repeated run keep."""
    data, model = config.data, config.model
    skip = data.skip_bad_shards
    train = open_dataset(data.path, data.train, bands=bands_of(model), accept=data.accept, skip_bad_shards=skip)
    bands = bands_in(train)
    if not isinstance(train, SourceDataset):
        _check_channels(train, data.path, bands)
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
        val = open_dataset(data.path, data.val, train.labels, bands=bands, skip_bad_shards=skip)
        notes += notes_of(val)
    notes += idle_settings(config)
    if val is None and config.train.patience:
        notes.append("train.patience has no effect, since nothing is validated: training continues to its last step")
    if bands.count != 3:
        model = dataclasses.replace(model, in_channels=bands.count)
    if bands.range != "bytes":
        found = bands.range if isinstance(bands.range, str) else tuple(itertools.chain(*bands.range))
        model = dataclasses.replace(model, range=found)
    return RunData(train, val, tuple(dict.fromkeys(notes))), dataclasses.replace(config, model=model)


def start_network(
    config: RunConfig, data: RunData, device: torch.device, interrupted: bool
) -> tuple[Segmenter, tuple[str, ...]]:
    """The network before the first step, and a sentence on its first weights where something is open about them."""
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
    elif isinstance(wanted.pretrained, str) and wanted.mean is None and not stated_input(wanted.pretrained):
        told = (_assumed_input(model, wanted),)
    model.to(device)
    if settings.channels_last:
        to_channels_last(model)
    _set_batch_norms(model, settings)
    if settings.fixed_crops:
        freeze_stages(model)
    if settings.checkpoint_activations:
        checkpoint_activations(model)
    model.scales_in_turn = settings.scales_in_turn
    return model, told


def _assumed_input(model: Segmenter, config: ModelConfig) -> str:
    """The input that weights are assumed to expect if their file does not say, and what to do if that is wrong."""
    expects = model.preprocess
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (expects.mean, expects.std))
    note = f"{config.pretrained} does not say how its images were normalised; taken, as {config.encoder} has it: mean "
    note += f"{mean}, standard deviation {std} of 0 to 255{', BGR' if expects.bgr else ''}"
    words = likely_input(model.encoder) if model.bands.count == 3 else None
    if words is None:
        return f"{note}; if it was another, set model.mean and model.std"
    settings = " ".join(f"model.{each}" for each in as_settings(words))
    return f"{note}. Its batch norm looks like {words}: for that set {settings}"


def _set_batch_norms(model: Segmenter, settings: TrainConfig) -> None:
    """Apply the settings of batch norm, in place."""
    if settings.batch_norm_momentum is not None:
        for norm in (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)):
            norm.momentum = settings.batch_norm_momentum
    if settings.batch_norm == "frozen":
        freeze_batch_norm(model)
    if settings.batch_norm == "synchronised":
        synchronise_batch_norm(model)


def run_batches(
    config: RunConfig, dataset: Dataset, cycles: Cycles | None, step: int, progress: OnProgress, share: Share
) -> Iterator[Batch]:
    """The endless micro-batches of this process from a step on."""
    data, settings = config.data, config.train
    transform, repeats = transform_of(data), _repeats(data, dataset, progress)
    workers = loaders_of(data, pick_device(settings.device).type)

    def batches_from(number: int) -> Iterator[Batch]:
        return training_batches(dataset, transform, share, settings.seed, number, workers, repeats, data.shuffle_buffer)

    if cycles:
        return cycles.batches(batches_from, step, share.pieces)
    return batches_from(step * share.pieces)


def _repeats(data: DataConfig, dataset: Dataset, progress: OnProgress) -> np.ndarray | None:
    """How often each image is shown per epoch, see `repeat_factors`; None: once."""
    rare = data.repeat_rare
    return repeat_factors(class_counts(dataset, progress)[:, :-1] > 0, rare) if rare else None


def make_worker(config: RunConfig, pieces: int) -> tuple[Worker, int]:
    """A worker of asynchronous training, and the number of training images.

    Args:
        config: the server's, with steps instead of epochs.
        pieces: into how many parts the server divides a step.
    Raises:
        UserError: the data cannot be opened here.
    """
    data, config = open_data(config)
    settings, device = config.train, pick_device(config.train.device)
    model, _ = start_network(config, data, device, interrupted=True)
    share = Share.of(settings.batch_size * settings.accumulate // pieces, settings.batch_size)
    repeats = _repeats(config.data, data.train, lambda _: None)
    batch = batches_by_number(
        data.train, transform_of(config.data), share, settings.seed, repeats, config.data.shuffle_buffer
    )
    worker = Worker(
        make_state(config, model),
        lambda turn: [batch(turn * share.pieces + piece) for piece in range(share.pieces)],
        make_objective(settings, data.train, model, device),
        make_plan(config.optim, settings, None, share.pieces),
        settings.seed,
    )
    return worker, len(data.train)


def turn_pieces(settings: TrainConfig, turns: Turns) -> int:
    """Into how many parts the micro-batches of an asynchronous step are divided, where those of some may be left."""
    own = settings.asynchronous
    return turns.divide(1 if own.average_every else pieces_of(settings.accumulate, own.workers))
