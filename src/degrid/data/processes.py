"""The same work on many items, in order, by several processes.

The other processes are plain Python programs that get their tasks through pipes. Unlike a fork they are safe beside
threads, and unlike those of `multiprocessing` they never run the user's script again, so that it needs no `if __name__
== "__main__"`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from degrid.threads import KEPT, usable_cores

Thing = TypeVar("Thing")
Result = TypeVar("Result")

_START = """
import pickle, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path[:] = pickle.load(sys.stdin.buffer)
from degrid.data.processes import serve
serve()
"""
_MOST_EARLY = 4  # processes, including the main one; more would be wasted on small jobs
# Seconds: how long to watch the pace before deciding on helpers; the work that is worth one; the length of a part.
_TRIAL, _WORTH, _PART = 0.05, 0.25, 0.03


def in_order(
    work: Callable[[Thing], Result], things: Sequence[Thing], processes: int | None = None
) -> Iterator[Result]:
    """work(thing) for each thing, in their order, whichever process did it.

    What cannot be sent to another process, and what fails there, is done in this one.

    Args:
        work: a function of a module that is quick to import; its results can be pickled.
        processes: how many take part, this one included; None: one for each core, if there is enough to do.
    """
    parts = _Parts(work, things)
    helpers: list[_Helper] = []
    position, own, seconds = 0, 0, 0.0
    try:
        while position < len(things):
            results = parts.results_from(position)
            if results is not None:
                yield from results
                position += len(results)
                continue
            wanted = _helpers_worth_it(seconds, parts.left * seconds / max(1, own), processes)
            helpers += [_Helper(parts) for _ in range(min(wanted - len(helpers), parts.left - 1))]
            part = parts.take(again=True)
            if part is None:
                parts.wait_for(position)
                continue
            began = time.perf_counter()
            parts.give(part, [work(thing) for thing in things[part.start : part.stop]])
            own, seconds = own + len(part), seconds + time.perf_counter() - began
            parts.size = max(1, min(64, int(_PART * own / max(seconds, 1e-6))))
    finally:
        parts.close()
        for helper in helpers:
            helper.stop(at_once=position < len(things))


def _helpers_worth_it(seconds: float, seconds_left: float, processes: int | None) -> int:
    if processes is not None:
        return processes - 1
    if seconds < _TRIAL or _is_frozen():
        return len(_idle)
    return min(usable_cores() - 1, max(len(_idle), int(seconds_left / _WORTH)))


def _is_frozen() -> bool:
    """Whether this is a frozen program, which cannot be started again as Python."""
    return getattr(sys, "frozen", False)


_idle: list[subprocess.Popen[bytes]] = []
_keepers = 0


@contextlib.contextmanager
def kept_processes(early: str = "", processes: int | None = None) -> Iterator[None]:
    """Let the other processes outlive one `in_order` and work for the next, inside the context.

    Args:
        early: a module that some processes load at once, while this one loads what it needs; empty: none is started.
        processes: see `in_order`.
    """
    global _keepers
    _keepers += 1
    try:
        if early and not _is_frozen():
            for _ in range((processes or min(usable_cores(), _MOST_EARLY)) - 1):
                with contextlib.suppress(OSError):  # this process does the work then
                    _idle.append(_started(early))
        yield
    finally:
        _keepers -= 1
        while _idle and not _keepers:
            _end(_idle.pop())


def _started(module: str = "") -> subprocess.Popen[bytes]:
    """Another process, which loads a module and waits for work."""
    process = subprocess.Popen(
        [sys.executable, "-c", _START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**KEPT, **os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert process.stdin
    process.stdin.write(pickle.dumps(sys.path) + pickle.dumps(module))
    process.stdin.flush()
    return process


class _Parts:
    """The work to do, and results not yet fetched; shared by the threads. A part is a range of items.

    size: things in a part, from now on.
    """

    def __init__(self, work: Callable[[Any], Any], things: Sequence[Any]) -> None:
        self.work, self.things, self.size = work, things, 1
        self._next = 0
        self._again: list[range] = []
        self._done: dict[int, list[Any]] = {}
        self._changed = threading.Condition()

    @property
    def left(self) -> int:
        """Things that nobody has taken yet."""
        return len(self.things) - self._next

    def take(self, again: bool) -> range | None:
        """The next part to do; None if there is none.

        Args:
            again: prefer a part that a helper failed to do.
        """
        with self._changed:
            if again and self._again:
                return self._again.pop()
            part = range(self._next, min(self._next + self.size, len(self.things)))
            self._next = part.stop
            return part or None

    def give(self, part: range, results: list[Any] | None) -> None:
        """Hand in what became of a part; None: the main process has to do it."""
        with self._changed:
            if results is None:
                self._again.append(part)
            else:
                self._done[part.start] = results
            self._changed.notify()

    def results_from(self, position: int) -> list[Any] | None:
        """The results of the part that starts there, if it is done."""
        with self._changed:
            return self._done.pop(position, None)

    def wait_for(self, position: int) -> None:
        """Wait until the part that starts there is done, or one has to be done again."""
        with self._changed:
            self._changed.wait_for(lambda: position in self._done or self._again)

    def close(self) -> None:
        """Give out no more parts."""
        with self._changed:
            self._next = len(self.things)


class _Helper:
    """A process, and the thread that feeds it."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self, at_once: bool) -> None:
        """End the thread.

        Args:
            at_once: do not wait for what the process is at, which is lost.
        """
        if at_once and self._process:
            self._process.kill()
        self._thread.join()

    def _run(self) -> None:
        part: range | None = None
        try:
            self._process = _idle_process() or _started()
            while part := self._parts.take(again=False):
                things = list(self._parts.things[part.start : part.stop])
                # With the path, since modules of the user's own may have been found meanwhile.
                message = pickle.dumps(sys.path) + pickle.dumps((self._parts.work, things))
                self._parts.give(part, _ask(self._process, message))
                part = None
            if _keepers:
                _idle.append(self._process)
                self._process = None
        except Exception:
            # Whatever it was (items that cannot be pickled, too little memory, ...), the main process continues.
            if part:
                self._parts.give(part, None)
        finally:
            if self._process:
                _end(self._process)


def _idle_process() -> subprocess.Popen[bytes] | None:
    with contextlib.suppress(IndexError):  # another thread may have been faster
        return _idle.pop()
    return None


def _ask(process: subprocess.Popen[bytes], message: bytes) -> list[Any] | None:
    assert process.stdin
    assert process.stdout
    process.stdin.write(message)
    process.stdin.flush()
    answer: list[Any] | None = pickle.load(process.stdout)
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # something was not sent
            assert pipe
            pipe.close()


def serve() -> None:
    """The loop of a helper process: it answers each part of the work by its results, or by None after a failure."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output printed by the work must not mix with the answers
    early = pickle.load(sys.stdin.buffer)
    if early:
        importlib.import_module(early)
    while True:
        try:
            sys.path[:] = pickle.load(sys.stdin.buffer)
            work, things = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = [work(thing) for thing in things]
        except Exception:  # the main process does the same work, and reports what is wrong
            answer = None
        pickle.dump(answer, answers)
        answers.flush()
