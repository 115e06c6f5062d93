"""`degrid.export` from Python: the same files as by the command."""

import pytest
from test_export import network
from torch import nn
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.contracts import ExportedNetwork
from degrid.data.synthetic import LABELS
from degrid.types import UserError


@pytest.fixture
def folder(tmp_path):
    degrid.save(network(), tmp_path / "m")
    return tmp_path


def scene_network():
    return degrid.deeplabv3("test_export:Tiny", LABELS, output_stride=8, channels=8).eval()


@pytest.mark.slow
def test_the_verb_writes_what_the_command_writes(folder):
    told = []
    result = degrid.export(folder / "m", tell=told.append)
    assert result.files[-1] == folder / "m.onnx"
    assert (result.name, len(result.files), result.int8) == (str(folder / "m.onnx"), 1, None)
    assert [comparison.agreement > 0.999 for comparison in result.comparisons] == [True] * 4
    assert told[-1] == "comparing with PyTorch at sizes that were not traced"
    by_verb = result.files[-1].read_bytes()
    assert len(by_verb) == result.num_bytes
    done = CliRunner().invoke(app, ["export", str(folder / "m")])
    assert done.exception is None, done.output
    assert result.files[-1].read_bytes() == by_verb
    assert all(f"{comparison}\n" in done.output for comparison in result.comparisons)


def test_a_network_that_is_being_trained_stays_as_it_is(folder):
    model = network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    degrid.export(model, folder / "n.pt2", format="torch-export", output="logits")
    assert model.training
    assert all((value == before[key]).all() for key, value in model.state_dict().items())
    with pytest.raises(UserError, match="say where to write the network"):
        degrid.export(model)


@pytest.mark.slow
def test_int8_is_measured_on_other_images_than_it_is_calibrated_on(tmp_path):
    model = scene_network()
    seen = []
    int8 = degrid.Int8("synthetic:4", images=1, max_drop=100)
    result = degrid.export(model, tmp_path / "n.onnx", int8=int8, progress=lambda now: seen.append(str(now)))
    assert seen == ["measuring float32 1/1", "measuring int8 1/1"]
    assert result.int8.images == 1
    assert 0 <= result.int8.int8 <= 1
    assert "mIoU on 1 image not calibrated on: float32 " in str(result.int8)
    dataset = degrid.open_dataset("synthetic:4", "train")
    with pytest.raises(UserError, match=r"int8 loses -?\d+\.\d\d points of mIoU, more than -101"):
        degrid.export(model, tmp_path / "o.onnx", int8=degrid.Int8(dataset, images=1, max_drop=-101, float_layers=0))
    assert [file.name for file in tmp_path.iterdir()] == ["n.onnx"]


def test_what_cannot_be_exported(folder):
    with pytest.raises(
        UserError, match="ExportedNetwork is an exported model already; export the model folder it came"
    ):
        degrid.export(ExportedNetwork(), folder / "n.onnx")
    with pytest.raises(UserError, match="Identity does not declare its classes; give them as labels"):
        degrid.export(nn.Identity(), folder / "n.onnx")
    with pytest.raises(UserError, match='split "train" of synthetic:1: 1 image, but int8 needs one half'):
        degrid.export(scene_network(), folder / "n.onnx", int8=degrid.Int8("synthetic:1"))
    with pytest.raises(UserError, match="int8 is for files that take any number of images of any size"):
        degrid.export(folder / "m", takes=degrid.ImageInput(size=(32, 32)), int8=degrid.Int8("synthetic:4"))
