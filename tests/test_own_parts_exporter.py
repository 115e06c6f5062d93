"""A format from outside: one class, named on the command line for export, prediction and evaluation."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import network
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.data.synthetic import LABELS
from degrid.exporters.graph import example_image
from degrid.model_folder import open_model
from degrid.resize import resize
from degrid.types import UserError

MODULE = """
from pathlib import Path

import torch

from degrid.exporters.exporter import Exporter


class MyExporter(Exporter):
    "A traced program in NAME.mine, and the facts about it beside it in NAME.json."

    ending = ".mine"

    def write(self, source, path, facts):
        with open(path, "wb") as file:
            torch.export.save(source.program, file)
        path.with_suffix(".json").write_text(facts)

    def open(self, path):
        with open(path, "rb") as file:
            program = torch.export.load(file).module(check_guards=False)
        return program, path.with_suffix(".json").read_text()

    def files(self, path):
        return [path.with_suffix(".json"), path]


class Fixed(MyExporter):
    "The same for a single image of one size."

    any_size = False


class Elsewhere(MyExporter):
    "The same for a runtime that is not on this machine."

    open = Exporter.open


class Needy(MyExporter):
    packages = ("no_such_runtime",)
    install = "no-such-runtime"


function = max
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with my_module.py, the model folder m and the picture a.png in it."""
    (tmp_path / "my_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    torch.manual_seed(0)
    degrid.save(degrid.deeplabv3("test_export:Tiny", LABELS, output_stride=8, channels=8).eval(), "m")
    picture(50, 61)
    return tmp_path


def picture(height, width):
    image = example_image((1, 3, height, width), seed=2)
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save("a.png")
    return image


def cli(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output.replace("\n", " ")


def test_export_predict_and_eval(folder):
    text = cli("export", "m", "--format", "my_module:MyExporter", "-o", "out/n.mine")
    assert "try: degrid predict my_module:MyExporter=out/n.mine IMAGES" in text
    assert text.count("same class on 100.00 % of the pixels") == 4
    assert {file.name for file in Path("out").iterdir()} == {"n.mine", "n.json"}
    assert json.loads(Path("out/n.json").read_text())["version"] == degrid.__version__
    text = cli("predict", "my_module:MyExporter=out/n.mine", "a.png", "-o", "masks")
    assert "1 image: masks" in text
    with torch.no_grad():
        wanted = resize(degrid.load("m")(picture(50, 61)), (50, 61)).argmax(1)[0]
    assert (np.asarray(Image.open("masks/a.png")) == wanted.numpy()).mean() > 0.999
    scores = []
    for model in ("m", "my_module:MyExporter=out/n.mine"):
        cli("eval", model, "--data", "synthetic:2", "-o", "scores.json", "--precision", "float32")
        scores.append(json.loads(Path("scores.json").read_text())["miou"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_one_size_only(folder):
    words = ("export", "m", "--format", "my_module:Fixed", "-o", "n.mine")
    with pytest.raises(UserError, match="my_module:Fixed files are for images of one size; say which: --size"):
        cli(*words)
    assert not Path("n.mine").exists()
    text = cli(*words, "--size", "48x64")
    assert text.count("1 x 48x64: same class on 100.00 % of the pixels") == 2
    picture(48, 64)
    cli("predict", "my_module:Fixed=n.mine", "a.png", "-o", "masks")
    assert np.asarray(Image.open("masks/a.png")).shape == (48, 64)
    with pytest.raises(UserError, match="this exported model takes 1 image of 48x64, got 1 image of 50x61"):
        open_model("my_module:Fixed=n.mine")(picture(50, 61))


def test_files_that_cannot_be_run_here(folder):
    text = cli("export", "m", "--format", "my_module:Elsewhere", "-o", "n.mine")
    assert "not compared: files of this format cannot be run here" in text
    assert "predict" not in text
    with pytest.raises(UserError, match="n.mine cannot be run here"):
        cli("predict", "my_module:Elsewhere=n.mine", "a.png")
    with pytest.raises(UserError, match="int8 is for onnx and openvino, not for my_module:MyExporter"):
        cli("export", "m", "--format", "my_module:MyExporter", "-o", "i.mine", "--int8", "--calibrate", "synthetic:2")


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("my_module:Needy", "no_such_runtime is not installed; pip install no-such-runtime"),
        ("my_module:function", "expected a class derived from degrid.exporters.exporter.Exporter"),
        ("my_module:None", 'module "my_module" has no "None"'),
    ],
)
def test_what_is_no_format(folder, format, message):
    with pytest.raises(UserError, match=message):
        cli("export", "m", "--format", format, "-o", "n.mine")


def test_a_class_of_ones_own_from_python(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    import my_module

    model = network()
    result = degrid.export(model, "n.mine", format=my_module.MyExporter)
    assert result.name == "my_module:MyExporter=n.mine"
    assert [file.name for file in result.files] == ["n.json", "n.mine"]
    assert result.num_bytes == sum(file.stat().st_size for file in result.files)
    assert not model.training
