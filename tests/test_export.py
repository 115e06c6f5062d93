"""Exported models: run by their own runtime at other sizes than traced, and equal to the model."""

import ctypes
import importlib
import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.engine.inference.options import InferenceOptions
from degrid.engine.inference.predictor import Predictor
from degrid.exporters import graph, runtime
from degrid.exporters.graph import ExportGraph, example_image, to_plain_layers
from degrid.exporters.runtime import ExportedModel
from degrid.exporters.table import find_exporter
from degrid.model_folder import open_model
from degrid.resize import resize
from degrid.types import LabelSpace, Preprocess, Sample, UserError

LABELS = LabelSpace(("sky", "road", "élan"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))


class Tiny(nn.Module):
    """Four layers of an encoder, output stride 8, the last one dilated."""

    channels, reductions = (8, 12, 16, 16), (2, 4, 8, 8)

    def __init__(self, output_stride, pretrained, multi_grid, preprocess, legacy=False):
        super().__init__()
        self.preprocess = preprocess or Preprocess(bgr=True)
        widths = (3, *self.channels)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(widths[i], widths[i + 1], 3, 2 - i // 3, 1 + i // 3, 1 + i // 3, bias=False),
                nn.BatchNorm2d(widths[i + 1]),
                nn.ReLU(),
            )
            for i in range(4)
        )

    def forward(self, x):
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found


def network(build=degrid.deeplabv3, operator="ssc", **settings):
    torch.manual_seed(0)
    if build is degrid.deeplabv3:
        settings["channels"] = 8
    model = build("test_export:Tiny", LABELS, output_stride=8, operator=operator, **settings).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        for parameter in getattr(module, "smoothing", nn.Module()).parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def model():
    return network()


def ids_of(model, image):
    with torch.no_grad():
        return resize(model(image), image.shape[-2:], model.resize).argmax(1)


@pytest.mark.parametrize(
    "operator", ["regular", "decompose", "gi", "ssc", "average", "gaussian", "aggregation", "tent"]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_fixed_smoothing_equals_the_operators(operator, legacy):
    model = network(degrid.deeplabv2, operator, legacy=legacy, resize="half_pixel")
    exported = ExportGraph(model, "logits")
    assert exported.fixed == (operator != "regular")
    assert not any(hasattr(module, "smoothing") for module in exported.modules())
    for size in ((1, 3, 40, 57), (2, 3, 33, 64)):
        image = example_image(size)
        with torch.no_grad():
            torch.testing.assert_close(exported(image), model(image), rtol=1e-4, atol=1e-5)


def test_operators_of_your_own_stay():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()

        def forward(self, x, convolve):
            return convolve(x, 2)

    conv = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
    net = nn.Sequential(conv)
    conv.smoothing = Own()
    assert to_plain_layers(net) == 0


@pytest.mark.parametrize("kind", ["onnx", "openvino", "torch-export"])
def test_every_format_equals_the_model(model, tmp_path, kind):
    path = tmp_path / f"model{find_exporter(kind).ending}"
    found = degrid.export(model, path, format=kind).comparisons
    assert [comparison.size for comparison in found] == list(runtime.SIZES)
    assert all(comparison.agreement >= runtime.AGREEMENT for comparison in found)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in find_exporter(kind).files(path)}
    loaded = open_model(path)
    assert isinstance(loaded, ExportedModel)
    assert loaded.labels == LABELS
    assert loaded.facts.version == degrid.__version__
    predictor = Predictor(loaded)
    for size in ((70, 51), (31, 150)):  # neither traced nor compared
        image = example_image((1, 3, *size), seed=9)[0]
        assert (predictor.class_ids(image) == ids_of(model, image[None])[0]).float().mean() >= runtime.AGREEMENT
    with pytest.raises(UserError, match="export it with --output logits"):
        predictor.scores(image)
    with pytest.raises(UserError, match="cannot be fused over scales"):
        Predictor(loaded, options=InferenceOptions(flip=True))


@pytest.mark.slow
def test_multi_scale_logits_with_flips(tmp_path):
    """int(0.75 * H) is worked out at every size; flips and scales are fused as with the model itself."""
    model = network(degrid.deeplabv2, "tent", scales=(0.75,))
    degrid.export(model, tmp_path / "m.onnx", output="logits")
    loaded = open_model(tmp_path / "m.onnx")
    image = example_image((1, 3, 83, 59), seed=5)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), model(image), rtol=1e-4, atol=1e-5)
    options = InferenceOptions(flip=True, scales=(1.0, 1.5))
    ours, theirs = (
        Predictor(each, precision="float32", options=options).class_ids(image[0]) for each in (loaded, model)
    )
    assert (ours == theirs).float().mean() >= runtime.AGREEMENT


def test_a_scale_without_whole_sizes_is_refused():
    with pytest.raises(UserError, match=r"scale 0\.70710678 of this multi-scale network cannot be exported"):
        ExportGraph(network(degrid.deeplabv2, scales=(0.70710678,)))


def test_a_wrong_export_leaves_no_file(tmp_path):
    """The trap that the comparison is for: a tracer takes what it sees once as fixed."""

    class Trap(nn.Module):
        calls = 0

        def forward(self, image):
            self.calls += 1
            return image.float() * self.calls

    with pytest.raises(UserError, match="the exported model (computes something else|fails on images|gives )"):
        degrid.export(Trap(), tmp_path / "trap.onnx", output="logits", labels=LABELS)
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_by_hand():
    logits = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2).clone()
    made = logits.clone()
    made[0, :, 0, 0] = torch.tensor([0.0, 0.5])
    found = runtime._compared(logits, made, (1, 3, 2, 2), "logits", "half_pixel")
    assert (found.difference, found.agreement) == (1.0, 0.75)
    assert "1.0e+00 of the largest, same class on 75.00 %" in str(found)
    with pytest.raises(UserError, match=r"gives \[1, 2, 2, 2\] for images of \[1, 3, 2, 2\], expected \[1, 2, 2\]"):
        runtime._compared(logits, made, (1, 3, 2, 2), "ids", "half_pixel")


class Labelled(list):
    labels = LABELS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_int8_is_judged_and_refused(model, tmp_path, kind):
    pictures = [example_image((3, 3, 64, 80), seed=seed)[0] for seed in range(4)]
    dataset = Labelled([Sample(picture, ids_of(model, picture[None])[0].byte(), "") for picture in pictures])
    path = tmp_path / f"m{find_exporter(kind).ending}"
    result = degrid.export(model, path, format=kind, int8=degrid.Int8(dataset, max_drop=50))
    assert (result.int8.images, result.int8.float32) == (2, 1)
    assert 0.5 < result.int8.int8 <= 1
    assert open_model(path).labels == LABELS
    assert _has_int8(path, kind)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"int8 loses -?\d+\.\d\d points of mIoU, more than -0.1"):
        degrid.export(model, path, format=kind, int8=degrid.Int8(dataset, max_drop=-0.1, float_layers=0))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == len(find_exporter(kind).files(path))
    assert _signal_stack_exists()


def _signal_stack_exists():
    """Whether the memory on which this thread handles signals is there: OpenVINO moves it."""

    class Stack(ctypes.Structure):
        _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

    stack = Stack()
    if sys.platform != "linux" or ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) or not stack.start:
        return True
    ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    return any(int(first, 16) <= stack.start < int(last, 16) for first, last in ranges)


def test_a_runtime_that_crashes_is_an_error(tmp_path, monkeypatch):
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    with pytest.raises(UserError, match=r"crashes on this int8 model here \(SIGSEGV\); nothing is written"):
        runtime.must_run(str(tmp_path / "m.xml"))


def _has_int8(path, kind):
    if kind == "openvino":
        return 'element_type="i8"' in path.read_text()
    import onnx

    return any(tensor.data_type == onnx.TensorProto.INT8 for tensor in onnx.load(path).graph.initializer)


def test_extras_that_are_missing(tmp_path, monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name.split(".")[0] in ("onnxscript", "onnxruntime", "openvino"):
            raise ImportError(name)
        return real(name, *rest)

    (tmp_path / "m.onnx").write_bytes(b"x")
    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(UserError, match=r"onnxruntime is not installed; pip install degrid\[export\]"):
        ExportedModel(tmp_path / "m.onnx")
    monkeypatch.setattr(graph.Source, "program", None)  # what is missing is said before anything is traced
    with pytest.raises(UserError, match=r"onnxscript is not installed; pip install degrid\[export\]"):
        degrid.export(network(), tmp_path / "n.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("ending", [".onnx", ".xml", ".pt2"])
def test_damaged_files(tmp_path, ending, capfd):
    file = tmp_path / f"m{ending}"
    with pytest.raises(UserError, match="no exported model"):
        ExportedModel(file)
    file.write_bytes(b"not a model")
    with pytest.raises(UserError, match=f"cannot read the exported model {file}"):
        ExportedModel(file)
    assert "Traceback" not in capfd.readouterr().err  # PyTorch logs one


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
@pytest.mark.parametrize("format", ["torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_full_disk(tmp_path, format):
    model, (_, most) = network(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    try:
        with pytest.raises(UserError, match="could not write .*larger than allowed"):
            degrid.export(model, tmp_path / f"m{find_exporter(format).ending}", format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert not list(tmp_path.iterdir())


def test_a_file_of_somebody_else(tmp_path):
    import onnx
    from onnx import helper

    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    made = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(made, ir_version=10, opset_imports=opset), tmp_path / "m.onnx")
    with pytest.raises(UserError, match="was not written by degrid export"):
        ExportedModel(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "tflite"], 'unknown format "tflite"'),
        (["--output", "masks"], 'unknown output "masks"'),
        (["--input", "uint16"], 'unknown input "uint16"'),
        (["--int8"], "--int8 and --calibrate DATA go together"),
        (["-o", "m.xml"], "expected a file name that ends in .onnx"),
        (["--format", "torch-export", "--int8", "--calibrate", "synthetic:2"], "int8 is for onnx and openvino"),
    ],
)
def test_the_command_refuses(tmp_path, words, message):
    degrid.save(network(), tmp_path / "m")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "m"), *words])
    assert isinstance(result.exception, UserError), result.output
    assert message in str(result.exception)


def test_the_command_and_prediction_with_its_file(tmp_path):
    model = network()
    degrid.save(model, tmp_path / "m")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "m")])
    assert result.exception is None, result.output
    assert f"try: degrid predict {tmp_path / 'm.onnx'} IMAGES" in result.output.replace("\n", "")
    picture = example_image((1, 3, 50, 61), seed=2)
    Image.fromarray(picture[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    words = ["predict", str(tmp_path / "m.onnx"), str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exception is None, result.output
    ids = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert (ids == ids_of(model, picture)[0].numpy()).mean() >= runtime.AGREEMENT
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["classes"] == list(LABELS.names)


@pytest.mark.slow
def test_compiled_code(model, tmp_path):
    import shutil

    if shutil.which("g++") is None:
        pytest.skip("aot-inductor needs a C++ compiler")
    degrid.export(model, tmp_path / "m.pt2", format="aot-inductor")
    assert open_model(tmp_path / "m.pt2").labels == LABELS
    image = example_image((1, 3, 50, 61), seed=2)
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    degrid.predict(tmp_path / "m.pt2", tmp_path / "a.png", tmp_path / "masks")
    ids = np.asarray(Image.open(tmp_path / "masks" / "a.png"))
    assert (ids == ids_of(model, image)[0].numpy()).mean() >= runtime.AGREEMENT


def test_examples_are_the_same_for_the_same_seed():
    assert torch.equal(example_image((1, 3, 9, 9), seed=1), example_image((1, 3, 9, 9), seed=1))
    assert graph.TRACED not in runtime.SIZES
