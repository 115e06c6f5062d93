"""The processes of `torch.distributed`: which one this is, its part of the work, and what they agree on.

Without `torch.distributed` there is one process, and nothing here costs anything: torch is not imported.
"""

from __future__ import annotations

import datetime
import os
import platform
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from degrid.lookup import some
from degrid.types import OtherProcessError, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed import Store  # type: ignore[attr-defined]


_LATE = 90.0
"""Seconds for which a new file may be missing on other machines: NFS looks at a folder anew after 30 to 60."""


def rank_and_count() -> tuple[int, int]:
    """This process's number, from 0, and how many there are: (0, 1) if `torch.distributed` is not initialised."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return rank_and_count()[0] == 0


@contextmanager
def joined(device: torch.device, seconds: float) -> Iterator[torch.device]:
    """Join the processes that torchrun started; alone without it, and among those of the caller where he joined them.

    Args:
        device: the kind of device; of the machine's GPUs each process gets one of its own.
        seconds: how long to wait for the others, here and in every exchange, before giving up.
    Yields:
        The device of this process.
    Raises:
        UserError: the others cannot be reached, or there are more processes than GPUs.
    """
    import torch
    import torch.distributed as dist

    if dist.is_initialized() or _from_torchrun("WORLD_SIZE", "1") == "1":
        yield device
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        check_gpus(local + 1)
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    limit = datetime.timedelta(seconds=seconds)
    try:
        with _held_back():
            rank, count = (int(_from_torchrun(name)) for name in ("RANK", "WORLD_SIZE"))
            store = met(_store(rank, seconds), rank, count, seconds)
            dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=limit)
    except (RuntimeError, ValueError) as error:  # PyTorch's own errors of connections are RuntimeErrors
        why = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"could not join the other processes through {place} within {seconds:g} seconds (train.timeout): "
            f"{why}; is the address of the first machine right, and was every process started?"
        ) from error
    try:
        yield device
    finally:
        dist.destroy_process_group()


def check_gpus(processes: int) -> None:
    """Refuse more processes than GPUs on this machine.

    Raises:
        UserError: there are.
    """
    import torch

    there = torch.cuda.device_count()
    if processes > there:
        raise UserError(
            f"process {there} of this machine, counted from 0, finds no GPU of its own, there are {there}; start fewer "
            "processes (--devices, or torchrun's --nproc-per-node)"
        )


def _from_torchrun(name: str, usual: str = "") -> str:
    """An environment variable that torchrun sets."""
    if not (value := os.environ.get(name, usual)):
        raise RuntimeError(f"the environment variable {name}, which torchrun sets, is missing")
    return value


def _store(rank: int, seconds: float) -> Store:
    """What torchrun, or the first process without it, keeps for all.

    Raises:
        RuntimeError, ValueError: nobody answers within so many seconds. PyTorch alone would wait for ever for one that
            takes a connection and is silent.
    """
    import torch.distributed as dist

    _look_up(_from_torchrun("MASTER_ADDR"), seconds)
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    place, limit = (_from_torchrun("MASTER_ADDR"), int(_from_torchrun("MASTER_PORT"))), datetime.timedelta(0, seconds)
    answers: Future[Store] = Future()

    def ask() -> None:
        try:
            make = dist.TCPStore  # type: ignore[attr-defined]
            found = make(*place, is_master=serves, timeout=limit, wait_for_workers=False, multi_tenant=True)
            answers.set_result(found)
        except Exception as error:
            answers.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()  # it cannot be stopped, and must not keep this process alive
    try:
        return answers.result(seconds + 5)  # PyTorch's own error, where there is one, comes first
    except TimeoutError:
        raise RuntimeError("it takes connections, but does not answer") from None


def _look_up(host: str, seconds: float) -> None:
    """Wait until the address of a machine is known, for which PyTorch would ask for ever.

    Raises:
        RuntimeError: it is not, within so many seconds.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError as error:
            _pause(until, f"{host} is not a machine name known here ({error.strerror})", 1)


def met(store: Store, rank: int, count: int, seconds: float) -> Store:
    """A part of a store that only the processes started together use, all of which are there.

    torchrun keeps the store when it starts processes again, and those of before have left addresses in it at which
    nobody listens any more. Its numbers of the attempts differ among machines. So each process leaves a name that is
    its own this time, and the first one answers to it with its own, which becomes that of the part.

    Raises:
        RuntimeError: others did not come within so many seconds.
    """
    import torch.distributed as dist

    part = dist.PrefixStore  # type: ignore[attr-defined]
    own, until = uuid.uuid4().hex, time.monotonic() + seconds
    if rank:
        store.set(f"degrid/name/{rank}", own)
        answer = f"degrid/answer/{own}"
        while not store.check([answer]):
            _pause(until, "the first process did not come")
        name = store.get(answer).decode()
        store.set(f"degrid/heard/{name}/{rank}", "yes")
        return part(name, store)
    missing = list(range(1, count))
    while missing := [other for other in missing if not store.check([f"degrid/heard/{own}/{other}"])]:
        for name in [name for other in missing if store.check([name := f"degrid/name/{other}"])]:
            store.set(f"degrid/answer/{store.get(name).decode()}", own)
        _pause(until, f"of {count} processes, counted from 0, some did not arrive: {some(missing)}")
    return part(own, store)


def _pause(until: float, complaint: str, seconds: float = 0.05) -> None:
    """Wait a moment, if there is time left."""
    if time.monotonic() > until:
        raise RuntimeError(complaint)
    time.sleep(seconds)


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold back what is written to the error stream meanwhile: passed on at the end, and dropped if this fails.

    PyTorch's C++ writes a trace for each attempt to connect, and then raises an error that says the same.
    """
    if os.environ.get("DEGRID_DEBUG"):
        yield
        return
    with tempfile.TemporaryFile() as held:
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        held.seek(0)
        os.write(2, held.read())


@contextmanager
def together() -> Iterator[None]:
    """Leave together: where one process fails the others fail too, instead of waiting for it for ever.

    Raises:
        OtherProcessError: another process failed; with its message if that was a mistake of the user.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OtherProcessError) or "heard" in vars(error):  # by all, within this context
            raise
        vars(error)["heard"] = True
        own = _Failure(str(error) if isinstance(error, UserError) else type(error).__name__)
        rank, first = next(each for each in enumerate(gathered(own)) if isinstance(each[1], _Failure))
        if rank_and_count()[0] != rank and own == first:  # one of them reports it
            raise OtherProcessError(f"process {rank} failed: {first.said}") from error
        raise
    gathered(None)


@contextmanager
def in_contact() -> Iterator[None]:
    """Say in a sentence that another process is gone, which is noticed in an exchange with it.

    Raises:
        OtherProcessError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        words = ("gloo", "NCCL", "onnection", "Timed out")
        if isinstance(error, UserError) or rank_and_count()[1] == 1 or not any(word in str(error) for word in words):
            raise
        raise OtherProcessError(
            "lost contact with another process, which has failed or was stopped (its own message says why) or did not "
            "answer within train.timeout"
        ) from error


@dataclass(frozen=True)
class _Failure:
    """What a failed process passes to the others, whatever they are about to exchange."""

    said: str


def gathered(value: Any) -> list[Any]:
    """What every process passed, in their order; any value that can be pickled. Every process must call it.

    Raises:
        OtherProcessError: one has failed meanwhile, see `together`.
    """
    _, count = rank_and_count()
    if count == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * count
    dist.all_gather_object(found, value)
    for rank, each in enumerate(found):
        if isinstance(each, _Failure) and not isinstance(value, _Failure):
            raise OtherProcessError(f"process {rank} failed: {each.said}")
    return found


def as_any_sees(look: Callable[[], bool], what: str, seconds: float) -> bool:
    """Whether any process finds something; the others then look until they do, too.

    A network disk may show a new file to other machines up to a minute late. Every process must call it.

    Args:
        look: whether it is there.
        what: it is, for the message.
        seconds: how long the processes wait for one another.
    Raises:
        UserError: it did not appear here.
    """
    found = any(gathered(look()))
    limit = min(_LATE, seconds / 2)
    until = time.monotonic() + limit
    while found and not look():
        if time.monotonic() > until:
            raise UserError(
                f"{what} is there for another process, but was not seen on {platform.node()} within {limit:g} "
                "seconds; all machines must see the same folder"
            )
        time.sleep(0.2)
    return found


def check_same(values: Mapping[str, object]) -> None:
    """Refuse to continue where the processes were started differently.

    Args:
        values: names and what must be the same, such as settings.
    Raises:
        UserError: names what differs; in every process.
    """
    every = gathered(dict(values))
    for rank, other in enumerate(every[1:], start=1):
        differ = [name for name in {**every[0], **other} if every[0].get(name) != other.get(name)]
        if differ:
            first = differ[0]
            raise UserError(
                f"all processes need the same version, settings and data, but {some(differ, 4)} differ: {first} is "
                f"{every[0].get(first)!r} in process 0 and {other.get(first)!r} in process {rank}"
            )


def own_items(count: int) -> range:
    """Which of `count` items this process works on: rank, rank + processes, ..."""
    rank, processes = rank_and_count()
    return range(rank, count, processes)


def summed_over_ranks(counts: Tensor) -> Tensor:
    """The sum over all processes, the same in each; `counts` itself if there is only one.

    Every process must call it. Integers add up to the same bits in whatever order.

    Args:
        counts: of one shape in all processes.
    Returns:
        On the device of `counts`; what lies on a GPU is not waited for.
    """
    if rank_and_count()[1] == 1:
        return counts
    import torch.distributed as dist

    # NCCL reduces on the GPU only; a group that also has Gloo takes what is in the CPU's memory.
    device = counts.device if f"{counts.device.type}:" in dist.get_backend_config() else "cuda"
    total = counts.to(device, copy=True)
    dist.all_reduce(total)
    return total.to(counts.device)


def counts_of_all(counts: np.ndarray) -> np.ndarray:
    """As `summed_over_ranks`, of an array of integers."""
    if rank_and_count()[1] == 1:
        return counts
    import torch

    return summed_over_ranks(torch.from_numpy(counts)).numpy()


def rows_of_all(rows: Tensor) -> list[Tensor]:
    """The rows of every process, in their order; every process must call it.

    Args:
        rows: [n,...] with an n of this process's own, without a gradient.
    """
    import torch
    import torch.distributed as dist

    rank, count = rank_and_count()
    lengths = torch.zeros(count, dtype=torch.int64, device=rows.device)
    lengths[rank] = len(rows)
    numbers = summed_over_ranks(lengths).tolist()
    padded = rows.new_zeros(max(numbers), *rows.shape[1:])  # all must send the same amount
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in numbers]
    dist.all_gather(parts, padded)
    return [part[:number] for part, number in zip(parts, numbers, strict=True)]


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers, such as the running statistics of batch norm."""
    if rank_and_count()[1] > 1:
        import torch.distributed as dist

        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
