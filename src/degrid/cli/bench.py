"""degrid bench."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from degrid.cli.progress import progress
from degrid.lookup import lookup

if TYPE_CHECKING:
    from degrid.bench.measure import Row
    from degrid.bench.part_cases import Block, Scope
    from degrid.bench.report import Results

SETS = {
    "operators": "degrid.bench.part_cases:operators",
    "winograd": "degrid.bench.part_cases:winograd",
    "networks": "degrid.bench.network_cases:networks",
    "train": "degrid.bench.network_cases:train",
    "loader": "degrid.bench.part_cases:loader",
    "post": "degrid.bench.part_cases:post",
    "memory": "degrid.bench.network_cases:memory",
    "large": "degrid.bench.network_cases:large",
}
"""Name of a set to the function from a Scope to its blocks."""
ROUNDS = 3
QUICK_ROUNDS = 2


def bench(
    sets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SET]...", help=f"What to measure: {', '.join(SETS)}. All of them by default."),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for bench.json, bench.md and the pictures.")] = Path(
        "build/bench"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Small images and few rounds: to see that it works.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each measurement; 3, or 2 with --quick.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Do everything so often; shows the spread over repeats.")] = 1,
    image: Annotated[
        str | None, typer.Option(help="A picture, or a size like 512x1024, for the sets that look at whole images.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch; by default its own choice.")] = None,
    keep_freed_memory: Annotated[
        bool, typer.Option("--keep-freed-memory", help="Let the C library do so for all cases, as degrid predict does.")
    ] = False,
) -> None:
    """Measure speed and memory on this machine, each way of doing a job in turn with the usual one.

    10 to 12 minutes on 2 quiet CPU cores. The ratios are to be trusted, not the times: what is compared runs in the
    same rounds of one process. Networks have random weights.

    \b
    degrid bench
    degrid bench networks post --repeats 3
    degrid bench networks --image street.jpg -o build/street
    """
    import torch
    from rich.console import Console

    from degrid.bench.report import machine_lines, tables, write_markdown, write_pictures
    from degrid.engine.inference import fast_network as fast

    makers = _makers(sets)
    scope = _scope(quick, image)
    if threads is not None:
        torch.set_num_threads(threads)
    count = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    blocks = {name: make(scope) for name, make in makers.items()}
    settings = {"sets": list(blocks), "quick": quick, "rounds": count, "repeats": repeats, "image": image}
    settings["keep_freed_memory"] = keep_freed_memory and fast.keep_freed_memory()
    results = _measure(blocks, count, repeats, settings, out / "bench.json")
    console = Console(width=max(110, Console().width))
    for table in tables(results):
        console.print(table)
    for line in machine_lines(results):
        print(line)
    write_markdown(out / "bench.md", results)
    pictures = write_pictures(out, results)
    files = ", ".join(str(file) for file in (out / "bench.md", *pictures))
    print(f"results: {out / 'bench.json'}; tables and pictures: {files}")


def _makers(sets: list[str] | None) -> dict[str, Callable[[Scope], list[Block]]]:
    """The functions that make the blocks of each set.

    Raises:
        UserError: an unknown set.
    """
    from degrid.bench.memory import can_sample_memory

    if not sets and not can_sample_memory():
        print("memory is left out: only Linux tells how much memory a process holds", file=sys.stderr)
    names = sets or [name for name in SETS if name != "memory" or can_sample_memory()]
    makers: dict[str, Any] = {}
    for name in names:
        found = lookup(SETS, name, "benchmark set")  # of one's own it is the function itself
        makers[name] = lookup({}, found, "benchmark set") if isinstance(found, str) else found
    return makers


def _scope(quick: bool, image: str | None) -> Scope:
    """What to measure on.

    Raises:
        UserError: neither a picture nor a size.
    """
    from degrid.bench.part_cases import Scope
    from degrid.cli.options import parse_size
    from degrid.image import read_image

    if image is None:
        return Scope(quick)
    if re.fullmatch(r"\d+(x\d+)?", image):
        return Scope(quick, parse_size(image if "x" in image else f"{image}x{image}"))
    return Scope(quick, image=read_image(image))


def _measure(
    blocks: dict[str, list[Block]], rounds: int, repeats: int, settings: dict[str, Any], file: Path
) -> Results:
    """Measure everything, so often, and write what is known after each block, so that stopping loses little."""
    from degrid.bench.machine import machine_facts
    from degrid.bench.measure import merged
    from degrid.bench.report import Results, write_results

    found: dict[str, list[list[list[Row]]]] = {name: [[] for _ in parts] for name, parts in blocks.items()}
    machine, state = machine_facts(), {"before": _state()}

    def results() -> Results:
        sets = {name: [row for part in parts if part for row in merged(part)] for name, parts in found.items()}
        return Results(machine, state, settings, {name: rows for name, rows in sets.items() if rows})

    write_results(file, results())
    total, done = repeats * sum(block.cost for parts in blocks.values() for block in parts), 0.0
    with progress("measuring", round(total)) as advance:
        for _ in range(repeats):
            for name, parts in blocks.items():
                for place, block in enumerate(parts):
                    if not sys.stderr.isatty():
                        print(f"{done / total:4.0%} {name}: {block.name}", file=sys.stderr, flush=True)
                    step = partial(_advance, advance, done, block.cost, total)
                    rows = _run(block, rounds, settings["quick"], step)
                    found[name][place].append(rows)
                    done += block.cost
                    write_results(file, results())
    state["after"] = _state()
    write_results(file, results())
    return results()


def _advance(bar: Callable[..., None], done: float, cost: float, total: float, part: float) -> None:
    """Move the bar to where a share of a block is done."""
    bar(round(done + part * cost), round(total))


def _run(block: Block, rounds: int, quick: bool, on_part: Callable[[float], None]) -> list[Row]:
    """Make a block's cases and measure them.

    Args:
        quick: one round to warm up, and no more rounds than asked for.
        on_part: called with the share that is done, 0 to 1.
    """
    import torch

    from degrid.bench.measure import measure, timed
    from degrid.bench.memory import peak_memory

    threads = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(block.threads or threads)
        return measure(
            block.cases(stack),
            min(rounds, block.rounds or rounds),
            0 if quick else block.seconds * rounds / ROUNDS,
            warmup=min(block.warmup, 1) if quick else block.warmup,
            meter=peak_memory if block.memory else timed,
            unit="MiB" if block.memory else "s",
            on_round=lambda done, least: on_part(done / least),
        )


def _state() -> dict[str, Any]:
    """How fast and how busy the machine is at the moment."""
    from degrid.bench.machine import load_average, thread_state

    return {"load": load_average(), "threads": {str(count): speed for count, speed in thread_state().items()}}
