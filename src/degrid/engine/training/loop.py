"""The training loop, read from top to bottom."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from degrid.contracts import MultiScaleNetwork, convention_of
from degrid.engine.device import autocast
from degrid.engine.training.cycles import TrainingScore
from degrid.engine.training.log import RunLog
from degrid.engine.training.losses import CrossEntropy, Loss, Objective
from degrid.engine.training.optim import set_learning_rate
from degrid.engine.training.training_state import load_state, load_weights, save_state
from degrid.types import Batch, Scores, UserError


@dataclass
class Training:
    """Everything that changes during training, and what it takes to put it on disk and back."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None
    step: int = 0
    best_miou: float = -1.0

    def save(self, path: Path) -> None:
        """Write the state atomically."""
        device = next(self.model.parameters()).device
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "step": self.step,
            "best_miou": self.best_miou,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }
        save_state(path, state)

    def restore(self, path: Path) -> None:
        """Continue from a state.

        Raises:
            UserError: no such file, a damaged one, or the state of another model.
        """
        state = load_state(path)
        load_weights(self.model, state["model"], path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise UserError(f"the optimiser state in {path} belongs to other settings: {error}") from error
        if (self.average is None) != (state["average"] is None):
            raise UserError(f"{path} was written with another train.ema setting; use the run's own run.json")
        if self.average:
            self.average.load_state_dict(state["average"])
        self.step, self.best_miou = state["step"], state["best_miou"]
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_rng"], next(self.model.parameters()).device)

    @property
    def weights(self) -> nn.Module:
        """What is evaluated and published: the moving average where there is one."""
        averaged: nn.Module | None = self.average.module if self.average else None
        return averaged or self.model


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to stop and is safe on disk
    """The user stopped the run; its state is saved."""


def train(
    state: Training,
    batches: Iterator[Batch],
    folder: Path,
    log: RunLog,
    *,
    steps: int,
    lr_at: Callable[[int], float],
    accumulate: int = 1,
    loss_size: str = "label",
    class_weights: Tensor | None = None,
    losses: tuple[Loss, ...] = (CrossEntropy(),),
    precision: str = "float32",
    eval_every: int = 1000,
    save_every: int = 0,
    keep: bool = False,
    score: TrainingScore | None = None,
    validate: Callable[[nn.Module, int], Scores] | None = None,
    publish: Callable[[nn.Module], None] = lambda model: None,
) -> None:
    """Train until `steps`, saving `last.ckpt`, and `best.ckpt` with the published model at the best mIoU.

    Args:
        state: model, optimiser and the step to start from.
        batches: micro-batches, beginning with the first one of step `state.step`.
        folder: the run folder.
        lr_at: base learning rate at a step, from 0.
        accumulate: micro-batches per step; the gradient is that of the mean over all their valid pixels.
        loss_size, class_weights: see `degrid.engine.training.losses.Objective`; class_weights [C].
        losses: are added up; see `degrid.engine.training.loss_table.make_losses`.
        eval_every, save_every: in steps; save_every 0 saves at validations only. The last step does both.
        keep: also save the state of every validation under a name of its own, see `kept`.
        score: counts mIoU on the training crops.
        validate: (model, step) -> scores; without it the newest model counts as the best.
        publish: writes the model for use.
    Raises:
        UserError: the loss is not finite; the message names the step.
        Stopped: on Ctrl-C or SIGTERM, after the state was saved.
    """
    device = next(state.model.parameters()).device
    class_weights = class_weights.to(device) if class_weights is not None else None
    with _stop_requested() as stop:
        while state.step < steps:
            began = time.monotonic()
            lr = lr_at(state.step)
            set_learning_rate(state.optimizer, lr)
            micro = [next(batches) for _ in range(accumulate)]
            if score:
                score.restart(state.step)
            loss = _step(state, micro, device, loss_size, class_weights, precision, losses, score)
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss is {loss} at step {state.step + 1} (learning rate {lr:.3g}); the last good state is "
                    f"{folder / 'last.ckpt'}; try a lower optim.lr or train.precision=float32"
                )
            state.step += 1
            seconds = time.monotonic() - began
            images_per_second = sum(len(batch.image) for batch in micro) / seconds
            log.step(state.step, loss, lr, images_per_second, score.miou if score else None)

            finished = state.step == steps
            if finished or state.step % eval_every == 0:
                _validate_and_publish(state, folder, log, validate, publish)
                state.save(folder / "last.ckpt")
                if keep:
                    state.save(kept(folder, state.step))
            elif stop.is_set() or (save_every and state.step % save_every == 0):
                state.save(folder / "last.ckpt")
            if stop.is_set() and not finished:
                raise Stopped


def kept(folder: Path, step: int) -> Path:
    """Where the state after a step is kept."""
    return folder / f"step_{step}.ckpt"


def _step(
    state: Training,
    micro: list[Batch],
    device: torch.device,
    loss_size: str,
    class_weights: Tensor | None,
    precision: str,
    losses: tuple[Loss, ...] = (CrossEntropy(),),
    score: TrainingScore | None = None,
) -> float:
    """One optimiser step; the mean loss over the valid pixels of all micro-batches, or over those batches.

    A multi-scale network has a loss for each scale and one for their maximum, which are added up (DeepLab v2, arXiv
    1606.00915 section 4.1.2); each is a mean over all micro-batches, however their void pixels are spread.
    """
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    objective = Objective(losses, loss_size, class_weights, convention_of(state.model))
    total = weights = torch.zeros((), device=device)
    for index, batch in enumerate(micro):
        image = batch.image.to(device, memory_format=torch.channels_last, non_blocking=True)
        with autocast(device, precision):
            maps = _maps(state.model, image)
        if index == 0:
            # Known before the first backward pass, so that every gradient is divided by the final number.
            sizes = [tuple(each.shape[-2:]) for each in maps]
            weights = torch.stack([objective.weights(sizes, other.label.to(device)) for other in micro]).sum(0)
        part = (objective.totals(maps, batch.label.to(device)) / weights.clamp(min=1e-12)).sum()
        part.backward()  # type: ignore[no-untyped-call]
        total = total + part.detach()
        if score:  # the last map is the maximum over the scales, or the only one
            score.count(maps[-1], batch.label.to(device))
    loss = float(total)  # a step without any valid pixel has loss and gradient 0
    if math.isfinite(loss):
        state.optimizer.step()
        if state.average:
            state.average.update_parameters(state.model)
    return loss


def _maps(model: nn.Module, image: Tensor) -> list[Tensor]:
    """The logits that the loss is taken of: of every scale and of their maximum, or the model's only ones."""
    if not (isinstance(model, MultiScaleNetwork) and model.scales):
        return [model(image)]
    scales = model.scale_logits(image)
    return [*scales, model.fused(scales)]


def _validate_and_publish(
    state: Training,
    folder: Path,
    log: RunLog,
    validate: Callable[[nn.Module, int], Scores] | None,
    publish: Callable[[nn.Module], None],
) -> None:
    if validate is None:
        publish(state.weights)
        return
    found = validate(state.weights, state.step)
    log.validation(state.step, found)
    if found.miou > state.best_miou:
        state.best_miou = found.miou
        publish(state.weights)
        state.save(folder / "best.ckpt")


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that the step in progress is finished; a second one kills."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals can only be caught in the main thread
        return

    def request(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, previous[number])
        print("\nstopping after this step, and saving; once more stops at once, without saving", file=sys.stderr)

    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
