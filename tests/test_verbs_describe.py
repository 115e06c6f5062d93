"""degrid.describe from Python: the same numbers as the command."""

import json

import pytest
from test_export import network
from typer.testing import CliRunner

import degrid
from degrid import ImageInput
from degrid.cli import app


def test_describe_gives_what_the_command_prints(tmp_path):
    model = degrid.deeplabv3("timm:test_resnet", 3, operator="ssc", channels=8)
    degrid.save(model, tmp_path / "model")
    found = degrid.describe(tmp_path / "model", size=(64, 96))
    result = CliRunner().invoke(app, ["info", str(tmp_path / "model"), "--size", "64x96", "--json"])
    assert json.loads(result.output) == found.to_dict()
    assert degrid.describe(model, size=(64, 96)) == found


def test_describe_builds_the_network_of_a_recipe():
    found = degrid.describe("synthetic", num_classes=5, size=(64, 64))
    assert (found.network, found.encoder, len(found.classes)) == ("deeplabv3plus", "timm:resnet10t", 5)
    with pytest.raises(degrid.UserError, match='unknown model or recipe "sinthetic"'):
        degrid.describe("sinthetic")


def test_parameters_of_smoothing_are_known_by_their_layers():
    """Not by a name: a head may have a part called smoothing."""
    model = degrid.deeplabv3("timm:test_resnet", 3, operator="ssc", channels=8)
    plain = degrid.deeplabv3("timm:test_resnet", 3, channels=8)
    smoothed, regular = (degrid.describe(each, size=(32, 32)) for each in (model, plain))
    assert smoothed.parameters["smoothing"] > 0
    assert smoothed.parameters["encoder"] == regular.parameters["encoder"]
    plain.head.add_module("smoothing", plain.head.classifier)
    assert degrid.describe(plain, size=(32, 32)).parameters == regular.parameters
    assert {conv.smoothing for conv in smoothed.dilated} == {"ssc", None}


def test_describe_an_exported_file(tmp_path):
    file = tmp_path / "m.onnx"
    degrid.export(network(), file, format="onnx", takes=ImageInput(size=(48, 64)), output="logits")
    found = degrid.describe(file)
    assert (found.format, found.bytes, found.facts["output"]) == ("onnx", file.stat().st_size, "logits")
    lines = str(found).splitlines()
    assert lines[0].startswith("exported model onnx, 0.1 MB, by degrid ")
    assert lines[1:] == [
        "classes        3: sky, road, élan",
        "takes          1 image of 48x64, 3 bands, uint8",
        "gives          logits, to be enlarged (half_pixel)",
    ]
    result = CliRunner().invoke(app, ["info", str(file), "--json"])
    assert json.loads(result.output) == found.to_dict()
    assert found.to_dict()["size"] == [48, 64]
