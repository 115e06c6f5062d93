"""Threads beside the computation: one reads the next images, one writes the results that are ready."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

DEPTH = 2
"""How many results may wait; more would take memory and gain nothing."""


def ahead(calls: Iterable[Callable[[], T]]) -> Iterator[Callable[[], T]]:
    """For each call, in order, a function that gives its result or raises its error; a thread works DEPTH ahead."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > DEPTH:
                yield waiting.popleft().result
        while waiting:
            yield waiting.popleft().result


class Background:
    """Runs calls one after another in a thread; use as a context manager, which waits for all and raises their error.

    A caller that is too far ahead waits for the oldest call.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[Any]] = deque()

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._waiting and error is None:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown()

    def run(self, call: Callable[[], object]) -> None:
        """Run it when those before it are done.

        Raises:
            the error of an earlier call.
        """
        while len(self._waiting) >= DEPTH:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(call))
