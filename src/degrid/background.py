"""Work beside other work, in its order: what comes next is read ahead, and results are used behind.

Threads are enough where libraries let go of Python's lock while they read, compress or count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

DEPTH = 2
"""How many images may wait to be predicted, or written; more would take memory and gain nothing."""
T = TypeVar("T")


def ahead(calls: Iterable[Callable[[], T]]) -> Generator[Callable[[], T], None, None]:
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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
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
