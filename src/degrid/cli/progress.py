"""One progress bar for every long command."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

    from degrid.types import Progress

LINE_SECONDS = 15
"""Least time between two plain lines about one task, where there is no terminal."""


class ProgressBar:
    """Draws `degrid.types.Progress` on the error stream: call it with how far the work has come.

    Args:
        lines: without a terminal, print a plain line now and then; otherwise nothing is printed there.
        quiet: print nothing at all.
    """

    def __init__(self, lines: bool = False, quiet: bool = False) -> None:
        from rich import progress as rich
        from rich.console import Console

        self._console = Console(stderr=True, quiet=quiet)
        drawn = self._console.is_terminal and not quiet
        self._lines = lines and not drawn
        self.display = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[status]}"),
            rich.TextColumn("ETA"),
            rich.TimeRemainingColumn(),
            console=self._console,
            disable=not drawn,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._last_line = time.monotonic()

    def __call__(self, now: Progress) -> None:
        """Show how far a task has come; a finished task disappears."""
        if now.task not in self._tasks:
            self._tasks[now.task] = self.display.add_task(
                now.task, total=now.total, completed=now.done, status=now.status
            )
            self._begun[now.task] = (time.monotonic(), now.done)
        task = self._tasks[now.task]
        self.display.update(task, completed=now.done, total=now.total, status=now.status)
        if self._lines and time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            self.tell(f"{now}{self._eta(now)}")
        if now.done == now.total:
            self.display.remove_task(task)
            del self._tasks[now.task]

    def tell(self, line: str) -> None:
        """Print a line for people above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _eta(self, now: Progress) -> str:
        began, first = self._begun[now.task]
        if now.total is None or now.done <= first:
            return ""
        left = int((time.monotonic() - began) / (now.done - first) * (now.total - now.done))
        return f", ETA {left // 60}:{left % 60:02d}"


@contextmanager
def progress_bar(lines: bool = False, quiet: bool = False) -> Iterator[ProgressBar]:
    """A bar to hand to the library as `progress`, and as `tell` its method of that name."""
    bar = ProgressBar(lines, quiet)
    with bar.display:
        yield bar


@contextmanager
def progress(title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """The earlier form: calling the result moves the bar on by one; calling it with (done, total) sets it."""
    from degrid.types import Progress

    with progress_bar() as bar:
        count = 0

        def advance(done: int | None = None, known: int | None = None) -> None:
            nonlocal count
            count = count + 1 if done is None else done
            bar(Progress(title, count, total if known is None else known))

        yield advance
