"""Asynchronous training: workers compute gradients with copies of the weights while a server keeps changing them.

The server is the process with the training loop: it holds weights, optimiser and moving average, and `Server` is how
the loop advances. A worker is given all it needs with every task, so that any of them may be lost and replaced.
How tasks and results travel is the business of a `Crew`.

Source: Downpour SGD, Dean et al., NIPS 2012, section 4.1; its use here, DeepLab v3 (arXiv 1706.05587), appendix A.
Gradients of a part of a step, which wait for one another: softsync, Zhang et al. (arXiv 1511.05950), section 3.1.
Weights ahead of their time: SpecTrain, Chen et al. (arXiv 1809.02839), equation 4, there with the momentum of SGD.
Periodic averaging: Stich (arXiv 1805.09767), and of momentum, too, Yu et al. (arXiv 1905.03817).
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from degrid.engine.training.loop import Done, Plan, Training, compute_gradients, take_step, train_step
from degrid.engine.training.objective import Objective
from degrid.engine.training.optimizers import set_learning_rate
from degrid.engine.training.turns import Turns
from degrid.threads import limited_threads
from degrid.types import Batch, Tell

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """What a worker is to do.

    Attributes:
        step: after which the weights it gets are those.
        turns: numbers of the batches to use, one per step.
        alone: take these steps, instead of computing the gradient of one.
        ahead: the batch that the worker's next task begins with.
        used: how many gradients the server had used when it gave this task.
    """

    step: int
    turns: tuple[int, ...]
    alone: bool = False
    ahead: int | None = None
    used: int = 0


@dataclass(frozen=True)
class Copy:
    """Parameters and buffers by name; and, where the worker takes steps, the state of the optimiser."""

    tensors: Arrays
    optimizer: dict[str, Any] | None = None


@dataclass(frozen=True)
class Result:
    """What a worker found.

    Attributes:
        parts: the loss of the last step by its parts.
        images: that it was computed from.
        copy: buffers, and what else the worker's own steps changed.
        gradients: of the parameters in their order, None where there is none.
        weight: what the first part of the loss is a mean over: the number of valid pixels, or the sum of their class
            weights.
    """

    parts: tuple[float, ...]
    images: int
    copy: Copy
    gradients: tuple[np.ndarray | None, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Answer:
    """A worker by its number, and its result; None if the worker was lost."""

    worker: int
    result: Result | None


class Crew(Protocol):
    """Workers by number, wherever they are."""

    def share(self, copy: Copy) -> Any:
        """A copy that does not change any more, to be passed to `give`."""

    def free(self) -> list[int]:
        """Those that are ready for a task."""

    def give(self, worker: int, task: Task, copy: Any) -> None:
        """Have a free worker do something."""

    def wait(self, stop: threading.Event) -> Answer | None:
        """The next answer; None if instead another worker has become free, or the event has been set.

        Raises:
            UserError: none came in time, or a worker can do nothing.
        """


class Worker:
    """Computes what tasks ask for; only the network and the next images stay from one to the next.

    Args:
        state: a network of the kind that the server has; its weights do not matter.
        batches: from a turn to the micro-batches of its step; called in a thread of its own, one step ahead.
        plan: the server's.
        seed: of dropout.
    """

    def __init__(
        self, state: Training, batches: Callable[[int], list[Batch]], objective: Objective, plan: Plan, seed: int = 0
    ) -> None:
        self._state, self._batches, self._objective = state, batches, objective
        self._plan, self._seed = plan, seed
        self._loader = ThreadPoolExecutor(1, "loader")
        self._coming: dict[int, Future[list[Batch]]] = {}

    @limited_threads()
    def __call__(self, task: Task, copy: Copy) -> Result:
        """A gradient at the given weights, or the weights after some steps; it depends on nothing else."""
        state, plan, images = self._state, self._plan, 0
        _load(state, copy)
        for step, (turn, following) in enumerate(pairwise((*task.turns, task.ahead)), start=task.step):
            micro = self._loaded(cast(int, turn), following)
            torch.manual_seed(int(np.random.SeedSequence([self._seed, cast(int, turn)]).generate_state(1)[0]))
            images += sum(len(batch.image) for batch in micro)
            if not task.alone:
                compute_gradients(state, micro, self._objective, plan.precision)
                gradients = tuple(None if p.grad is None else _array(p.grad) for p in state.model.parameters())
                copied = Copy(_arrays(dict(state.model.named_buffers())))
                return Result(state.parts, images, copied, gradients, float(state.weights[0]))
            set_learning_rate(state.optimizer, plan.lr_at(step))
            if not math.isfinite(train_step(state, micro, self._objective, plan.precision, plan.clip_norm)):
                break
        return Result(state.parts, images, copy_of(state, with_optimizer=True))

    def _loaded(self, turn: int, following: int | None) -> list[Batch]:
        """The micro-batches of a turn, while those of the following one are being loaded."""
        wanted = [turn] if following is None else [turn, following]
        self._coming = {each: self._coming.get(each) or self._loader.submit(self._batches, each) for each in wanted}
        return self._coming[turn].result()


@dataclass
class Figures:
    """How asynchronous training went since this process began it.

    Attributes:
        steps: that the weights have taken.
        seconds: spent on them, without validations and without the time in which no worker was there.
        gradients: how many were used.
        staleness_sum: of all these; the staleness of a gradient is how many steps the weights took while it was
            computed.
        staleness_max: the largest.
        dropped: gradients that were too stale.
        lost: workers that were lost while they computed something.
    """

    steps: int = 0
    seconds: float = 0.0
    gradients: int = 0
    staleness_sum: int = 0
    staleness_max: int = 0
    dropped: int = 0
    lost: int = 0

    def use(self, staleness: int) -> None:
        """Count a gradient."""
        self.gradients += 1
        self.staleness_sum += staleness
        self.staleness_max = max(self.staleness_max, staleness)

    @property
    def steps_per_second(self) -> float:
        """Steps per second, without the time of validations."""
        return round(self.steps / max(self.seconds, 1e-9), 3)

    def to_dict(self) -> dict[str, float]:
        """Plain values for run.json."""
        return {
            "steps": self.steps,
            "steps_per_second": self.steps_per_second,
            "staleness_mean": round(self.staleness_sum / max(self.gradients, 1), 3),
            "staleness_max": self.staleness_max,
            "dropped": self.dropped,
            "lost": self.lost,
        }

    def __str__(self) -> str:
        values = self.to_dict()
        return (
            f"{self.steps} steps, {self.steps_per_second:.2f} per second; staleness {values['staleness_mean']:.2f} "
            f"on average, {self.staleness_max} at most; gradients dropped: {self.dropped}, workers lost: {self.lost}"
        )


@dataclass
class Server:
    """Advances a training by what a crew computes; see `degrid.engine.training.loop.Advance`.

    Attributes:
        plan: that of the training loop.
        names: of the losses, for the record; empty where there is only one.
        max_staleness: older gradients are dropped, and their images used again.
        average_every: 0: workers compute gradients, each of which is a step as soon as it arrives; else they take as
            many steps each, and then continue from the mean of their weights and of their optimisers' states.
        tell: hears of workers that are lost.
        predict: gradients are computed at the weights that are expected when they are used: as if the last step were
            repeated as often as the gradients of other workers will make a step before.
        pieces: how many gradients make a step; each is that of some of its micro-batches, from any worker.
        stop: when it is set, what the workers are computing is given up: they may be about to be stopped, too.
    """

    crew: Crew
    plan: Plan
    max_staleness: int
    average_every: int = 0
    names: tuple[str, ...] = ()
    tell: Tell = lambda _: None
    predict: bool = False
    pieces: int = 1
    stop: threading.Event = field(default_factory=threading.Event)
    figures: Figures = field(default_factory=Figures)
    _out: dict[int, Task] = field(default_factory=dict)
    """Tasks by the number of their worker."""
    _ahead: dict[int, int] = field(default_factory=dict)
    """The turn that each worker's next task begins with, by the worker's number."""
    _moved: dict[str, Tensor] = field(default_factory=dict)
    """How far the last step took each parameter, by name."""
    _arrived: list[tuple[Task, Result]] = field(default_factory=list)
    """Computes a part of the next step."""
    _since: float = 0.0
    """Start of the time that counts as spent on the next step."""

    def __call__(self, state: Training) -> Done | None:
        """One step, or those until the next average; None if it was given up."""
        self._since = time.monotonic()
        state.turns = state.turns or Turns(state.step)
        state.turns.divide(self.pieces)
        done = self._averaged(state, state.turns) if self.average_every else self._stepped(state, state.turns)
        if done is None:
            return None
        self.figures.seconds += time.monotonic() - self._since
        self.figures.steps += done.steps
        return dataclasses.replace(done, figures=done.figures | {"steps per second": self.figures.steps_per_second})

    def _stepped(self, state: Training, turns: Turns) -> Done | None:
        """A step from the first gradients that are recent enough."""
        while len(self._arrived) < self.pieces:
            if self.stop.is_set():
                return None
            self._hand_out(state, turns)
            if found := self._next(turns):
                self._take_in(state, turns, *found)
        tasks, results = zip(*self._arrived, strict=True)
        self._arrived = []
        for task in tasks:
            turns.finish(task.turns)
        shares = _shares([result.weight for result in results])
        gradients = zip(*(result.gradients for result in results), strict=True)
        for parameter, pieces in zip(state.model.parameters(), gradients, strict=True):
            gradient = _weighted(pieces, shares)
            # A copy in the parameter's own memory layout: what came from a worker may be read-only.
            parameter.grad = None if gradient is None else _copied(torch.empty_like(parameter), gradient)
        state.parts = _weighted_parts([result.parts for result in results], shares)
        staleness = sum(state.step - task.step for task in tasks) / len(tasks)
        loss = self._step(state)
        images = sum(result.images for result in results)
        return Done(loss, images, self._named(state.parts), figures={"staleness": staleness})

    def _take_in(self, state: Training, turns: Turns, task: Task, result: Result) -> None:
        """Keep a gradient for the next step, unless it is too stale."""
        staleness = state.step - task.step
        if staleness > self.max_staleness:
            self.figures.dropped += 1
            turns.give_back(task.turns)
            return
        # The running statistics of several workers become their mean, and a single worker's stay as they are.
        since = self.figures.gradients - task.used
        _blend(dict(state.model.named_buffers()), result.copy.tensors, 1 / (1 + since))
        self.figures.use(staleness)
        self._arrived.append((task, result))

    def _step(self, state: Training) -> float:
        """The loss of a step along the gradients; how far it went is remembered while others are at work."""
        if not (self.predict and self._out):
            self._moved = {}
            return take_step(state, self.plan.clip_norm)
        before = {name: value.detach().clone() for name, value in state.model.named_parameters()}
        loss = take_step(state, self.plan.clip_norm)
        self._moved = {name: value.detach() - before[name] for name, value in state.model.named_parameters()}
        return loss

    def _expected(self, state: Training, steps: int) -> Copy:
        """The weights extrapolated by that many steps."""
        now = copy_of(state)
        moved = {name: now.tensors[name] + steps * _array(value) for name, value in self._moved.items()}
        return Copy(now.tensors | moved)

    def _averaged(self, state: Training, turns: Turns) -> Done | None:
        """The steps of all workers until they are averaged, which they are before the plan saves."""
        ahead = range(1, self.average_every + 1)
        steps = next((n for n in ahead if self.plan.saves_at(state.step + n)), self.average_every)
        found = self._round(state, turns, steps)
        if found is None:
            return None
        results = [result for _, result in found]
        parts = tuple(np.mean([result.parts for result in results], 0).tolist())
        loss = sum(parts)
        if math.isfinite(loss):
            _load(state, _mean([result.copy for result in results]))
            for _ in range(steps if state.average else 0):  # by as much as these steps would have moved it
                cast(AveragedModel, state.average).update_parameters(state.model)
        images = sum(result.images for result in results)
        return Done(loss, images, self._named(parts), steps, {"averaged workers": len(results)})

    def _round(self, state: Training, turns: Turns, steps: int) -> list[tuple[Task, Result]] | None:
        """The states that all workers reached after the same number of steps; None if they are given up."""
        found: list[tuple[Task, Result]] = []
        while self._out or not found:
            if self.stop.is_set():
                return None
            if not self._out:  # a worker that joins meanwhile waits for the next round
                self._hand_out(state, turns, steps)
            if one := self._next(turns):
                found.append(one)
        for task, _ in found:
            turns.finish(task.turns)
        return found

    def _named(self, parts: tuple[float, ...]) -> dict[str, float]:
        return dict(zip(self.names, parts, strict=False))

    def _hand_out(self, state: Training, turns: Turns, steps: int = 0) -> None:
        """A task for every free worker: a number of steps, or a gradient."""
        free = self.crew.free()
        if not free:
            return
        if not self._out:  # nobody was working until now
            self._since = time.monotonic()
        before = len(self._arrived) + len(self._out) + len(free) - 1  # gradients that will probably come first
        expected = before // self.pieces
        copy = self.crew.share(copy_of(state, with_optimizer=True) if steps else self._expected(state, expected))
        for worker in free:
            first = self._ahead.pop(worker) if worker in self._ahead else turns.take()
            further = (turns.take() for _ in range(steps - 1))
            task = Task(state.step, (first, *further), alone=steps > 0, used=self.figures.gradients)
            self._out[worker] = task
        for worker in free:  # after all tasks, so that these have the lowest numbers
            self._ahead[worker] = turns.take()
            self.crew.give(worker, dataclasses.replace(self._out[worker], ahead=self._ahead[worker]), copy)

    def _next(self, turns: Turns) -> tuple[Task, Result] | None:
        """The next result and its task; None if instead a worker was lost or has become free."""
        answer = self.crew.wait(self.stop)
        if answer is None:
            return None
        task = self._out.pop(answer.worker)
        if answer.result is not None:
            return task, answer.result
        self.figures.lost += 1
        turns.give_back((*task.turns, self._ahead.pop(answer.worker)))
        self.tell(f"worker {answer.worker} was lost; its images go to another")
        return None


def pieces_of(micro: int, workers: int) -> int:
    """Into how many equal parts the micro-batches of a step are divided, so that each worker has one.

    The least number that is not below that of the workers, or else one part for each micro-batch.
    """
    return next(n for n in range(1, micro + 1) if micro % n == 0 and (n >= workers or n == micro))


def _shares(weights: list[float]) -> list[float]:
    """The share of each part of a step; equal shares if nothing counts."""
    total = sum(weights)
    return [weight / total if total else 1 / len(weights) for weight in weights]


def _weighted(pieces: tuple[np.ndarray | None, ...], shares: list[float]) -> np.ndarray | None:
    """The weighted sum of one parameter's gradients; None if there are none."""
    there = [(piece, share) for piece, share in zip(pieces, shares, strict=True) if piece is not None]
    if not there:
        return None
    if len(shares) == 1:  # bit for bit, and without a copy
        return there[0][0]
    whole: np.ndarray = np.add.reduce([np.float32(share) * piece for piece, share in there])
    return whole


def _weighted_parts(parts: list[tuple[float, ...]], shares: list[float]) -> tuple[float, ...]:
    """The loss of a step by its parts, from those of its pieces."""
    rows = zip(*parts, strict=True)
    return tuple(sum(share * value for share, value in zip(shares, row, strict=True)) for row in rows)


def copy_of(state: Training, with_optimizer: bool = False) -> Copy:
    """What a worker needs; its arrays may share memory with the state."""
    optimizer = state.optimizer.state_dict() if with_optimizer else None
    return Copy(_arrays({**dict(state.model.named_parameters()), **dict(state.model.named_buffers())}), optimizer)


def _array(tensor: Tensor) -> np.ndarray:
    """Contiguous, so that it is passed on without being copied."""
    return tensor.detach().cpu().contiguous().numpy()


def _arrays(tensors: dict[str, Tensor]) -> Arrays:
    return {name: _array(tensor) for name, tensor in tensors.items()}


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor in the memory of an array, which may be read-only: PyTorch warns of writing to such a tensor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _copied(target: Tensor, array: np.ndarray) -> Tensor:
    """The target, with the array's values."""
    return target.detach().copy_(_tensor(array))


def _load(state: Training, copy: Copy) -> None:
    """Set a state to the values of a copy."""
    model: nn.Module = state.model
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, array in copy.tensors.items():
        _copied(own[name], array)
    if copy.optimizer is not None:
        state.optimizer.load_state_dict(copy.optimizer)


def _blend(own: dict[str, Tensor], others: Arrays, weight: float) -> None:
    """Move tensors towards others, all the way if `weight` is 1; counters take the larger value."""
    for name, array in others.items():
        other = _tensor(array).to(own[name].device)
        if weight == 1:
            own[name].copy_(other)
        elif own[name].is_floating_point():
            own[name].lerp_(other, weight)
        else:
            own[name].copy_(torch.maximum(own[name], other))


def _mean(copies: list[Copy]) -> Copy:
    """The mean of weights, buffers and optimiser states; the copy itself if there is only one."""
    if len(copies) == 1:
        return copies[0]
    tensors = {
        name: np.mean([copy.tensors[name] for copy in copies], 0, dtype=array.dtype)
        if np.issubdtype(array.dtype, np.floating)
        else array
        for name, array in copies[0].tensors.items()
    }
    return Copy(tensors, _mean_state([copy.optimizer for copy in copies]))


def _mean_state(states: list[Any]) -> Any:
    """The mean of floating-point tensors, anywhere in nested tables; everything else is as in the first."""
    first = states[0]
    if isinstance(first, dict):
        return {key: _mean_state([state[key] for state in states]) for key in first}
    if isinstance(first, Tensor) and first.is_floating_point():
        return torch.stack(states).mean(0)
    return first
