"""What is counted before training: from masks alone, once, and again where a mask has changed."""

import os
import time

import numpy as np
import pytest
from PIL import Image

import degrid
from degrid.data.inspection import counting
from degrid.data.inspection.counting import class_counts
from degrid.types import UserError


def write_mask(folder, index, ids):
    file = folder / "masks" / f"{index}.png"
    Image.fromarray(np.array(ids, np.uint8)).save(file)
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three images of 2x3 pixels and classes 0, 1, 2, 255; files and the empty memory of counts are a minute old."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    for index, ids in enumerate(([[0, 0, 0], [1, 1, 255]], [[2, 2, 2], [2, 2, 2]], [[0, 1, 0], [0, 0, 0]])):
        write_mask(tmp_path, index, ids)
        Image.fromarray(np.full((2, 3, 3), 90, np.uint8)).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images\nmasks: masks\nclasses: [a, b, c]\n")
    for file in tmp_path.rglob("*.png"):
        os.utime(file, (time.time() - 60,) * 2)
    return tmp_path


def counts_of(folder):
    return class_counts(degrid.open_dataset(folder / "data.yaml")).tolist()


def test_counts_are_those_of_the_masks_and_kept_until_one_changes(folder, monkeypatch):
    wanted = [[3, 2, 0, 1], [0, 0, 6, 0], [5, 1, 0, 0]]
    dataset = degrid.open_dataset(folder / "data.yaml")
    (folder / "images" / "1.png").write_bytes(b"no image is read")
    os.utime(folder / "images" / "1.png", (time.time() - 60,) * 2)
    assert class_counts(dataset).tolist() == wanted
    with monkeypatch.context() as patch:
        patch.setattr(counting, "_counted", lambda dataset: pytest.fail("read again"))
        assert counts_of(folder) == wanted
    changed = write_mask(folder, 2, [[1, 1, 1], [1, 1, 1]])
    os.utime(changed, (time.time() - 50,) * 2)
    assert counts_of(folder) == [*wanted[:2], [0, 6, 0, 0]]
    # The same masks with other classes are counted anew, too.
    (folder / "data.yaml").write_text(
        f"path: {folder}\ntrain: images\nmasks: masks\nclasses: {{0: a, 1: void, 2: c}}\n"
    )
    assert counts_of(folder) == [[3, 0, 3], [0, 6, 0], [0, 0, 6]]


def test_files_that_may_still_change_are_counted_each_time(folder):
    young = write_mask(folder, 2, [[1, 1, 1], [1, 1, 1]])
    assert counts_of(folder)[2] == [0, 6, 0, 0]
    times = young.stat().st_atime_ns, young.stat().st_mtime_ns
    write_mask(folder, 2, [[2, 2, 2], [2, 2, 2]])
    os.utime(young, ns=times)
    assert counts_of(folder)[2] == [0, 0, 6, 0]


def test_what_cannot_be_counted_is_said(folder):
    write_mask(folder, 1, [[7, 7, 7], [7, 7, 7]])
    with pytest.raises(UserError, match=r"1\.png.*7"):
        counts_of(folder)
