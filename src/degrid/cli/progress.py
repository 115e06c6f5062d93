"""One progress bar for every long command."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

    from degrid.types import Progress

LINE_SECONDS = 15
"""Minimum seconds between two plain lines, if there is no terminal."""
ETA_SECONDS = 1800
"""Seconds of which the speed is an average: a step may take minutes, and an ETA needs two."""


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
            speed_estimate_period=ETA_SECONDS,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line = time.monotonic()

    def __call__(self, now: Progress) -> None:
        """Show the progress of a task; a finished task disappears."""
        if now.task not in self._tasks:
            self._tasks[now.task] = self.display.add_task(
                now.task, total=now.total, completed=now.done, status=now.status
            )
        task = self._tasks[now.task]
        self.display.update(task, completed=now.done, total=now.total, status=now.status)
        if self._lines and time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            left = next(each.time_remaining for each in self.display.tasks if each.id == task)
            self.tell(f"{now}" if left is None else f"{now}, ETA {int(left) // 60}:{int(left) % 60:02d}")
        if now.done == now.total:
            self.display.remove_task(task)
            del self._tasks[now.task]

    def tell(self, line: str) -> None:
        """Print a line for people above the bar."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _NoBar(ProgressBar):
    """Progress that draws nothing: importing rich, which draws, takes a tenth of a second."""

    def __init__(self) -> None:
        pass

    def __call__(self, now: Progress) -> None:
        """Nothing."""

    def tell(self, line: str) -> None:
        """Print a line for people."""
        print(line, file=sys.stderr)


def _may_draw() -> bool:
    """Whether rich might be able to draw on the error stream."""
    return sys.stderr.isatty() or not {"FORCE_COLOR", "TTY_COMPATIBLE"}.isdisjoint(os.environ)


@contextmanager
def progress_bar(lines: bool = False, quiet: bool = False) -> Iterator[ProgressBar]:
    """A bar to hand to the library as `progress`, and as `tell` its method of that name."""
    if not (lines or quiet or _may_draw()):
        yield _NoBar()
        return
    bar = ProgressBar(lines, quiet)
    with bar.display:
        yield bar
