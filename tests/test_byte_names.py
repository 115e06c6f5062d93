"""Names of files that are not UTF-8, as archives of other systems leave them: they work everywhere, or are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.files import printable, read_json, write_json
from degrid.types import UserError
from degrid.verbs.train import run_config

LATIN, GBK = os.fsdecode(b"caf\xe9"), os.fsdecode("街1".encode("gbk"))
SHOWN = ("caf\\udce9", "\\udcbd\\udcd61")
TINY = {
    "model.encoder": "timm:test_resnet",
    "model.pretrained": False,
    "model.channels": 8,
    "data.crop": (33, 33),
    "train.steps": 2,
    "train.eval_every": 2,
    "train.batch_size": 2,
    "train.device": "cpu",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of images and masks in left and right halves, in a folder whose own name is not UTF-8 either."""
    folder = tmp_path_factory.mktemp("bytes") / LATIN
    for kind in ("images", "masks"):
        for split in ("train", "val"):
            (folder / kind / split).mkdir(parents=True)
            for index, name in enumerate((LATIN, GBK, "plain")):
                pixels = np.random.default_rng([index, len(split)]).integers(0, 256, (40, 48, 3), np.uint8)
                halves = np.repeat([[0, 1]], 24, axis=1).repeat(40, axis=0).astype(np.uint8)
                Image.fromarray(pixels if kind == "images" else halves).save(folder / kind / split / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return degrid.train(data=data, settings=TINY, out=tmp_path_factory.mktemp("run") / "run").folder


def test_training_shows_the_images_and_is_repeatable(run, data):
    settings = read_json(run / "run.json", "run")["config"]["data"]
    assert settings["path"] == str(data)  # the escaped bytes come back as they were
    assert list((run / "log" / "val").glob("events.*"))
    assert run_config(data=data).name == "caf_"
    assert degrid.check_data(data).ok


def test_predictions_and_their_summary(run, data, tmp_path):
    found = degrid.predict(run, data / "images" / "val", tmp_path / "out", device="cpu")
    assert (found.images, found.failures) == (3, ())
    for name in (LATIN, GBK, "plain"):
        assert (tmp_path / "out" / f"{name}.png").is_file()
        assert (tmp_path / "out" / f"{name}.overlay.jpg").is_file()
    assert set(read_json(tmp_path / "out" / "summary.json", "summary")["images"]) == {LATIN, GBK, "plain"}
    (tmp_path / "out" / "summary.json").read_text(encoding="utf-8")  # any program can read it


def test_the_worst_images_and_their_scores(run, data, tmp_path):
    found = degrid.evaluate(run, data, device="cpu", measures=degrid.Measures(worst=3))
    places = found.save(tmp_path / "scores.json")
    named = {row["name"] for row in read_json(tmp_path / "scores.json", "scores")["worst"]}
    assert named == {f"val/{LATIN}", f"val/{GBK}", "val/plain"}
    assert len([*places["pictures"].iterdir()]) == 3


def test_tfrecord_keeps_the_bytes(data, tmp_path):
    file = tmp_path / "x_train.tfrecord"
    degrid.data.write_tfrecord(degrid.open_dataset(data, "train"), file)
    written = file.read_bytes()
    assert b"caf\xe9" in written
    assert "街1".encode("gbk") in written
    assert len(degrid.open_dataset(file)) == 3


@pytest.mark.slow
def test_terminals_show_them_escaped(run, data, tmp_path):
    (tmp_path / f"{LATIN}.png").write_bytes(b"no image")
    (tmp_path / f"{GBK}.png").write_bytes((data / "images" / "val" / "plain.png").read_bytes())
    words = ["predict", run, tmp_path, "-o", tmp_path / GBK, "--device", "cpu"]
    done = subprocess.run([sys.executable, "-m", "degrid", *words], capture_output=True, check=False)
    assert done.returncode == 2
    assert f"1 image: masks and overlays in {tmp_path}/{SHOWN[1]}," in done.stdout.decode()
    assert f"1 of 2 images could not be used: {tmp_path}/{SHOWN[0]}.png is not an image" in done.stderr.decode()


@pytest.mark.parametrize("verb", ["train", "save", "load", "export", "info"])
def test_models_and_runs_with_such_names_are_refused_before_the_work(verb, run, data, tmp_path):
    place = tmp_path / LATIN / "x"
    calls = {
        "train": lambda: degrid.train(data=data, settings=TINY, out=place),
        "save": lambda: degrid.save(degrid.load(run), place),
        "load": lambda: degrid.load(place),
        "export": lambda: degrid.export(run, place / "x.onnx"),
        "info": lambda: degrid.predict(place, data, tmp_path),
    }
    with pytest.raises(UserError, match="is not UTF-8, which models and runs need; rename it"):
        calls[verb]()
    assert not place.parent.exists()


def test_preview(data, tmp_path):
    done = CliRunner().invoke(app, ["data", "preview", str(data), "-o", str(tmp_path / "p.png")])
    assert done.exit_code == 0
    assert (tmp_path / "p.png").is_file()


def test_json_is_utf8_and_reads_back(tmp_path):
    value = {LATIN: ["straße", GBK]}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "straße" in text
    assert "caf\\udce9" in text
    assert json.loads(text) == value
    assert printable("straße 图") == "straße 图"
    assert Path(json.loads(text)[LATIN][1]) == Path(GBK)
