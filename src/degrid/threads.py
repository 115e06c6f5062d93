"""The processor: how many threads to use, what they do while they wait, what control groups allow. No torch."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cores_of_groups(root: Path = Path("/")) -> Iterator[float]:
    """The seconds of processor time that each control group which limits them may use in a second.

    Args:
        root: where proc and sys are.
    """
    for group, version in _groups("cpu", root):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, _, period = " ".join(text_of(group / name).strip() for name in names).partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):  # else "max", -1 or no such file
            yield int(quota) / int(period)


def memory_of_groups(root: Path = Path("/")) -> Iterator[int]:
    """What each control group with a limit leaves of it, in bytes; see `cores_of_groups`."""
    for group, version in _groups("memory", root):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (text_of(group / name).strip() for name in names)
        if limit.isdecimal() and used.isdecimal():
            yield int(limit) - int(used) + fields_of(group / "memory.stat").get("inactive_file", 0)


def _groups(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """The folders of the groups that this process is in, up to the top of each tree, and their version, 1 or 2."""
    base = root / "sys/fs/cgroup"
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = base / controller if controllers else base
        # In a container the path may be that of the host, where only the top of the tree is seen.
        place = top / path.lstrip("/")
        for group in {place, *place.parents, top}:
            if group.is_relative_to(top):
                yield group, 1 if controllers else 2


def fields_of(file: Path) -> dict[str, int]:
    """The first two words of each line, a name and a number."""
    words = (line.split() for line in text_of(file).splitlines())
    return {each[0]: int(each[1]) for each in words if len(each) > 1 and each[1].isdecimal()}


def cpu_fields() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    lines = text_of(Path("/proc/cpuinfo")).partition("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cpu_name() -> str:
    """The processor's name, or its architecture where it has none."""
    return cpu_fields().get("model name") or platform.processor() or platform.machine()


def text_of(file: Path) -> str:
    """A file of the system; empty where it is not there."""
    with contextlib.suppress(OSError):
        return file.read_text()
    return ""


SPIN = 1000
"""How often GNU's OpenMP looks for work before a thread sleeps, some 10 microseconds; its own choice is 300,000."""


PILLOW = {"PILLOW_BLOCKS_MAX": "1"}
"""Variables for Pillow's import: how many pieces of memory, of 16 MiB at most, it keeps. By itself it gives back what a
picture took, and asking for it again takes up to a tenth of the time in which small pictures are read."""

KEPT = {**PILLOW, "MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
"""Variables for another process that reads pictures: GNU's C library keeps memory, too, up to 64 MiB."""

_SET = "DEGRID_THREADS"
"""Variable that holds OMP_NUM_THREADS if it was set here and not by the user."""


def usable_cores(root: Path = Path("/")) -> int:
    """The cores that this process may use: by its affinity and the quotas of its control groups, rounded up.

    Args:
        root: where proc and sys are.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota - 0.01) for quota in cores_of_groups(root))]))


def num_threads() -> int:
    """The threads that PyTorch uses; where it is not loaded, OMP_NUM_THREADS, or else at most `usable_cores`."""
    torch = sys.modules.get("torch")
    if asked := _asked():
        return int(torch.get_num_threads()) if torch else asked
    return min(int(torch.get_num_threads()), usable_cores()) if torch else usable_cores()


def _asked() -> int:
    """OMP_NUM_THREADS; 0 if it is not set."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() else 0


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use this many threads inside the context; None: as many as now."""
    import torch

    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def limited_threads() -> Iterator[None]:
    """Let PyTorch use no more than `num_threads` inside the context; it does not know of quotas itself."""
    with torch_threads(num_threads()):
        yield


@contextmanager
def signals_caught(handler: Callable[[int, Any], object]) -> Iterator[dict[int, Any]]:
    """Call a function at Ctrl-C (SIGINT) and SIGTERM inside the context; gives the handlers of before, by signal.

    Only the main thread can catch signals: in others this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    before: dict[int, Any] = {each: signal.signal(each, handler) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield before
    finally:
        for number, earlier in before.items():
            with contextlib.suppress(TypeError):  # a handler that was not set by Python
                signal.signal(number, earlier)


def divide_threads(processes: int) -> None:
    """Divide the cores among processes that this program will start, unless somebody else set OMP_NUM_THREADS."""
    if not _asked() or os.environ.get(_SET) == os.environ["OMP_NUM_THREADS"]:
        os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // processes))


def settle_threads() -> None:
    """Share the machine with other programs; for a program's own start, before it loads PyTorch.

    OpenMP gets no more threads than a quota allows, and threads that wait at the end of each layer soon sleep. GNU's
    OpenMP, with which PyTorch comes on Linux, LLVM's, and NumPy's OpenBLAS from the moment it is imported would spin
    for milliseconds, on cores that others need: among these the program's own threads. Pillow keeps the memory of a
    picture for the next one, as `PILLOW` says. Settings that are there already stay.
    """
    for name, value in PILLOW.items():
        os.environ.setdefault(name, value)
    if list(cores_of_groups()) and not _asked():
        os.environ[_SET] = os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN))
        os.environ.setdefault("KMP_BLOCKTIME", "1")  # milliseconds
        os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")  # 2^10 cycles; its own choice is 2^26


@contextmanager
def start_of_processes_left_open() -> Iterator[None]:
    """Within it libraries may ask how `multiprocessing` starts processes; afterwards that can still be chosen, if it
    could before."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    try:
        yield
    finally:
        if not chosen:
            multiprocessing.set_start_method(None, force=True)
