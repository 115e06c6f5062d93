"""Memory of this process: what it may still take, and what it keeps. Imports no torch."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

from degrid.control_groups import fields_of, memory_of_groups, text_of


def available_to_process(root: Path = Path("/")) -> int:
    """Memory that the CPU can still give, in bytes.

    What the system can give without swapping, of which files that it keeps in memory are a part; within the limits of
    the process's control groups.

    Args:
        root: where proc and sys are.
    """
    found = [value for value in (_available_of_system(root), *memory_of_groups(root)) if value is not None]
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


def resident_bytes() -> int:
    """Memory that this process takes now, with what its libraries take; 0 where the system does not say, as outside
    Linux."""
    words = text_of(Path("/proc/self/statm")).split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else 0


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep large blocks that were freed, instead of asking the system for them anew each time.

    On Linux with glibc this makes large networks on the CPU 5 to 25 % faster; the process keeps the memory of its
    largest image. It acts on the whole process, so it is up to a program to call it; the command line does. Returns
    whether it worked.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    mmap_max, trim_threshold, top_pad = -4, -1, -2
    return all(mallopt(*pair) for pair in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20)))
