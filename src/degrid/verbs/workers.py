"""The workers of asynchronous training: processes that Ray starts, on this machine or on those of its cluster."""

from __future__ import annotations

import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from degrid import config as configs
from degrid.config import AsynchronousConfig, RunConfig
from degrid.types import UserError
from degrid.version import VERSION

if TYPE_CHECKING:
    from degrid.engine.training.asynchronous import Answer, Copy, Result, Task

LEAST_STORE = 200_000_000
"""Bytes of memory in which Ray hands over arrays; more where the weights are large."""
START_ERRORS = (ConnectionError, RuntimeError, ValueError, OSError, AssertionError)
"""What `ray.init` raises if there is no Ray."""
STARTS = 3
"""How many times Ray is started if it takes too long: on a busy machine its files are in memory the second time."""
LOOK_UP = 0.5
"""Seconds after which whoever waits for workers sees whether it is to stop: a signal may have ended Ray as well, which
then does not answer, and ends this process after a minute."""
LOSSES_IN_A_ROW = 8
"""A worker that is lost this many times without a result in between will never work. It is called again after pauses of
1, 2, 4, ... seconds, two minutes in total: Ray needs a minute to notice that a machine is gone, and until then answers
every call to its workers at once, saying that they are not there."""


class _Actor:
    """A worker in a process of its own. Ray starts it again if it is lost; it then knows nothing until `begin`."""

    def begin(self, settings: dict[str, Any], pieces: int, expected: dict[str, object]) -> None:
        """Open the data and build the network.

        Args:
            settings: a `RunConfig`.
            pieces: see `degrid.verbs.run_start.make_worker`.
            expected: what the server has, see `_facts`.
        Raises:
            UserError: this machine has another version, or not the data.
        """
        self._check(expected, _facts())
        from degrid.verbs.run_start import make_worker

        self._work, images = make_worker(configs.from_dict(RunConfig, settings), pieces)
        self._check(expected, {"training images": images})

    def _check(self, expected: dict[str, object], found: dict[str, object]) -> None:
        for name, value in found.items():
            if expected[name] != value:
                raise UserError(
                    f"workers need the same versions and data as the server, but {name} is {expected[name]} there and "
                    f"{value} on {platform.node()}"
                )

    def work(self, task: Task, copy: Copy) -> Result:
        """See `degrid.engine.training.asynchronous.Worker`."""
        from degrid.engine.memory import enough_memory

        with enough_memory():
            return self._work(task, copy)


def _facts() -> dict[str, object]:
    """Settings that must be the same in all processes."""
    import torch

    return {"degrid": VERSION, "torch": torch.__version__}


class RayCrew:
    """See `degrid.engine.training.asynchronous.Crew`.

    Args:
        config: what workers train; its data are read from all machines.
        images: that the server sees in the training data.
        pieces: see `degrid.verbs.run_start.make_worker`.
        on_gpu: each worker has a GPU.
    """

    def __init__(self, config: RunConfig, images: int, pieces: int, on_gpu: bool) -> None:
        import ray

        self._ray, self._timeout = ray, config.train.timeout
        own = config.train.asynchronous
        self._begin = configs.to_dict(config), pieces, {**_facts(), "training images": images}
        make = ray.remote(num_cpus=own.cores, num_gpus=int(on_gpu), max_restarts=-1)(_Actor)
        self._actors: list[Any] = [make.remote() for _ in range(own.workers)]
        self._at: dict[Any, int] = {actor.begin.remote(*self._begin): n for n, actor in enumerate(self._actors)}
        self._beginning, self._free = set(range(own.workers)), list[int]()
        self._losses = [0] * own.workers
        self._calls: dict[int, float] = {}
        """When to call workers that were lost."""

    def share(self, copy: Copy) -> Any:
        """Put a copy where all workers find it."""
        return self._ray.put(copy)

    def free(self) -> list[int]:
        """Those that have begun and do nothing."""
        return list(self._free)

    def give(self, worker: int, task: Task, copy: Any) -> None:
        """Have a free worker do something."""
        self._free.remove(worker)
        self._at[self._actors[worker].work.remote(task, copy)] = worker

    def wait(self, stop: threading.Event) -> Answer | None:
        """The next answer; None if instead another worker has become free or was lost before it began, or on `stop`.

        Raises:
            UserError: none came within `train.timeout`, or a worker cannot begin.
        """
        from degrid.engine.training.asynchronous import Answer

        done = self._first(stop)
        if done is None:
            return None
        worker = self._at.pop(done)
        began = worker not in self._beginning
        try:
            result: Result | None = self._ray.get(done)
        except self._ray.exceptions.RayActorError as error:
            self._losses[worker] += 1
            if self._losses[worker] == LOSSES_IN_A_ROW:
                raise UserError(
                    f"worker {worker} was lost {LOSSES_IN_A_ROW} times without a result in between; is there enough "
                    f"memory, and is degrid installed on its machine? Ray says: {str(error).strip().splitlines()[-1]}"
                ) from error
            self._beginning.add(worker)
            self._calls[worker] = time.monotonic() + 2 ** (self._losses[worker] - 1)
            return Answer(worker, None) if began else None
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        self._free.append(worker)
        if not began:
            self._beginning.remove(worker)
            return None
        self._losses[worker] = 0
        return Answer(worker, result)

    def _first(self, stop: threading.Event) -> Any:
        """The reference of the first result; None if the event is set before."""
        until = time.monotonic() + self._timeout
        while (now := time.monotonic()) < until:
            if stop.is_set():
                return None
            for worker in [worker for worker, when in self._calls.items() if when <= now]:
                del self._calls[worker]
                self._at[self._actors[worker].begin.remote(*self._begin)] = worker
            pause = min(LOOK_UP, *(when - now for when in [until, *self._calls.values()]))
            if not self._at:
                stop.wait(pause)
            elif done := self._ray.wait(list(self._at), num_returns=1, timeout=pause)[0]:
                return done[0]
        raise UserError(
            f"no worker has answered for {self._timeout:g} seconds (train.timeout): {len(self._beginning)} of "
            f"{len(self._actors)} have not begun; does the Ray cluster have the cores, and GPUs, that they need?"
        )


@contextmanager
def hired(config: RunConfig, images: int, pieces: int, weight_bytes: int, on_gpu: bool) -> Iterator[RayCrew]:
    """Workers for as long as the context lasts.

    Args:
        config, images, pieces, on_gpu: see `RayCrew`.
        weight_bytes: size of the network's weights.
    Raises:
        UserError: Ray's cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():  # by the caller, who also ends it
        yield RayCrew(config, images, pieces, on_gpu)
        return
    _connect(config.train.asynchronous, weight_bytes, config.train.timeout)
    try:
        yield RayCrew(config, images, pieces, on_gpu)
    finally:
        ray.shutdown()


def _connect(own: AsynchronousConfig, weight_bytes: int, seconds: float) -> None:
    """Start Ray on this machine, or join a cluster.

    Raises:
        UserError: it cannot be reached.
    """
    import ray

    address = own.address or os.environ.get("RAY_ADDRESS", "")
    place: dict[str, Any] = {"address": address}
    if address:
        _check_reachable(address, seconds)
    else:
        place = {
            "address": "local",
            "include_dashboard": False,
            "num_cpus": own.workers * own.cores,
            # Weights and gradients of every worker, and those that are being handed over.
            "object_store_memory": max(LEAST_STORE, 2 * weight_bytes * (own.workers + 1)),
            "_system_config": {"worker_niceness": 0},  # workers are the run; Ray's 15 would let all else go first
        }
    for tries_left in range(STARTS - 1, -1, -1):
        try:
            with warnings.catch_warnings(), _sigterm_blocked():
                warnings.simplefilter("ignore")  # its content is an error then
                ray.init(**place, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:
            # What did not start within Ray's 30 seconds, as on a busy machine, is an exception of no type of its own.
            slow = type(error) is Exception
            if slow and tries_left and not address:
                continue
            if not slow and not isinstance(error, START_ERRORS):
                raise
            raise _unreachable(address, str(error) or type(error).__name__) from error


@contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """Processes that are started meanwhile never get SIGTERM, and this one gets it at the end.

    `timeout` and job systems send it to all processes of a run. Ray's would end at once, and Ray then ends the server
    before it has saved. Ray blocks SIGINT in the same way, and sends SIGKILL to those that are to end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which has neither
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_reachable(address: str, seconds: float) -> None:
    """Ask a cluster whether it is there: `ray.init` itself would try for a quarter of an hour.

    Raises:
        UserError: no answer within that time.
    """
    if address == "auto" or "://" in address:  # Ray notices that earlier
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise _unreachable(address, f"no answer within {seconds:g} seconds (train.timeout)") from None
    if done.returncode:
        raise _unreachable(address, done.stderr.strip().rpartition("\n")[2])


def _unreachable(address: str, why: str) -> UserError:
    return UserError(
        f"could not {f'join the Ray cluster at {address}' if address else 'start Ray on this machine'} "
        f"(train.asynchronous.address): {why.strip().splitlines()[0]}; start one with: ray start --head, and join "
        "other machines with: ray start --address=HOST:6379"
    )
