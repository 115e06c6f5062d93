"""What a timing depends on: the machine, the libraries, and how fast and how busy the machine is at the moment."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from degrid.threads import usable_cores

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
"""Instruction sets that decide which kernels oneDNN uses, as Linux spells them."""
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "numba", "simplejpeg", "openvino", "onnxruntime")
_CPUINFO = Path("/proc/cpuinfo")
_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")


def machine_facts() -> dict[str, Any]:
    """CPU, cores, threads, instruction sets, memory, allocator, versions: plain values, None where unknown."""
    import torch

    # The first processor; Linux only.
    lines = _CPUINFO.read_text().split("\n\n")[0].splitlines() if _CPUINFO.exists() else []
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()) else None
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "instructions": [flag for flag in FLAGS if flag in flags],
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": pages and round(os.sysconf("SC_PAGE_SIZE") * pages / 2**30, 1),
        "allocator": allocator(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(LIBRARIES),
    }


def versions(libraries: Iterable[str]) -> dict[str, str | None]:
    """Version of each library; None for one that is not installed."""
    from importlib import metadata

    found: dict[str, str | None] = dict.fromkeys(libraries)
    for name in found:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def allocator() -> str:
    """The memory allocator: one loaded over the C library's, or that one; with its settings from the environment.

    Settings that a program makes by mallopt() cannot be seen from outside, and are missing.
    """
    maps = Path("/proc/self/maps")
    mapped = maps.read_text(errors="replace") if maps.exists() else ""
    loaded = [name for name in _ALLOCATORS if f"lib{name}" in mapped]
    settings = [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith(("MALLOC_", "GLIBC_"))]
    library = " ".join(platform.libc_ver()).strip() or "system"
    return " ".join([*(loaded or [library]), *settings])


def machine_state() -> dict[str, Any]:
    """How busy and how fast the machine is at the moment: plain values.

    load: processes that wanted to run over the last minute; None where unknown. threads: see `thread_state`.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"load": load, "threads": {str(count): speed for count, speed in thread_state().items()}}


def thread_state(
    threads: Iterable[int] | None = None, size: int = 1024, times: int = 7, clock: Callable[[], float] = perf_counter
) -> dict[int, float]:
    """GFLOP/s of a float32 matrix product by number of threads: the best of several, to see what the machine can do.

    Virtual cores are sometimes two threads of one real core: then two threads are hardly faster than one.

    Args:
        threads: numbers of threads; by default 1, 2 and as many as PyTorch uses now, as far as there are cores.
        size: rows and columns of the matrices; times: products per number of threads.
        clock: seconds since any moment.
    """
    import torch

    a, out = torch.ones(size, size), torch.empty(size, size)
    found = {}
    for count in threads or sorted({1, min(2, os.cpu_count() or 1), torch.get_num_threads()}):
        with torch_threads(count):
            torch.mm(a, a, out=out)
            best = 0.0
            for _ in range(times):
                began = clock()
                torch.mm(a, a, out=out)
                best = max(best, 2 * size**3 / (clock() - began) / 1e9)
            found[count] = best
    return found


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch use this many threads within the block; None: as many as now."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
