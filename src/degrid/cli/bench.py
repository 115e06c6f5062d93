"""degrid bench."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from degrid.bench.suite import SETS

if TYPE_CHECKING:
    from rich.table import Table

    from degrid.bench.measure import Row


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
    repeats: Annotated[int, typer.Option(min=1, help="Run the whole benchmark this often, and show the spread.")] = 1,
    image: Annotated[
        str | None, typer.Option(help="A picture, or a size like 512x1024, for the sets that measure whole images.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch; by default its own choice.")] = None,
    keep_freed_memory: Annotated[
        bool,
        typer.Option("--keep-freed-memory", help="Keep freed memory in the process (mallopt), as degrid predict does."),
    ] = False,
) -> None:
    """Measure speed and memory on this machine, comparing every way of doing a job with the usual one.

    10 to 12 minutes on 2 quiet CPU cores. Trust the ratios, not the times: what is compared runs in the same rounds of
    one process. Networks have random weights.

    \b
    degrid bench
    degrid bench networks post --repeats 3
    degrid bench networks --image street.jpg -o build/street
    """
    from rich.console import Console

    from degrid.bench.report import groups, machine_lines
    from degrid.bench.suite import run
    from degrid.cli.options import parse_size
    from degrid.cli.progress import progress_bar

    is_size = image is not None and re.fullmatch(r"\d+(x\d+)?", image)
    size = parse_size(image if "x" in image else f"{image}x{image}") if image and is_size else None
    with progress_bar(lines=True) as bar:
        results, files = run(
            sets,
            out,
            quick=quick,
            rounds=rounds,
            repeats=repeats,
            image=size or image,
            threads=threads,
            keep_freed_memory=keep_freed_memory,
            progress=bar,
            tell=bar.tell,
        )
    console = Console(width=max(110, Console().width))
    for rows in results.sets.values():
        for name, part in groups(rows).items():
            console.print(_table(name, part))
    for line in machine_lines(results):
        print(line)
    print(f"results: {files[0]}; tables and pictures: {', '.join(map(str, files[1:]))}")


def _table(name: str, rows: Sequence[Row]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from degrid.bench.report import cells

    found = Table(title=escape(name), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    (first, *heads), lines = cells(rows)
    found.add_column(first, overflow="fold")
    for head in heads:
        found.add_column(escape(head), justify="right")
    for line in lines:
        found.add_row(*map(escape, line))
    return found
