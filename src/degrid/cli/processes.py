"""Starts a command again in several processes of this machine, as torchrun does."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid

from degrid.threads import divide_threads
from degrid.types import UserError


def starts(count: int) -> bool:
    """Whether this process has to start others, being none of them itself."""
    return count > 1 and "RANK" not in os.environ


def speaks() -> bool:
    """Whether this process prints what all of them know."""
    return os.environ.get("RANK", "0") == "0"


def in_processes(count: int, arguments: list[str]) -> int:
    """Run `degrid ARGUMENTS` in processes that know one another, until the last has ended or one fails.

    Returns:
        The exit code: 0, or that of the process that failed first.
    Raises:
        UserError: this PyTorch cannot do it, or a process was killed, which it could not say itself.
    """
    import torch.distributed as dist

    if not dist.is_available():
        raise UserError("--devices: this build of PyTorch has no torch.distributed")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Each process says itself what went wrong. Cores are shared, and a stopped run gets the time to be saved.
    logging.disable(logging.ERROR)
    divide_threads(count)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "degrid", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise UserError(_killed(rank, -failure.exitcode)) from error
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException:
        return 130
    return 0


def _killed(rank: int, number: int) -> str:
    """What became of a process that a signal ended."""
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    memory = ", as happens when the system runs out of memory: take fewer --devices, or a smaller train.batch_size"
    return f"process {rank} was ended by {name}{memory if number == signal.SIGKILL else ''}; all others were stopped"
