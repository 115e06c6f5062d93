"""A dataset format from outside the package, in one class, through the command line."""

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.data import SyntheticScenes, notes_of
from degrid.types import UserError

MODULE = '''
from functools import partial

import numpy as np
from degrid import LabelSpace
from degrid.data import DataFormat, FunctionSource, Layout

class Arrays(DataFormat):
    """train.npz and val.npz, each with images uint8 [N,H,W,3] and labels uint8 [N,H,W]."""

    wanted = "train.npz and val.npz with the arrays images and labels"

    def find(self, path):
        files = sorted(path.glob("*.npz"))
        splits = {file.stem: self.sources(file) for file in files}
        notes = ["the classes are numbered from 0 to 8"]
        return Layout(files[0].name, path, splits, LabelSpace.of_size(9), notes=notes) if files else None

    @staticmethod
    def sources(file):
        image, label = partial(Arrays.read, file, "images"), partial(Arrays.read, file, "labels")
        count = len(np.load(file)["labels"])
        return [FunctionSource(f"{file.stem}/{k}", partial(image, k), partial(label, k)) for k in range(count)]

    @staticmethod
    def read(file, key, k):
        return np.load(file)[key][k]

class NoFormat:
    pass
'''
TINY = ["model.encoder=timm:test_resnet", "model.pretrained=false", "model.channels=16", "data.crop=48,48"]
TINY += ["train.batch_size=2", "train.steps=2", "train.eval_every=2", "train.precision=float32", "optim.warmup=0"]


def cli(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is None:
        return result.output
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """The built-in scenes as arrays, in a folder "set" beside the module; and the folder is where commands run."""
    (tmp_path / "set").mkdir()
    for split, count in (("train", 4), ("val", 2)):
        dataset = SyntheticScenes(split, count, (72, 96))
        samples = [dataset[k] for k in range(count)]
        images = np.stack([sample.image.permute(1, 2, 0).numpy() for sample in samples])
        np.savez(
            tmp_path / "set" / f"{split}.npz", images=images, labels=np.stack([s.label.numpy() % 9 for s in samples])
        )
    (tmp_path / "own_arrays.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_arrays", None)


def test_a_format_of_ones_own_through_the_command_line(scenes):
    data = "own_arrays:Arrays=set"
    found = json.loads(cli("data", "check", data, "--json"))
    assert (found["kind"], found["reason"], found["ok"]) == ("own_arrays:Arrays", "train.npz", True)
    assert {split: counted["num_images"] for split, counted in found["splits"].items()} == {"train": 4, "val": 2}
    assert found["notes"] == ["the classes are numbered from 0 to 8"]
    assert found == degrid.check_data(data).to_dict() | {"splits": found["splits"]}
    assert cli("data", "stats", data).startswith(f"{data}, train: 4 images")
    assert "preview: " in cli("data", "preview", data, "-o", "sheet.png", "-n", 2)
    assert "(2 images)" in cli("data", "export", data, "--split", "val", "-o", "records/x_val.tfrecord")
    assert np.array_equal(degrid.open_dataset("records", "val")[1].label, np.load("set/val.npz")["labels"][1])
    settings = [word for setting in TINY for word in ("--set", setting)]
    assert "model: " in cli("train", "--data", data, *settings, "-o", "run")
    assert json.loads((scenes / "run" / "run.json").read_text())["config"]["data"]["path"] == (
        f"own_arrays:Arrays={scenes / 'set'}"
    )
    cli("eval", "run", "--data", data, "-o", "scores.json")
    scores = json.loads((scenes / "scores.json").read_text())
    assert (scores["num_images"], len(scores["class_names"])) == (2, 9)


def test_a_format_of_ones_own_in_a_description(scenes):
    (scenes / "set" / "dataset.yaml").write_text("format: own_arrays:Arrays\nclasses: [a, b, c, d, e, f, g, h, i]\n")
    report = degrid.check_data("set")
    assert (report.kind, report.reason) == ("own_arrays:Arrays", "dataset.yaml, train.npz")
    assert report.classes == list("abcdefghi")
    assert len(degrid.open_dataset("set", "val")) == 2
    (scenes / "set" / "train.txt").write_text("/a.png /b.png\n")
    (scenes / "set" / "dataset.yaml").write_text("format: own_arrays:Arrays\ntrain: train.txt\n")
    assert "a format brings its own splits" in cli("data", "check", "set/dataset.yaml")


def test_classes_and_notes_of_ones_own_format(scenes):
    dataset = degrid.open_dataset("own_arrays:Arrays=set")
    assert notes_of(dataset) == ["the classes are numbered from 0 to 8"]
    assert dataset[3].name == "train/3"


def test_a_format_of_our_own_may_be_named(scenes):
    with pytest.raises(UserError, match=r"set holds no data of the format VOC; expected JPEGImages"):
        degrid.open_dataset("VOC=set")


def test_mistakes_with_formats(scenes):
    for data, message in (
        ("own_arrays:Array=set", 'module "own_arrays" has no "Array". Did you mean "Arrays"'),
        ("own_arrays:NoFormat=set", "expected a class derived from degrid.data.DataFormat"),
        ("own_arrays:Arrays=.", "expected train.npz and val.npz with the arrays images and labels"),
        ("own_arrays:Arrays=nowhere", "no data at nowhere"),
        ("own_arrays:Arrays", "say where its data are: own_arrays:Arrays=FOLDER"),
    ):
        assert message in cli("data", "check", data), data
    np.savez("set/train.npz", images=np.zeros((1, 4, 4), np.float32), labels=np.zeros((1, 4, 4), np.uint8))
    report = degrid.check_data("own_arrays:Arrays=set")
    assert report.problems == [
        "1 sample that cannot be read (make or get them again): train/0: an image must be uint8 [H,W,3], got float32 "
        "[4, 4]"
    ]
