"""Work shared among processes gives what one process gives, whatever happens to the others."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_verbs_check_data import dataset

import degrid
from degrid.data.processes import _idle, in_order, kept_processes
from degrid.image import read_jpeg
from degrid.threads import usable_cores
from degrid.types import UserError

PARTS = """
import os, sys, time
from pathlib import Path
from degrid.image import read_jpeg
from degrid.types import UserError
HOME, HELPED = {home}, Path({helped!r})

def wait_for_a_helper():
    while os.getpid() == HOME and not HELPED.exists():
        time.sleep(0.002)
    HELPED.touch()

def square(x):
    return x * x

def where(x):
    wait_for_a_helper()
    return os.getpid(), "torch" in sys.modules

def die(x):
    wait_for_a_helper()
    if os.getpid() != HOME:
        os._exit(1)
    return x + 1

def fail(x):
    wait_for_a_helper()
    if os.getpid() != HOME:
        raise RuntimeError
    return x + 1

def talk(x):
    wait_for_a_helper()
    print("words among the answers", flush=True)
    return x + 1

def told(name):
    wait_for_a_helper()
    return os.getpid(), os.environ.get(name)

def refuse(x):
    if x == 5:
        raise UserError(f"{{x}} cannot be used")
    return x
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    (tmp_path / "parts_of_work.py").write_text(PARTS.format(home=os.getpid(), helped=str(tmp_path / "helped")))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "parts_of_work", raising=False)
    import parts_of_work

    return parts_of_work


@pytest.mark.parametrize("processes", [None, 1, 2, 3])
def test_results_come_in_order(parts, processes):
    assert list(in_order(parts.square, range(200), processes)) == [x * x for x in range(200)]
    assert list(in_order(parts.square, [], processes)) == []


def test_helpers_take_part_and_load_no_torch(parts):
    seen = set(in_order(parts.where, range(40), 3))
    helpers = {(process, torch) for process, torch in seen if process != os.getpid()}
    assert 1 <= len(helpers) <= 2
    assert not any(torch for _, torch in helpers)


@pytest.mark.parametrize("own", [None, "7"])
def test_helpers_let_pillow_keep_its_memory(parts, own, monkeypatch):
    """The user's own setting wins."""
    monkeypatch.delenv("PILLOW_BLOCKS_MAX", raising=False)
    if own:
        monkeypatch.setenv("PILLOW_BLOCKS_MAX", own)
    seen = {value for process, value in in_order(parts.told, ["PILLOW_BLOCKS_MAX"] * 40, 2) if process != os.getpid()}
    assert seen == {own or "1"}


def test_little_work_starts_no_process(parts, monkeypatch):
    monkeypatch.setattr("degrid.data.processes.subprocess.Popen", None)
    assert list(in_order(parts.square, range(3))) == [0, 1, 4]


@pytest.mark.parametrize("name", ["die", "fail", "talk"])
def test_a_helper_that_dies_fails_or_talks_changes_nothing(parts, name):
    assert list(in_order(getattr(parts, name), range(40), 2)) == list(range(1, 41))


def test_without_other_processes_the_work_is_done_here(parts, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    assert list(in_order(parts.square, range(40), 2)) == [x * x for x in range(40)]


def test_work_and_things_that_cannot_be_sent_are_done_here(parts):
    assert list(in_order(lambda x: x + 1, range(40), 2)) == list(range(1, 41))
    things = [(lambda x=x: x) for x in range(40)]
    assert [thing() for thing in in_order(parts.refuse, things, 2)] == list(range(40))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_is_raised_here(parts, processes):
    with pytest.raises(UserError, match="5 cannot be used"):
        list(in_order(parts.refuse, range(40), processes))


def test_stopping_early_leaves_no_process(parts):
    results = in_order(parts.where, range(10_000), 2)
    helper = next(process for process, *_ in results if process != os.getpid())
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(helper, 0)


def test_kept_processes_start_early_and_work_for_what_follows(parts, monkeypatch):
    with kept_processes("json", 2):
        monkeypatch.setattr("degrid.data.processes.subprocess.Popen", None)
        seen = [{process for process, _ in in_order(parts.where, range(40), 2)} for _ in range(2)]
    assert seen[0] == seen[1]
    (helper,) = seen[0] - {os.getpid()}
    with pytest.raises(ProcessLookupError):
        os.kill(helper, 0)


def test_early_processes_without_work_end():
    with kept_processes("json", 3):
        early = [process.pid for process in _idle]
        assert len(early) == 2
    for process in early:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_number_of_cores():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_a_script_needs_no_guard(tmp_path):
    """`multiprocessing` would run the script again in every process."""
    root = dataset(tmp_path / "photos")
    script = tmp_path / "script.py"
    script.write_text(f"import degrid\nprint(degrid.check_data({str(root)!r}, processes=2))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{degrid.check_data(root, processes=1)}\n"
    assert not done.stderr


# ---- the check ----------------------------------------------------------------------------------------------

FORMAT = """
import functools, os, time
import numpy as np
from degrid.data import DataFormat, FunctionSource, Layout
from degrid.types import LabelSpace, UserError

def image(k, folder):
    (folder / str(os.getpid())).touch()
    while folder.name == "2" and len(list(folder.iterdir())) == 1:
        time.sleep(0.002)  # for the helper to take part
    if k % 7 == 3:
        raise UserError(f"image {k} is damaged")
    return np.arange(72, dtype=np.uint8).reshape(4, 6, 3) + k % 20  # from 20 on, the images are there twice

def label(k):
    return np.full((4, 6 - (k % 11 == 5)), k % 5, np.uint8)

class Made(DataFormat):
    def find(self, path):
        def sources(first, last):
            return [FunctionSource(f"n{k % 25}", functools.partial(image, k, path), functools.partial(label, k))
                    for k in range(first, last)]
        return Layout("made", path, {"train": sources(0, 30), "val": sources(30, 60)}, LabelSpace.of_size(4))
"""


def test_the_report_does_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    (tmp_path / "made_format.py").write_text(FORMAT)
    monkeypatch.syspath_prepend(tmp_path)
    reports = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        report = degrid.check_data(f"made_format:Made={folder}", processes=processes)
        reports.append({**report.to_dict(), "path": ""})
        assert len(list(folder.iterdir())) == processes
    assert reports[0] == reports[1]
    kinds = ("samples that cannot be read", "unknown values", "samples in val", "images of val are in train")
    assert all(any(kind in problem for problem in reports[0]["problems"]) for kind in kinds)
    assert any("images that are in one split twice" in note for note in reports[0]["notes"])


def test_brightness_alone_shows_the_same_damage(tmp_path):
    """The check decodes the brightness of a JPEG only; whatever is wrong with its bytes is noticed as in colour."""
    pytest.importorskip("simplejpeg")
    rng, file = np.random.default_rng(0), tmp_path / "a.jpg"
    pixels = np.cumsum(rng.integers(-9, 10, (64, 80, 3)), axis=1).clip(-100, 100).astype(np.int16) + 128
    Image.fromarray(pixels.astype(np.uint8)).save(file, quality=90)
    whole, damaged = file.read_bytes(), 0
    for k in range(300):
        data = bytearray(whole[: rng.integers(1, len(whole))] if k % 3 == 0 else whole)
        for place in rng.integers(0, len(data), k % 3):
            data[place] = rng.integers(256)
        file.write_bytes(data)
        color, luma = read_jpeg(file), read_jpeg(file, luma=True)
        assert (color is None) == (luma is None)
        damaged += luma is None
    assert 100 < damaged < 300


def test_dark_blue_is_not_nearly_black(tmp_path):
    for name, blue in (("deep", 200), ("dark", 15)):
        for folder, picture in (
            ("images", Image.new("RGB", (16, 16), (0, 0, blue))),
            ("masks", Image.new("L", (16, 16))),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            suffix = "jpg" if folder == "images" else "png"
            picture.save(tmp_path / folder / f"{name}.{suffix}", quality=95)
    notes = [note for note in degrid.check_data(tmp_path).notes if "nearly black" in note]
    assert len(notes) == 1
    assert "dark.jpg" in notes[0]
