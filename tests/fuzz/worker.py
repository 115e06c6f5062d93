"""A process that gives degrid random inputs, within limits of memory and time, and says what came of them."""

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from degrid.types import UserError

GROWTH = 1 << 30  # bytes
SECONDS = 30
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class TooSlowError(BaseException):
    """An input took longer than it may."""


def _too_slow(signum, frame):
    raise TooSlowError


def _kib(name: str) -> int:
    """A line of /proc/self/status."""
    return int(next(line for line in _STATUS.read_text().splitlines() if line.startswith(name)).split()[1])


class limits:  # noqa: N801
    """Limits of memory and time: going beyond raises MemoryError or TooSlowError, or ends the process."""

    def __enter__(self):
        _CLEAR.write_text("5")
        self.before, self.began = _kib("VmRSS"), time.monotonic()
        resource.setrlimit(resource.RLIMIT_AS, ((_kib("VmSize") << 10) + GROWTH, resource.RLIM_INFINITY))
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # where Python is not asked
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        return self

    def __exit__(self, *error):
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        self.seconds, self.grown = time.monotonic() - self.began, (_kib("VmHWM") - self.before) / 1024


class Tally:
    """What came of the inputs of one kind."""

    def __init__(self, kind, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[str, dict[str, str]] = {}
        self.slowest = self.grown = 0.0
        self.slow_case = ""

    def take(self, case) -> None:
        """Give degrid one input. Nothing is raised; a failure is kept if it is the shortest of its kind."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        os.chdir(self.folder)
        (self.folder.parent / "case.txt").write_text(f"{self.kind.name}: {case!r}\n", errors="backslashreplace")
        watch = limits()
        try:
            with watch:
                outcome = self.kind.run(case, self.folder) or "accepted"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = verdict(error)
            if outcome != "refused":
                self.fail(error, case)
        self.outcomes[outcome] += 1
        if watch.seconds > self.slowest:
            self.slowest, self.slow_case = watch.seconds, repr(case)
        self.grown = max(self.grown, watch.grown)

    def fail(self, error: BaseException, case) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if f"{os.sep}degrid{os.sep}" in frame.filename] or frames[-1:]
        key = f"{type(error).__name__} at {Path(inside[-1].filename).name}:{inside[-1].lineno}"
        found = {"case": repr(case), "error": "".join(traceback.format_exception(error))}
        before = self.failures.get(key)
        if before is None or len(before["case"]) > len(found["case"]):
            self.failures[key] = found

    def to_dict(self):
        return {
            "kind": self.kind.name,
            "outcomes": dict(self.outcomes),
            "failures": self.failures,
            "slowest": self.slowest,
            "slow_case": self.slow_case,
            "grown": self.grown,
        }


def verdict(error: BaseException) -> str:
    """ "refused" if it is one sentence for the user that hides no lack of memory."""
    if not isinstance(error, UserError):
        return "traceback"
    text, chain = str(error), error
    if not text or "\n" in text or "Traceback" in text:
        return "no sentence"
    while chain is not None:
        if isinstance(chain, MemoryError) or "not enough memory" in str(chain) or "can't allocate" in str(chain):
            return "memory"
        chain = chain.__cause__ or chain.__context__
    return "refused"


def run(kind, count: int, number: int, folder: Path) -> Tally:
    """Give degrid `count` inputs of a kind; `number` is the seed."""
    tally = Tally(kind, folder)
    kind.prepare()

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.cases)
    def each(case):
        tally.take(case)

    each()
    return tally


def main(number: str, folder: str, *wanted: str) -> None:
    """Run "KIND:COUNT" after "KIND:COUNT", and print a line of JSON for each."""
    from fuzz.kinds_of_files import KINDS

    signal.signal(signal.SIGALRM, _too_slow)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module="PIL")  # on damaged EXIF
    for each in wanted:
        name, _, count = each.partition(":")
        found = run(KINDS[name], int(count), int(number), Path(folder) / "input")
        print(json.dumps(found.to_dict()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
