"""Jobs in processes of their own: each with its own libraries, threads and memory. Imports no torch."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable
from typing import Any

Made = tuple[Callable[[], object], dict[str, float]]
"""A job, and what is known of it: columns of the table by name and unit."""


class Apart:
    """A job that runs in a process of its own, which ends with this object.

    Args:
        make: makes the job there; a function of a module.
        arguments: of `make`.
    Attributes:
        notes: what is known of the job.
    """

    def __init__(self, make: Callable[..., Made], *arguments: object) -> None:
        start = multiprocessing.get_context("spawn")
        self.pipe, theirs = start.Pipe()
        start.Process(target=_serve, args=(theirs, make, arguments), daemon=True).start()
        theirs.close()
        self.notes: dict[str, float] = self.pipe.recv()

    def __call__(self) -> None:
        """Do the job once."""
        self.pipe.send(None)
        self.pipe.recv()


def _serve(pipe: Any, make: Callable[..., Made], arguments: tuple[object, ...]) -> None:
    call, notes = make(*arguments)
    pipe.send(notes)
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            call()
            pipe.send(None)
