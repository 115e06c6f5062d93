"""The training loop, read from top to bottom."""

from __future__ import annotations

import dataclasses
import math
import pickle
import shlex
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from degrid.acceleration.bfloat16 import right_gradients
from degrid.acceleration.training import FastConvolutions
from degrid.contracts import MultiScaleNetwork
from degrid.engine.device import autocast, read_later
from degrid.engine.ranks import gathered, is_first, rank_and_count, share_buffers, summed_over_ranks
from degrid.engine.training.cycles import TrainingScore
from degrid.engine.training.log import RunLog, StepRecord
from degrid.engine.training.objective import Objective
from degrid.engine.training.optimizers import set_learning_rate
from degrid.engine.training.sharding import parts_for, shard_state, whole, whole_copy
from degrid.engine.training.turns import Turns
from degrid.files import atomic_write
from degrid.threads import limited_threads, signals_caught
from degrid.types import Batch, Scores, Tell, UserError
from degrid.weight_names import load_weights

FORMAT = "degrid training state 1"
AT_ONCE = 1.0
"""Seconds within which several stop signals count as one."""


@dataclass
class Training:
    """Everything that changes during training, and how it is saved and restored."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None
    step: int = 0
    best_miou: float = -1.0
    since_best: int = 0
    """Validations since the best one."""
    score: TrainingScore | None = None
    """Counts the predictions of the training crops, in cyclic training."""
    fast: FastConvolutions | None = None
    """Computes convolutions in float32 on the CPU; None: only PyTorch."""
    compiled: bool = False
    """The forward and backward passes are compiled by `torch.compile`."""
    parts: tuple[float, ...] = ()
    """The last step's loss by its parts, in the order of the objective's losses; not saved."""
    weights: Tensor = field(default_factory=lambda: torch.ones(1))
    """The divisors of these parts, for every map; not saved."""
    turns: Turns | None = None
    """Which images asynchronous training has not learned from yet."""
    forward: nn.Module | None = None
    """`Maps` of the model; with several processes the wrapper that adds up their gradients. Made when first used."""
    bare: nn.Module | None = None
    """The model without values, where `model` and `average` are sharded, see `degrid.engine.training.sharding`."""

    def save(self, path: Path) -> None:
        """Write the state; an earlier file stays until the new one is complete.

        Of several processes the first one writes; all must call it.

        Raises:
            UserError: the disk is full, or the path cannot be written to.
        """
        device = next(self.model.parameters()).device
        counts = self.score.counts if self.score else None
        generators = gathered(_generators(device))
        weights, moments = whole(self.model.state_dict()), whole(self.optimizer.state_dict())
        average = whole(self.average.state_dict()) if self.average else None
        if not is_first():
            return
        state: dict[str, Any] = {
            "format": FORMAT,
            "model": weights,
            "optimizer": moments,
            "average": average,
            "step": self.step,
            "best_miou": self.best_miou,
            "since_best": self.since_best,
            "training_confusion": counts,
            "rng": generators[0][0],
            "cuda_rng": generators[0][1],
            "other_generators": generators[1:],
            "turns": self.turns.state() if self.turns else None,
        }
        # Given a path, PyTorch 2.15 says only "unexpected pos" where the disk is full.
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def restore(self, path: Path) -> None:
        """Continue from a state, with as many processes as wrote it or with others.

        Raises:
            UserError: no such file, a damaged one, or the state of another model; or processes see different files.
        """
        state = load_state(path)
        if len(set(steps := gathered(state["step"]))) > 1:
            raise UserError(
                f"the processes find states of different steps in {path}, {', '.join(map(str, steps))}: a network disk "
                "may show an older file for a while after it was replaced; start them again"
            )
        load_weights(self.model, parts_for(self.model, state["model"]), path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            shard_state(self.optimizer)
        except ValueError as error:
            raise UserError(f"the optimiser state in {path} belongs to other settings: {error}") from error
        if (self.average is None) != (state["average"] is None):
            raise UserError(f"{path} was written with another train.ema setting; use the run's own run.json")
        if self.average:
            self.average.load_state_dict(parts_for(self.average, state["average"]))
        self.step, self.best_miou = state["step"], state["best_miou"]
        self.since_best = state.get("since_best", 0)  # older versions did not count
        if self.score and state.get("training_confusion") is not None and is_first():
            self.score.counts = state["training_confusion"]
        if self.turns and state.get("turns"):
            self.turns = Turns(**state["turns"])
        generators = [(state["rng"], state["cuda_rng"]), *state.get("other_generators", ())]
        rank, _ = rank_and_count()
        if rank < len(generators):  # a process that did not exist before continues from its seed
            torch.set_rng_state(generators[rank][0])
            if generators[rank][1] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(generators[rank][1], next(self.model.parameters()).device)

    def network(self) -> nn.Module:
        """What is evaluated and published: the moving average where there is one; every process must call it.

        Of several processes each has running statistics of its own since the last step; they take the first one's.
        """
        network: nn.Module = self.average.module if self.average else self.model
        share_buffers(network)
        return whole_copy(self.bare, network) if self.bare else network


def _generators(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The states of the random generators of the CPU and of the GPU in use."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def load_state(path: Path) -> dict[str, Any]:
    """Read what `Training.save` wrote.

    Raises:
        UserError: the file is missing, cut short or not a training state, or loading it would run code.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"refused to load {path}: it holds more than tensors and plain values, and loading it could run code"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"cannot read the checkpoint {path}: it is damaged or not a checkpoint") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a training state of degrid; expected the last.ckpt of a run folder")
    return state


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to stop and is safe on disk
    """The user stopped the run in `folder`, or what has its runs there; the state is saved."""

    def __init__(self, folder: Path, again: str = "") -> None:
        again = again or f"degrid train --resume {shlex.quote(str(folder))} (resume=...)"
        super().__init__(f"stopped and saved; continue with: {again}")
        self.folder = folder


@dataclass(frozen=True)
class Plan:
    """How long to train, at which rates, and how often to validate and save.

    Attributes:
        steps: optimiser steps of the whole training.
        lr_at: from the step, counted from 0, to the learning rate.
        accumulate: micro-batches per step.
        precision: see `degrid.engine.device.autocast`.
        eval_every: steps between validations; the last step is always validated.
        save_every: steps between checkpoints beside those of validations; 0 for none.
        keep: also keep the state of every validation under a name of its own, see `kept`.
        clip_norm: largest norm of the gradient of all parameters; 0: any.
        patience: stop after this many validations in a row without a better mIoU; 0: never.
        lag: how many steps later the loss of a step is read, so that no step waits for a device that works on its own;
            before anything is saved, all are read. 0: at once.
    """

    steps: int
    lr_at: Callable[[int], float]
    accumulate: int = 1
    precision: str = "float32"
    eval_every: int = 1000
    save_every: int = 0
    keep: bool = False
    clip_norm: float = 0.0
    patience: int = 0
    lag: int = 0

    def validates_at(self, step: int) -> bool:
        """Whether a validation follows this step."""
        return step == self.steps or step % self.eval_every == 0

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        return self.validates_at(step) or bool(self.save_every and step % self.save_every == 0)

    def is_over(self, state: Training) -> bool:
        """Whether patience is."""
        return 0 < self.patience <= state.since_best


@dataclass(frozen=True)
class Done:
    """What was done towards the end of a training.

    Attributes:
        loss: the mean over valid pixels of the last step; if it is not finite, the weights are as before.
        images: how many this process had a gradient computed for.
        parts: the loss by its parts; empty where it has only one.
        steps: how many of the training's steps this was.
        figures: further numbers for the record, by name.
    """

    loss: float
    images: int
    parts: dict[str, float] = field(default_factory=dict)
    steps: int = 1
    figures: dict[str, float] = field(default_factory=dict)

    def known(self) -> Done:
        """The same with its loss, which the device may still be computing."""
        return self


@dataclass(frozen=True)
class _Coming(Done):
    """A step whose loss is not known yet.

    Attributes:
        losses: waits for the losses and gives them.
        names: of the losses.
    """

    losses: Callable[[], tuple[float, ...]] = tuple
    names: tuple[str, ...] = ()

    def known(self) -> Done:
        losses = self.losses()
        return Done(sum(losses), self.images, dict(zip(self.names, losses, strict=False)))  # without names no parts


Advance = Callable[[Training], Done | None]
"""Takes the next step of a training, or several, with the learning rate that the optimiser has; `step` stays.

None: the training is to stop, and the step was given up; the state is that before it.
"""


def in_this_process(batches: Iterator[Batch], objective: Objective, plan: Plan) -> Advance:
    """Steps that this process computes, with others if `torch.distributed` is initialised.

    Args:
        batches: micro-batches, beginning with the first one of the first step.
    """

    def advance(state: Training) -> Done:
        micro = [next(batches) for _ in range(plan.accumulate)]
        if state.score:
            state.score.restart(state.step)
        images = sum(len(batch.image) for batch in micro)
        if plan.lag:
            losses = _step_at_once(state, micro, objective, plan)
            return _Coming(math.nan, images, losses=losses, names=objective.names)
        loss = train_step(state, micro, objective, plan.precision, plan.clip_norm)
        parts = dict(zip(objective.names, state.parts, strict=False))
        return Done(loss, images, parts)

    return advance


@limited_threads()
def train(
    state: Training,
    advance: Advance,
    folder: Path,
    log: RunLog,
    plan: Plan,
    *,
    validate: Callable[[nn.Module, int], Scores] | None = None,
    publish: Callable[[nn.Module], None] = lambda model: None,
    stop: threading.Event | None = None,
) -> None:
    """Train until `plan.steps` or `plan.patience` is over, saving `last.ckpt`, and `best.ckpt` with the published model
    at the best mIoU.

    Args:
        state: model, optimiser and the step to start from.
        advance: takes the steps; of several at once the last must be one after which the plan validates or saves, or
            none before it.
        validate: (model, step) -> scores; without it the newest model counts as the best.
        publish: writes the model for use.
        stop: is set when the training is to stop, for an `advance` that may give its step up.
    Raises:
        UserError: the loss is not finite; the message names the step.
        Stopped: on Ctrl-C or SIGTERM, after the state was saved.
    """
    unseen = _Unseen(plan.lag, folder, log)
    stop = threading.Event() if stop is None else stop
    with _stop_requested(stop, log.tell):
        while state.step < plan.steps and not plan.is_over(state):
            unseen.begin()
            lr = plan.lr_at(state.step)
            set_learning_rate(state.optimizer, lr)
            done = advance(state)
            if done is None:
                unseen.look()
                state.save(folder / "last.ckpt")
                raise Stopped(folder)
            state.step += done.steps
            miou = state.score.miou if state.score else None
            unseen.add(StepRecord(state.step, math.nan, lr, math.nan, miou), done)
            if plan.saves_at(state.step):
                unseen.look()
            if plan.validates_at(state.step):
                _validate_and_publish(state, folder, log, validate, publish)
                if plan.keep:
                    state.save(kept(folder, state.step))
            # Signals reach the processes at different times; they stop after the same step.
            stopping = bool(summed_over_ranks(torch.tensor(int(stop.is_set()))))
            if stopping or plan.saves_at(state.step):
                unseen.look()
                state.save(folder / "last.ckpt")
            if stopping and state.step < plan.steps:
                raise Stopped(folder)
        if state.step < plan.steps:
            log.say(f"stopped after step {state.step}: {state.since_best} validations in a row were not better")


class _Unseen:
    """The steps whose losses have not been read yet, the oldest first.

    Args:
        lag: how many there may be.
        folder: of the run.
        log: gets a record of each.
    """

    def __init__(self, lag: int, folder: Path, log: RunLog) -> None:
        self._lag, self._folder, self._log = lag, folder, log
        self._steps: deque[tuple[StepRecord, Done]] = deque()
        self._since = time.monotonic()

    def begin(self) -> None:
        """A step begins."""
        if not self._steps:
            self._since = time.monotonic()

    def add(self, record: StepRecord, done: Done) -> None:
        """A step is on its way. Raises: see `look`."""
        self._steps.append((record, done))
        self.look(self._lag)

    def look(self, lag: int = 0) -> None:
        """Look at all losses but the last `lag`.

        Raises:
            UserError: one is not finite; the message names its step.
        """
        while len(self._steps) > lag:
            record, done = self._steps.popleft()
            done = done.known()
            if not math.isfinite(done.loss):
                raise UserError(
                    f"the loss is {done.loss} at step {record.step - done.steps + 1} (learning rate {record.lr:.3g}); "
                    f"the last good state is {self._folder / 'last.ckpt'}; try a lower optim.lr or "
                    "train.precision=float32"
                )
            images = int(summed_over_ranks(torch.tensor(done.images)))
            now = time.monotonic()
            per_second, self._since = images / max(now - self._since, 1e-9), now
            self._log.step(
                dataclasses.replace(
                    record, loss=done.loss, images_per_second=per_second, parts=done.parts, figures=done.figures
                )
            )


def kept(folder: Path, step: int) -> Path:
    """The file that keeps the state after a step."""
    return folder / f"step_{step}.ckpt"


def train_step(
    state: Training,
    micro: list[Batch],
    objective: Objective,
    precision: str = "float32",
    clip_norm: float = 0.0,
) -> float:
    """One optimiser step on some micro-batches, as if they were one batch.

    A multi-scale network has a loss for each scale and one for their maximum, which are added up (DeepLab v2, arXiv
    1606.00915 section 4.1.2). Each is a mean over all micro-batches of all processes, however void pixels are spread
    over them.

    Args:
        micro: what the step is computed from; in each process its share.
        clip_norm: see `Plan`.
    Returns:
        The loss; 0, with a gradient of 0, if no pixel is valid. If it is not finite, the weights stay as they are.
    """
    compute_gradients(state, micro, objective, precision)
    return take_step(state, clip_norm)


def compute_gradients(state: Training, micro: list[Batch], objective: Objective, precision: str) -> None:
    """Compute the gradients of a step in place of earlier ones, and its loss by parts; see `train_step`."""
    state.parts = tuple(_backward(state, micro, objective, precision).tolist())


def take_step(state: Training, clip_norm: float = 0.0) -> float:
    """Step along the gradients, unless the loss, which is returned, is not finite."""
    loss = sum(state.parts)
    if math.isfinite(loss):
        _follow_gradients(state, clip_norm)
    return loss


def _follow_gradients(state: Training, clip_norm: float) -> None:
    if clip_norm:
        nn.utils.clip_grad_norm_(state.model.parameters(), clip_norm)
    state.optimizer.step()
    if state.average:
        state.average.update_parameters(state.model)


def _step_at_once(
    state: Training, micro: list[Batch], objective: Objective, plan: Plan
) -> Callable[[], tuple[float, ...]]:
    """`train_step` that does not wait for the loss: what it returns does. The step is taken whatever the loss is."""
    losses = read_later(_backward(state, micro, objective, plan.precision))
    _follow_gradients(state, plan.clip_norm)
    return losses


def _backward(state: Training, micro: list[Batch], objective: Objective, precision: str) -> Tensor:
    """Compute the gradients of a step in place of earlier ones; returns its loss by parts."""
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    with state.fast or nullcontext(), right_gradients():
        return _gradients(state, micro, objective, precision)


def _gradients(state: Training, micro: list[Batch], objective: Objective, precision: str) -> Tensor:
    if state.forward is None:  # a compiled module has no truth value
        state.forward = parallel(state.model, state.compiled)
    forward = state.forward
    device = next(state.model.parameters()).device
    weights, parts = torch.zeros((), device=device), torch.zeros(len(objective.losses), device=device)
    for index, batch in enumerate(micro):
        image = batch.image.to(device, memory_format=torch.channels_last, non_blocking=True)
        with _adding_up(forward, index == len(micro) - 1):
            with autocast(device, precision):
                maps = forward(image)
            if index == 0:
                # Known before the first backward pass, so that every gradient is divided by the final number.
                sizes = [tuple(each.shape[-2:]) for each in maps]
                own = torch.stack([objective.weights(sizes, other.label.to(device)) for other in micro]).sum(0)
                weights = summed_over_ranks(own).to(device)
            shares = objective.totals(maps, batch.label.to(device)) / weights.clamp(min=1e-12)
            # The wrapper takes the mean of the processes' gradients, where their sum is right.
            (shares.sum() * rank_and_count()[1]).backward()  # type: ignore[no-untyped-call]
        parts = parts + shares.detach().reshape(len(maps), -1).sum(0)
        if state.score:  # the last map is the maximum over the scales, or the only one
            state.score.count(maps[-1], batch.label.to(device))
    state.weights = weights
    return summed_over_ranks(parts)


class Maps(nn.Module):
    """Computes the logits that the loss needs from images: the model's own, or those of every scale and of their
    maximum."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits [N,C,h,w] by map, of images [N,3,H,W]."""
        model: Any = self.model
        if isinstance(model, MultiScaleNetwork) and model.scales:
            scales = model.scale_logits(image)
            return [*scales, model.fused(scales)]
        logits: Tensor = model(image)
        return [logits]


def parallel(model: nn.Module, compiled: bool = False) -> nn.Module:
    """`Maps` of a model; with several processes its backward pass gives each the mean of their gradients."""
    maps: nn.Module = Maps(model)
    if compiled:
        maps = cast(nn.Module, torch.compile(maps))
    if rank_and_count()[1] == 1:
        return maps
    # A user's network may have parameters that a step does not use.
    return DistributedDataParallel(maps, find_unused_parameters=True)


def _adding_up(forward: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Gradients of several processes are exchanged once per step, in the last backward pass."""
    if exchange := getattr(forward, "set_requires_gradient_sync", None):  # sharded
        exchange(last)
    if last or not isinstance(forward, DistributedDataParallel):
        return nullcontext()
    exchanged_later: AbstractContextManager[None] = forward.no_sync()
    return exchanged_later


def _validate_and_publish(
    state: Training,
    folder: Path,
    log: RunLog,
    validate: Callable[[nn.Module, int], Scores] | None,
    publish: Callable[[nn.Module], None],
) -> None:
    network = state.network()
    if validate is None:
        publish(network)
        return
    found = validate(network, state.step)
    log.validation(state.step, found)
    state.since_best += 1
    if found.miou > state.best_miou:
        state.best_miou, state.since_best = found.miou, 0
        publish(network)
        state.save(folder / "best.ckpt")


@contextmanager
def _stop_requested(stop: threading.Event, tell: Tell) -> Iterator[None]:
    """Ctrl-C and SIGTERM set the event, so that the state is saved first; a second signal kills.

    Signals within `AT_ONCE` are one: `timeout` and job systems send them to a process and to its group.
    """
    first: list[float] = []

    def request(number: int, frame: object) -> None:
        first.append(time.monotonic())
        if len(first) == 1:
            stop.set()
            tell("stopping after this step, and saving; once more stops at once, without saving")
        elif first[-1] - first[0] > AT_ONCE:
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    with signals_caught(request) as previous:
        yield
