"""Fair measurements on a machine whose speed drifts: cases in turn in one process, compared within the same round.

    rows = measure([Case("plain", plain, base=True), Case("fast", fast)])

Each round calls every case once (A B C A B C ...). The ratio of a case is the base's value over its own *in that
round*: a machine that is slower for a minute is slower for both. The median of the ratios is the result, and the
quartiles are its spread.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from degrid.engine.memory import give_back_freed_memory, resident_bytes
from degrid.types import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


MIB = 2**20
MOST_ROUNDS = 200
"""Largest number of rounds, even if the calls are so short that more would fit into the time."""
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Case:
    """One way to do a job.

    run: does the job once; its result is dropped.
    group: the job; cases are compared within their group.
    base: whether the others of the group are compared with this case; true of exactly one.
    items: how many things (images) one call handles.
    notes: further columns of the table, by name and unit ("saved MiB").
    """

    name: str
    run: Callable[[], object]
    group: str = ""
    base: bool = False
    items: int = 1
    notes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Quartiles:
    """A median with the quartiles around it."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Row:
    """What was measured for a case.

    values: one per round, in `unit`; less is better.
    ratios: one per round, the base's value over its own: 2 is twice as fast, or half the memory.
    repeats: the median ratio of each repeat of the whole measurement; see `merged`.
    """

    group: str
    name: str
    base: bool
    unit: str
    items: int
    notes: Mapping[str, float]
    values: tuple[float, ...]
    ratios: tuple[float, ...]
    repeats: tuple[float, ...]

    @property
    def value(self) -> float:
        """Median over the rounds, in `unit`."""
        return median(self.values)

    @property
    def ratio(self) -> Quartiles:
        """Median and quartiles of the ratios to the base."""
        return quartiles(self.ratios)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the derived ones."""
        values = asdict(self)
        return {"case": values.pop("name"), **values, "median": self.value, "ratio": asdict(self.ratio)}


def quartiles(values: Sequence[float]) -> Quartiles:
    """Lower quartile, median and upper quartile, interpolated; of a single value, that value three times."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Quartiles(low, middle, high)


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call, without garbage collection in it."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    finally:
        if collecting:
            gc.enable()


def measure(
    cases: Sequence[Case],
    rounds: int = 5,
    seconds: float = 0.0,
    *,
    warmup: int = 2,
    meter: Callable[[Callable[[], object]], float] = timed,
    unit: str = "s",
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[int, int], None] = lambda done, least: None,
) -> list[Row]:
    """Measure cases in turn, round by round: a row per case, in order.

    Args:
        cases: of one group or several, each with one base.
        rounds: the least number of rounds, 1 or more.
        seconds: rounds continue until this time has passed since the first, up to MOST_ROUNDS; for short calls.
        warmup: rounds before these, which are not measured.
        meter: from a function to its cost, in `unit`; above 0.
        clock: seconds since any moment, for `seconds`.
        on_round: called after each round, warm-up included, with the rounds done and the least number of all.
    Raises:
        UserError: no cases, no rounds, or a group without one base.
    """
    bases = _bases(cases)
    if rounds < 1:
        raise UserError(f"expected at least 1 round of measurements, got {rounds}")
    for number in range(warmup):
        for case in cases:
            case.run()
        on_round(number + 1, warmup + rounds)
    values: list[list[float]] = [[] for _ in cases]
    began, done = clock(), 0
    while done < rounds or (done < MOST_ROUNDS and clock() - began < seconds):
        for case, found in zip(cases, values, strict=True):
            found.append(meter(case.run))
        done += 1
        on_round(warmup + done, max(done, rounds) + warmup)
    return [_row(case, own, values[bases[case.group]], unit) for case, own in zip(cases, values, strict=True)]


def _bases(cases: Sequence[Case]) -> dict[str, int]:
    if not cases:
        raise UserError("nothing to measure: expected at least one case")
    bases: dict[str, int] = {}
    for group in dict.fromkeys(case.group for case in cases):
        places = [index for index, case in enumerate(cases) if case.group == group and case.base]
        if len(places) != 1:
            raise UserError(f'group "{group}": expected exactly one case that is the base, got {len(places)}')
        bases[group] = places[0]
    return bases


def _row(case: Case, own: list[float], base: list[float], unit: str) -> Row:
    ratios = tuple(theirs / ours for theirs, ours in zip(base, own, strict=True))
    repeats = (quartiles(ratios).median,)
    return Row(case.group, case.name, case.base, unit, case.items, case.notes, tuple(own), ratios, repeats)


def merged(repeats: Sequence[Sequence[Row]]) -> list[Row]:
    """One row per case from several repeats of the same cases: all rounds, and the median ratio of each repeat."""
    rows = []
    for same in zip(*repeats, strict=True):
        columns = zip(*((row.values, row.ratios, row.repeats) for row in same), strict=True)
        values, ratios, medians = (tuple(chain.from_iterable(parts)) for parts in columns)
        rows.append(replace(same[0], values=values, ratios=ratios, repeats=medians))
    return rows


def saved_activations(
    run: Callable[[], object], model: nn.Module | None = None, checkpointed: Iterable[nn.Module] = ()
) -> int:
    """Bytes that autograd keeps for the backward pass while `run` runs, counting each storage once.

    The input counts, and so do copies of weights in another type; parameters and the model's buffers do not.

    Args:
        model: whose parameters and buffers are left out; nn.Parameters of other modules are left out as well.
        checkpointed: modules whose inputs count too, since they keep them by other means than autograd's saved
            tensors, as activation checkpointing does.
    """
    import torch
    from torch import nn

    own = [] if model is None else [*model.parameters(), *model.buffers()]
    left_out = {tensor.untyped_storage().data_ptr() for tensor in own}
    seen: dict[int, torch.UntypedStorage] = {}  # holds them, so that no address is used twice in the meantime

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) and storage.data_ptr() not in left_out:
            seen[storage.data_ptr()] = storage
        return tensor

    def keep_inputs(module: nn.Module, inputs: tuple[object, ...]) -> None:
        for each in inputs:
            if isinstance(each, torch.Tensor):
                pack(each)

    hooks = [module.register_forward_pre_hook(keep_inputs) for module in checkpointed]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return sum(storage.nbytes() for storage in seen.values())


def can_sample_memory() -> bool:
    """Whether this system reports how much memory the process holds; only Linux does, in /proc."""
    return _STATM.exists()


def peak_memory(run: Callable[[], object], every: float = 0.001) -> float:
    """Peak increase of resident memory during `run`, in MiB; at least one page.

    Sampled by a thread every `every` seconds: a shorter peak may be missed. Memory that the C library keeps after it
    was freed is given back first, where possible; the result of `run` is held until the last sample.

    Raises:
        UserError: the system does not report it; see `can_sample_memory`.
    """
    if not can_sample_memory():
        raise UserError(f"peak memory is read from {_STATM}, which only Linux has; leave the memory measurements out")
    gc.collect()
    give_back_freed_memory()
    before = peak = resident_bytes()
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(every):
            peak = max(peak, resident_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        held = run()
        last = resident_bytes()
        del held
    finally:
        stop.set()
        thread.join()
    return max(peak - before, last - before, os.sysconf("SC_PAGE_SIZE")) / MIB


Made = tuple[Callable[[], object], dict[str, float]]
"""A job with the facts known about it: columns of the table by name and unit."""


class Apart:
    """A job that runs in a process of its own, which ends with this object.

    Args:
        make: makes the job there; a function of a module.
        arguments: of `make`.
    Attributes:
        notes: what is known of the job.
    """

    def __init__(self, make: Callable[..., Made], *arguments: object) -> None:
        start = multiprocessing.get_context("spawn")
        self.pipe, theirs = start.Pipe()
        start.Process(target=_serve, args=(theirs, make, arguments), daemon=True).start()
        theirs.close()
        self.notes: dict[str, float] = self.pipe.recv()

    def __call__(self) -> None:
        """Do the job once."""
        self.pipe.send(None)
        self.pipe.recv()


def _serve(pipe: Any, make: Callable[..., Made], arguments: tuple[object, ...]) -> None:
    call, notes = make(*arguments)
    pipe.send(notes)
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            call()
            pipe.send(None)
