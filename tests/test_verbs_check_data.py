"""degrid.check_data and degrid.data.prepare_benchmark from Python: what their commands give."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.data import prepare_benchmark

MASK = (np.arange(48, dtype=np.uint8).reshape(6, 8)) % 3


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def put(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def dataset(root, names="abcdef"):
    rng = np.random.default_rng(0)
    for name in names:
        put(root / "images" / f"{name}.png", rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        put(root / "masks" / f"{name}.png", MASK)
    (root / "train.txt").write_text("\n".join(names[:-1]))
    (root / "val.txt").write_text(names[-1])
    return root


def faulty(root):
    dataset(root)
    (root / "classes.txt").write_text("road\nsky\ntree\nnever\n")
    (root / "masks" / "a.png").unlink()
    put(root / "masks" / "b.png", np.full((6, 8), 9, np.uint8))
    put(root / "masks" / "c.png", MASK[:3])
    (root / "images" / "d.png").write_bytes(b"")
    return root


@pytest.mark.parametrize(("make", "code", "problems"), [(dataset, 0, 0), (faulty, 2, 4)])
def test_check_gives_what_the_command_prints(tmp_path, make, code, problems):
    root = make(tmp_path / "photos")
    report = degrid.check_data(root)
    assert (report.ok, len(report.problems)) == (code == 0, problems)
    printed = run("data", "check", root, "--json")
    assert printed.exit_code == code
    # Through JSON: it has lists where Python has tuples.
    assert json.loads(printed.output) == json.loads(json.dumps(report.to_dict()))
    text = run("data", "check", root)
    assert (text.exit_code, text.output) == (code, f"{report}\n")


def test_of_very_many_unknown_colours_the_first_ones_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr("degrid.data.inspection.check.MOST_VALUES", 5)
    dataset(tmp_path)
    (tmp_path / "classes.txt").write_text("road\nsky\ntree\n")
    put(tmp_path / "masks" / "a.png", np.arange(48, dtype=np.uint8).reshape(6, 8))
    report = degrid.check_data(tmp_path)
    assert report.unknown == {str(value): (1, 1) for value in range(3, 8)}
    assert any(note.endswith("; 40 pixels of further ones") for note in report.notes)


def test_check_counts_and_names_the_faults(tmp_path):
    report = degrid.check_data(faulty(tmp_path))
    train, val = report.splits["train"], report.splits["val"]
    # Images are counted wherever they can be read, labels wherever they belong to their image: b's ids become void.
    assert (train.num_images, train.sizes, train.void_pixels) == (5, {"8x6": 4}, 48)
    assert (train.class_pixels, val.class_pixels) == ([16, 16, 16, 0], [16, 16, 16, 0])
    assert report.unknown == {"9": (1, 48)}
    for found, wanted in zip(
        sorted(report.problems),
        ("1 image that cannot be read", "1 image without a mask", "1 mask of another size", "1 mask with unknown"),
        strict=True,
    ):
        assert found.startswith(wanted)


def cityscapes(root):
    for split, city in (("train", "aachen"), ("val", "ulm"), ("test", "bonn")):
        name = f"{split}/{city}/{city}_000000_000019"
        put(root / "leftImg8bit" / f"{name}_leftImg8bit.png", np.zeros((4, 6, 3), np.uint8))
        put(root / "gtFine" / f"{name}_gtFine_labelIds.png", np.full((4, 6), 7, np.uint8))
    return root


def files_in(root):
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_prepare_gives_what_the_command_prints_and_writes(tmp_path):
    root = cityscapes(tmp_path / "data")
    steps = []
    report = prepare_benchmark("cityscapes", root, progress=lambda p: steps.append((p.done, p.total)))
    assert steps[-1] == (3, 3)
    written = files_in(root)
    assert {"train.txt", "val.txt", "test.txt", "classes.csv"} <= set(written)
    # The same folder afresh: the paths in the report and in the files are those of the first run.
    root.rename(tmp_path / "first")
    printed = run("data", "prepare", "cityscapes", cityscapes(root))
    assert (printed.exit_code, printed.output) == (0, "\n".join(report) + "\n")
    assert files_in(root) == written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cityscape",), 'unknown benchmark "cityscape"'),
        (("voc", "all"), "classes"),
        (("cityscapes",), "no folder leftImg8bit"),
    ],
)
def test_mistakes_are_told_alike(tmp_path, words, message):
    benchmark, *classes = words
    with pytest.raises(degrid.UserError, match=message) as raised:
        prepare_benchmark(benchmark, tmp_path, *classes)
    command = run("data", "prepare", benchmark, tmp_path, *(["--classes", *classes] if classes else []))
    assert isinstance(command.exception, degrid.UserError)
    assert str(command.exception) == str(raised.value)


def test_of_many_empty_classes_the_table_lists_those_with_pixels(tmp_path):
    for index in range(6):
        put(tmp_path / "images" / f"{index}.png", np.full((8, 8, 3), index * 30, np.uint8))
        put(tmp_path / "masks" / f"{index}.png", np.eye(8, dtype=np.uint8))
    for count, rows in ((39, 39), (60, 2)):
        (tmp_path / "classes.txt").write_text("".join(f"kind {index}\n" for index in range(count)))
        report = degrid.check_data(tmp_path)
        assert sum("  kind " in line for line in str(report).splitlines()) == rows
        assert len(report.to_dict()["classes"]) == count
