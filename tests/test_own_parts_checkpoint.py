"""A program's checkpoints and a kind of file from outside: one class each, named on the command line."""

import base64
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import degrid
from degrid.cli import app

SYSTEM = """
from degrid.checkpoints.systems.plan import Drop, Plan, System, first_match
from degrid.checkpoints.systems.rules import batch_counter


class MySystem(System):
    "DeepLab v3 on ResNet-18, its parameters below backbone and seg."

    title = "my program"

    def recognise(self, tensors):
        return first_match(tensors, r"seg\\.classifier\\.weight")

    def plan(self, tensors):
        def rule(name, value):
            if name == "step":
                return Drop("step counter")
            part, _, rest = name.partition(".")
            places = {"backbone": "encoder.net", "seg": "head"}
            return {f"{places[part]}.{rest}": value} if part in places else None

        settings = {"network": "deeplabv3", "encoder": "timm:resnet18", "output_stride": 16, "channels": 16}
        return Plan(settings).fill(tensors, batch_counter, rule)


function = max
"""

READER = """
import base64
import json

import numpy as np

from degrid.checkpoints.readers.reader import Contents, Reader


class Text(Reader):
    "Shapes and base64 of float32 arrays as JSON."

    def recognise(self, file, path):
        return bytes(file.data[:1]) == b"{"

    def read(self, file, path):
        rows = json.loads(bytes(file.data)).items()
        return Contents({k: np.frombuffer(base64.b64decode(text), np.float32).reshape(n) for k, (n, text) in rows})
"""


def command(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exception, done.output


@pytest.fixture
def model(tmp_path, monkeypatch):
    """The network that my program trained; my.pth is its checkpoint in the working directory."""
    (tmp_path / "my_module.py").write_text(SYSTEM + READER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    torch.manual_seed(0)
    model = degrid.deeplabv3("timm:resnet18", 3, output_stride=16, channels=16).eval()
    places = {"encoder.net": "backbone", "head": "seg"}
    state = {"step": torch.tensor(7)}
    for name, value in model.state_dict().items():
        ours = next(place for place in places if name.startswith(place))
        state[name.replace(ours, places[ours], 1)] = value
    torch.save({"state_dict": state}, "my.pth")
    return model


def test_a_system_from_outside_gives_a_model_that_predicts(model, tmp_path):
    error, output = command("convert", "my.pth", "-o", "m", "--as", "my_module:MySystem")
    assert error is None, output
    assert "system    my program, recognised by seg.classifier.weight\n" in output
    assert "dropped   1: step counter\n" in output
    for name, value in degrid.load("m").state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, model.state_dict()[name]), name
    pixels = np.random.default_rng(0).integers(0, 256, (40, 57, 3), np.uint8)
    Image.fromarray(pixels).save("a.png")
    error, output = command("predict", "m", "a.png", "-o", "results", "--precision", "float32")
    assert error is None, output
    with Image.open("results/a.png") as written:
        assert np.array_equal(np.asarray(written), degrid.Predictor(model, precision="float32")(pixels))


def test_without_a_folder_the_report_is_all(model, tmp_path):
    before = sorted(tmp_path.iterdir())
    error, output = command("convert", "my.pth", "--as", "my_module:MySystem")
    assert error is None
    assert "nothing was written" in output
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_a_reader_from_outside(model, tmp_path):
    arrays = {name: value.float().numpy() for name, value in torch.load("my.pth")["state_dict"].items()}
    rows = {name: (value.shape, base64.b64encode(value.tobytes()).decode()) for name, value in arrays.items()}
    (tmp_path / "my.json").write_text(json.dumps(rows))
    options = ("--as", "my_module:MySystem", "--reader", "my_module:Text")
    error, output = command("convert", "my.json", "-o", "m", *options)
    assert error is None, output
    assert "my.json (my_module:Text)\n" in output
    assert torch.equal(degrid.load("m").head.classifier.weight, model.head.classifier.weight)


@pytest.mark.parametrize(("option", "what"), [("--as", "system"), ("--reader", "reader")])
def test_what_is_no_such_class_is_refused(model, option, what):
    error, _ = command("convert", "my.pth", option, "my_module:function")
    assert isinstance(error, degrid.UserError)
    assert f'{what} "my_module:function" must be a class derived from' in str(error)
