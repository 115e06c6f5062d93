"""`degrid.convert` and `degrid.modernise` from Python: the same folders as by the command."""

import json

import numpy as np
import originals
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import degrid
from degrid.checkpoints.systems.plan import Plan
from degrid.cli import app
from degrid.resize import resize
from degrid.types import LabelSpace, voc_palette
from degrid.verbs.convert import _classes


@pytest.fixture
def checkpoint(tmp_path):
    """segmentation_models.pytorch's DeepLab v3 on ResNet-18, with 21 classes."""
    _, shapes, _ = originals.smp_golden()
    network = shapes["v3_resnet18"]
    state = {name: torch.from_numpy(originals.smp_weight(name, tuple(shape))) for name, shape in network.items()}
    torch.save(state, tmp_path / "smp.pth")
    return tmp_path / "smp.pth"


def command(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None, done.output
    return done.output


def assert_same_folder(first, second):
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_convert_writes_what_the_command_writes(tmp_path, checkpoint):
    report = degrid.convert(checkpoint, tmp_path / "verb")
    output = command("convert", checkpoint, "-o", tmp_path / "command")
    assert_same_folder(tmp_path / "verb", tmp_path / "command")
    assert output.startswith(f"{report}\n")
    assert report.recognised_by == "decoder.aspp.convs.0.0.weight"
    assert json.loads((tmp_path / "verb" / "conversion.json").read_text())["system"] == report.system


def test_options_are_the_same(tmp_path, checkpoint):
    state = torch.load(checkpoint)
    names = [f"thing {index}" for index in range(len(state["segmentation_head.0.weight"]))]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    torch.save({**state, "surprise": torch.ones(2)}, checkpoint)
    options = ("--as", "smp", "--set", "output_stride=16", "--classes", tmp_path, "--allow-unused")
    command("convert", checkpoint, "-o", tmp_path / "command", *options)
    labels = LabelSpace(tuple(names), degrid.load(tmp_path / "command").labels.colors)
    for number, (classes, settings) in enumerate([(tmp_path, ["output_stride=16"]), (labels, {"output_stride": 16})]):
        folder = tmp_path / str(number)
        degrid.convert(checkpoint, folder, system="smp", settings=settings, classes=classes, allow_unused=True)
        assert_same_folder(folder, tmp_path / "command")
    with pytest.raises(degrid.UserError, match=r"no classes\.csv and no classes\.txt in"):
        degrid.convert(checkpoint, classes=tmp_path / "command")


def test_imagenet_weights(tmp_path):
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "net.pth")
    report = degrid.convert(tmp_path / "net.pth", tmp_path / "verb")
    output = command("convert", tmp_path / "net.pth", "-o", tmp_path / "command")
    assert_same_folder(tmp_path / "verb", tmp_path / "command")
    assert report.kind == "encoder"
    assert "--set model.encoder=timm:resnet18" in output
    assert len(load_file(tmp_path / "verb" / "encoder.safetensors")) == len(report.loaded)


def test_modernise_writes_what_the_command_writes(tmp_path):
    torch.manual_seed(0)
    degrid.save(degrid.deeplabv2("res50", 2, operator="gi", legacy=True), tmp_path / "old")
    report = degrid.modernise(tmp_path / "old", tmp_path / "verb")
    output = command("convert", tmp_path / "old", "-o", tmp_path / "command", "--modernise")
    assert_same_folder(tmp_path / "verb", tmp_path / "command")
    assert output.startswith(f"{report}\n")
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "old"), "--modernise"])
    assert "-o FOLDER" in str(done.exception)


def test_one_logit_becomes_two_classes_by_its_sign(tmp_path, checkpoint):
    state = torch.load(checkpoint)
    names = ("segmentation_head.0.weight", "segmentation_head.0.bias")
    one = {name: state[name][:1] for name in names}
    torch.save(state | one, checkpoint)
    report = degrid.convert(checkpoint, tmp_path / "one")
    assert "one logit: two classes by its sign, background and foreground" in report.notes
    model = degrid.load(tmp_path / "one").eval()
    assert model.labels.names == ("background", "foreground")
    for name, value in model.head.classifier.named_parameters():
        torch.testing.assert_close(
            value.detach(), torch.cat([0 * one[names[name == "bias"]], one[names[name == "bias"]]])
        )
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        model.head.classifier.bias[1] -= model(image)[0, 1].median()  # both classes are there
        logits = resize(model(image), (64, 96), model.resize)[0].numpy()
    assert (logits[0] == 0).all()
    ids = degrid.Predictor(model)(image[0].permute(1, 2, 0).numpy())
    assert (ids == (logits[1] > 0)).mean() > 0.999
    assert 0.2 < ids.mean() < 0.8


@pytest.mark.slow
def test_one_logit_is_scored_and_exported_by_its_sign(tmp_path, checkpoint):
    """The masks are where the logit of the project's network is above 0."""
    state = torch.load(checkpoint)
    for name in ("segmentation_head.0.weight", "segmentation_head.0.bias"):
        state[name] = state[name][:1]
    torch.save(state, checkpoint)
    degrid.convert(checkpoint, tmp_path / "one")
    model = degrid.load(tmp_path / "one").eval()
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        state["segmentation_head.0.bias"] -= model(image)[0, 1].median()  # both classes are there
        torch.save(state, checkpoint)
        degrid.convert(checkpoint, tmp_path / "one")
        logits = resize(degrid.load(tmp_path / "one").eval()(image), (64, 96), model.resize)[0, 1]
    for folder, pixels in (("images", image[0].permute(1, 2, 0)), ("masks", logits > 0)):
        (tmp_path / "data" / folder / "val").mkdir(parents=True)
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(tmp_path / "data" / folder / "val" / "a.png")
    made = degrid.export(tmp_path / "one", tmp_path / "one.onnx", takes=degrid.ImageInput(size=(64, 96)))
    for what in (tmp_path / "one", made.name):
        found = degrid.evaluate(what, tmp_path / "data")
        assert found.labels.names == ("background", "foreground")
        assert found.miou > 0.999, what


@pytest.mark.parametrize(
    ("given", "names"),
    [(None, ("background", "foreground")), (("wound",), ("background", "wound")), (("a", "b"), ("a", "b"))],
)
def test_names_of_two_classes(given, names):
    for weight in ("head.classifier.weight", "head.branches.0.weight"):
        plan = Plan({}, tensors={weight: np.ones((1, 3, 1, 1), np.float32), "head.aspp.project.0.weight": np.ones(1)})
        assert _classes(plan, given and LabelSpace(given, voc_palette(len(given))), "x").names == names
        assert plan.tensors[weight].tolist() == [[[[0]]] * 3, [[[1]]] * 3]
