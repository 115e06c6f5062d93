"""All of `degrid bench`: the sets, what they are measured on, and the run through them. Imports no torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from degrid.bench.measure import Case, Row, can_sample_memory, measure, merged, peak_memory, timed
from degrid.lookup import lookup
from degrid.threads import cpu_fields, cpu_name, torch_threads, usable_cores
from degrid.types import OnProgress, Progress, Tell

if TYPE_CHECKING:
    import numpy as np

    from degrid.bench.report import Results


SETS = {
    "operators": "degrid.bench.part_cases:operators",
    "winograd": "degrid.bench.part_cases:winograd",
    "networks": "degrid.bench.network_cases:networks",
    "train": "degrid.bench.network_cases:train",
    "loader": "degrid.bench.part_cases:loader",
    "post": "degrid.bench.part_cases:post",
    "crf": "degrid.bench.part_cases:crf",
    "start": "degrid.bench.start_cases:start",
    "throughput": "degrid.bench.start_cases:throughput",
    "busy": "degrid.bench.busy_cases:busy",
    "memory": "degrid.bench.network_cases:memory",
    "large": "degrid.bench.network_cases:large",
}
"""Name of a set to the function from a `Scope` to its blocks."""
ROUNDS, QUICK_ROUNDS = 3, 2


@dataclass(frozen=True)
class Block:
    """Cases that are measured together, in turn; `cases` makes them.

    name: of the job, for the progress.
    cost: seconds that it takes on two quiet cores, roughly, from which the remaining time is estimated.
    rounds: the most, for long calls; warmup: rounds before the measurement.
    seconds: short calls are repeated for this long.
    threads: of PyTorch; None: all.
    memory: measure the peak memory instead of the time.
    """

    name: str
    cost: float
    cases: Callable[[], list[Case]]
    rounds: int | None = None
    warmup: int = 2
    seconds: float = 2.0
    threads: int | None = None
    memory: bool = False


@dataclass(frozen=True)
class Scope:
    """What the cases run on.

    quick: small images, to see that everything works.
    size: height and width of the images instead of the usual ones; image: uint8 [H,W,3], a picture to use.
    """

    quick: bool = False
    size: tuple[int, int] | None = None
    image: np.ndarray | None = None

    def sizes(self, *usual: tuple[int, int]) -> list[tuple[int, int]]:
        """The sizes to measure at; `usual` unless something else is asked for."""
        if self.image is not None:
            return [(self.image.shape[0], self.image.shape[1])]
        return [self.size] if self.size else [(97, 97)] if self.quick else list(usual)

    def picture(self, size: tuple[int, int]) -> np.ndarray:
        """The user's picture, or a built-in scene of that size; uint8 [H,W,3]."""
        from degrid.data.synthetic import scene

        return self.image if self.image is not None else scene(size)[0]


def run(
    sets: Sequence[str] | None = None,
    out: str | Path = "build/bench",
    *,
    quick: bool = False,
    rounds: int | None = None,
    repeats: int = 1,
    image: str | Path | tuple[int, int] | None = None,
    threads: int | None = None,
    keep_freed_memory: bool = False,
    progress: OnProgress | None = None,
    tell: Tell | None = None,
) -> tuple[Results, list[Path]]:
    """Measure speed and memory on this machine, comparing every way of doing a job with the usual one.

    What is known is written after each block, so that stopping loses little.

    Args:
        sets: names in `SETS`, or "module:function" for one of your own; by default all.
        out: folder for bench.json, bench.md and a picture per set.
        quick: small images and few rounds, to see that everything works.
        rounds: of each measurement; by default 3, or 2 if quick.
        repeats: how often the whole benchmark is run.
        image: a picture file, or height and width, for the sets that measure whole images.
        threads: of PyTorch; by default its own choice.
        keep_freed_memory: keep freed memory in the process, as `degrid predict` does; it stays so afterwards.
        progress: called as the benchmark proceeds, in estimated seconds.
        tell: called with what was left out.
    Returns:
        What was found, and the files written.
    Raises:
        UserError: an unknown set, or no such picture.
    """
    from degrid.bench.report import write_markdown, write_pictures
    from degrid.engine.memory import keep_freed_memory as keep
    from degrid.image import read_image

    scope = Scope(quick, image=read_image(Path(image))) if isinstance(image, str | Path) else Scope(quick, image)
    blocks = {name: make(scope) for name, make in _makers(sets, tell or (lambda line: None)).items()}
    settings = {
        "sets": list(blocks),
        "quick": quick,
        "rounds": rounds or (QUICK_ROUNDS if quick else ROUNDS),
        "repeats": repeats,
        "image": f"{image[0]}x{image[1]}" if isinstance(image, tuple) else image and str(image),
        "keep_freed_memory": keep_freed_memory and keep(),
    }
    file = Path(out) / "bench.json"
    with torch_threads(threads):
        results = _measured(blocks, settings, file, progress or (lambda now: None))
    write_markdown(file.with_suffix(".md"), results)
    return results, [file, file.with_suffix(".md"), *write_pictures(out, results)]


def _makers(sets: Sequence[str] | None, tell: Tell) -> dict[str, Callable[[Scope], list[Block]]]:
    """The functions that make the blocks of each set."""
    if not sets and not can_sample_memory():
        tell("memory is left out: only Linux reports how much memory a process uses")
    makers: dict[str, Any] = {}
    for name in sets or [name for name in SETS if name != "memory" or can_sample_memory()]:
        found = lookup(SETS, name, "benchmark set")  # for a user's own set it is the function itself
        makers[name] = lookup({}, found, "benchmark set") if isinstance(found, str) else found
    return makers


def _measured(blocks: dict[str, list[Block]], settings: dict[str, Any], file: Path, progress: OnProgress) -> Results:
    from degrid.bench.report import Results, write_results

    found: dict[str, list[list[list[Row]]]] = {name: [[] for _ in parts] for name, parts in blocks.items()}
    machine, state = machine_facts(), {"before": machine_state()}
    total, done = settings["repeats"] * sum(block.cost for parts in blocks.values() for block in parts), 0.0

    def results() -> Results:
        sets = {name: [row for part in parts if part for row in merged(part)] for name, parts in found.items()}
        known = Results(machine, state, settings, {name: rows for name, rows in sets.items() if rows})
        write_results(file, known)
        return known

    def moved(status: str, seconds: float) -> None:
        progress(Progress("measuring", round(seconds), round(total), status))

    results()
    for _ in range(settings["repeats"]):
        for name, parts in blocks.items():
            for block, repeats in zip(parts, found[name], strict=True):
                repeats.append(_run(block, settings, partial(moved, f"{name}: {block.name}"), done))
                done += block.cost
                results()
    state["after"] = machine_state()
    return results()


def _run(block: Block, settings: dict[str, Any], moved: Callable[[float], None], done: float) -> list[Row]:
    """Make a block's cases and measure them; if quick, with at most one round to warm up, and no more than asked for.

    `moved` is called with the estimated seconds since the whole benchmark began, of which `done` are before this block.
    """
    rounds, quick = settings["rounds"], settings["quick"]
    moved(done)
    with torch_threads(block.threads):
        return measure(
            block.cases(),
            min(rounds, block.rounds or rounds),
            0 if quick else block.seconds * rounds / ROUNDS,
            warmup=min(block.warmup, 1) if quick else block.warmup,
            meter=peak_memory if block.memory else timed,
            unit="MiB" if block.memory else "s",
            on_round=lambda round, least: moved(done + block.cost * round / least),
        )


FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
"""Instruction sets that decide which kernels oneDNN uses, as Linux spells them."""
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "numba", "simplejpeg", "openvino", "onnxruntime")
_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")


def machine_facts() -> dict[str, Any]:
    """CPU, cores, threads, instruction sets, memory, allocator, versions: plain values, None where unknown."""
    import torch

    cpu = cpu_fields()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()) else None
    return {
        "cpu": cpu_name(),
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
    """The memory allocator (the C library's, or one preloaded in its place), and its settings from the environment.

    Settings made by mallopt() are invisible from outside, so they are missing.
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
