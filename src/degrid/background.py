"""Work in the background, in order: inputs are read ahead, and results are handled while the next ones are computed.

Threads are enough where libraries release Python's lock while they read, compress or count.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

DEPTH = 2
"""How many images may wait to be predicted, or written; more would take memory and gain nothing."""
T = TypeVar("T")


def ahead(calls: Iterable[Callable[[], T]], depth: int = DEPTH) -> Generator[Callable[[], T], None, None]:
    """Functions that give the result of each call, in order, or raise its error; a thread works `depth` ahead."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > depth:
                yield waiting.popleft().result
        while waiting:
            yield waiting.popleft().result


class Newest(Iterator[T]):
    """The newest of what a source gives, each at most once; what nobody asked for in time is left out.

    A thread goes through the source. The last one of all is always given. Use as a context manager, which ends the
    thread when the source gives the next or ends.
    """

    def __init__(self, source: Iterable[T]) -> None:
        self._slot: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(1)
        self._source, self._leave = source, threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True)

    def __enter__(self) -> Newest[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._leave.set()
        while self._thread.is_alive():
            self._empty()
            self._thread.join(0.05)

    def __next__(self) -> T:
        found = self._slot.get()
        if isinstance(found, tuple):
            return found[0]
        self._slot.put(None)  # for later calls
        if found is None:
            raise StopIteration
        raise found

    def _go(self) -> None:
        end: BaseException | None = None
        try:
            for item in self._source:
                if self._leave.is_set():
                    break
                self._empty()
                self._slot.put((item,))
        except BaseException as error:  # raised where the items are requested
            end = error
        self._slot.put(end)

    def _empty(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._slot.get_nowait()


class Background:
    """Runs calls one after another in a thread; use as a context manager, which waits for all and raises their error.

    Args:
        depth: how many calls may wait; a caller that is further ahead waits for the oldest. With 0 each call ends
            before the caller continues.
    """

    def __init__(self, depth: int = DEPTH) -> None:
        self._depth, self._pool = depth, ThreadPoolExecutor(1)
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
        self._waiting.append(self._pool.submit(call))
        while len(self._waiting) > self._depth:
            self._waiting.popleft().result()
