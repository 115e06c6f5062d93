"""Memory of this process: how much it may still use, and what it keeps. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from degrid.threads import fields_of, memory_of_groups, text_of
from degrid.types import UserError

_NO_MEMORY = ("out of memory", "allocate memory", "not enough memory")
"""Parts of PyTorch's out-of-memory errors: on GPUs, and on the CPU on Linux and on Windows."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""Parameters of glibc's mallopt, by their numbers in malloc.h."""


def available_to_process(root: Path = Path("/")) -> int:
    """Memory that the CPU can still give, in bytes.

    What the system can give without swapping, of which files that it keeps in memory are a part; within the limits of
    the process's control groups, and of its addresses (`ulimit -v`).

    Args:
        root: where proc and sys are.
    """
    ways = _available_of_system(root), _left_of_addresses(root), *memory_of_groups(root)
    found = [value for value in ways if value is not None]
    return max(0, min(found, default=4 << 30))


def _available_of_system(root: Path) -> int | None:
    """Linux's own estimate, in bytes; elsewhere the pages that nothing uses."""
    available = fields_of(root / "proc/meminfo").get("MemAvailable:")
    if available is not None:
        return 1024 * available
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system has these
        return None


def _left_of_addresses(root: Path) -> int | None:
    """How many more bytes the process may address; None if nothing limits it."""
    lines = text_of(root / "proc/self/limits").splitlines()
    limit = next((line.split()[3] for line in lines if line.startswith("Max address space")), "unlimited")
    used = text_of(root / "proc/self/statm").split()
    return int(limit) - int(used[0]) * os.sysconf("SC_PAGE_SIZE") if limit.isdecimal() and used else None


def resident_bytes() -> int:
    """Memory that this process takes now, with what its libraries take; 0 where the system does not say, as outside
    Linux."""
    words = text_of(Path("/proc/self/statm")).split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else 0


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Say in a sentence that memory was not enough for training.

    Raises:
        UserError: it was not.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # PyTorch's have no type of their own on the CPU
        text = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        if not isinstance(error, MemoryError) and not any(words in text for words in _NO_MEMORY):
            raise
        raise UserError(
            f"training ran out of memory ({text}); use a smaller train.batch_size with train.accumulate raised by the "
            "same factor, --checkpoint-activations, or a smaller data.crop"
        ) from error


def settle_memory(limit: int | None) -> None:
    """Set what the C library does with freed memory, for a program's own start: it acts on the whole process.

    Without a limit in bytes `keep_freed_memory`. With one, blocks from 4 MiB are taken from the system one by one and
    go back when they are freed: in a heap that is kept, feature maps of many sizes leave gaps, and the process grows to
    some 1.5 times what is in use.
    """
    if limit is None:
        keep_freed_memory()
    else:
        _set_allocator((_MMAP_THRESHOLD, 4 << 20), (_TRIM_THRESHOLD, 16 << 20))


def give_back_freed_memory() -> None:
    """Return to the system what the C library keeps of freed memory, where it can: so that `resident_bytes` counts what
    is in use."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep large blocks that were freed, instead of asking the system for them anew each time.

    On Linux with glibc this makes large networks on the CPU 5 to 25 % faster; the process keeps the memory of its
    largest image. It acts on the whole process, so it is up to a program to call it; the command line does. Returns
    whether it worked.
    """
    return _set_allocator((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20))


def _set_allocator(*settings: tuple[int, int]) -> bool:
    """Set numbered parameters of glibc's malloc; returns whether it took all."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return all(mallopt(*setting) for setting in settings)
