"""One progress bar for every long command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar with ETA on the error stream; nothing without a terminal.

    Calling the result moves it on by one; calling it with (done, total) sets it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=total)

        def advance(done: int | None = None, total: int | None = None) -> None:
            if done is None:
                bar.update(task, advance=1)
            else:
                bar.update(task, completed=done, total=total)

        yield advance
