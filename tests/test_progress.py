"""The progress bar: what is drawn on a terminal, and what is printed without one."""

import io

import pytest
from rich.console import Console

from degrid.cli import progress as module
from degrid.cli.progress import progress_bar
from degrid.types import Progress


@pytest.fixture
def stream(monkeypatch):
    """The error stream as text; `True` in `stream.terminal` makes it a terminal."""
    text = io.StringIO()
    text.terminal = False

    def console(stderr, quiet):
        return Console(file=text, force_terminal=text.terminal, quiet=quiet, width=120)

    monkeypatch.setattr("rich.console.Console", console)
    monkeypatch.setattr(module, "_may_draw", lambda: True)  # so that rich decides
    return text


def work(bar, tasks=("step",)):
    for task in tasks:
        for done in (1, 2, 3):
            bar(Progress(task, done, 3, "loss 0.5"))


def test_a_terminal_gets_a_bar_and_lines_above_it(stream):
    stream.terminal = True
    with progress_bar() as bar:
        bar(Progress("predicting", 1, 4, "photo.jpg"))
        bar.tell("[a] sentence")
        bar(Progress("predicting", 2, 4))
        bar.display.refresh()
    for part in ("predicting", "2/4", "ETA", "[a] sentence"):
        assert part in stream.getvalue()


def test_a_task_may_begin_again(stream):
    stream.terminal = True
    with progress_bar() as bar:
        work(bar, ("step", "validating", "step", "validating"))
        assert not bar.display.tasks


def test_without_a_terminal_nothing_is_printed(stream):
    with progress_bar() as bar:
        work(bar)
    assert stream.getvalue() == ""


def test_plain_lines_come_now_and_then(stream, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress_bar(lines=True) as bar:
        for done in range(5, 9):
            bar(Progress("step", done, 100, "loss 0.5"))
    lines = stream.getvalue().splitlines()
    assert 1 < len(lines) <= 4
    assert lines[-1].startswith("step 8/100: loss 0.5, ETA ")


def test_steps_of_minutes_have_an_eta(stream, monkeypatch):
    monkeypatch.setattr(module, "LINE_SECONDS", -1)
    with progress_bar(lines=True) as bar:
        for minute in range(0, 20, 4):
            monkeypatch.setattr(bar.display, "get_time", lambda now=minute: 60.0 * now)
            bar(Progress("step", minute // 4, 10))
    assert [line.split("ETA ")[-1] for line in stream.getvalue().splitlines()[2:]] == ["32:00", "28:00", "24:00"]


def test_quiet_is_quiet(stream):
    for stream.terminal in (True, False):
        with progress_bar(lines=True, quiet=True) as bar:
            work(bar)
            bar.tell("a sentence")
    assert stream.getvalue() == ""
