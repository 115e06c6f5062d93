"""Files for other runtimes than onnxruntime, OpenVINO and PyTorch: where one is installed, it runs them here."""

import types

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from test_export import LABELS, ids_of, network

import degrid
from degrid.exporters import exporter, iree, opencv
from degrid.exporters.core_ml import CoreMl
from degrid.exporters.exporter import append_facts, appended_facts
from degrid.exporters.graph import example_image
from degrid.exporters.onnx import stored_facts
from degrid.exporters.table import OpenedFile, find_exporter, find_opener
from degrid.model_folder import open_model
from degrid.types import UserError

ONE_SIZE = degrid.ImageInput(size=(50, 66))
FORMATS = {
    "opencv": ("cv2", "m.onnx", ONE_SIZE),
    "litert": ("litert_torch", "m.tflite", ONE_SIZE),
    "executorch": ("executorch.exir", "m.pte", ONE_SIZE),
    "mnn": ("MNN", "m.mnn", degrid.ImageInput()),
    "ncnn": ("ncnn", "m.param", degrid.ImageInput("float32", (50, 66))),
    "iree": ("iree.compiler", "m.vmfb", degrid.ImageInput(batch=1)),
}


@pytest.fixture(scope="module")
def model():
    return network(operator="tent")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # theirs, not ours
@pytest.mark.parametrize(("format", "output"), [(each, out) for each in FORMATS for out in find_exporter(each).outputs])
def test_a_runtime_equals_the_model(model, tmp_path, format, output):
    package, name, takes = FORMATS[format]
    pytest.importorskip(package, reason=f"needs {package}, which `make test` does not install")
    done = degrid.export(model, tmp_path / name, format=format, takes=takes, output=output)
    assert {*tmp_path.iterdir()} == {*find_exporter(format).files(tmp_path / name)}
    assert all(comparison.agreement > 0.999 for comparison in done.comparisons)
    assert (f"{format}=" in done.name) == (format == "opencv")
    image = example_image((1, 3, 50, 66), seed=5)
    if output == "logits":
        with torch.no_grad():
            wanted, given = model(image), open_model(done.name)(image)
        torch.testing.assert_close(given, wanted, rtol=0, atol=5e-4 * wanted.abs().max().item())
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    degrid.predict(done.name, tmp_path / "a.png", tmp_path / "masks")
    assert (np.asarray(Image.open(tmp_path / "masks" / "a.png")) == ids_of(model, image)[0].numpy()).mean() > 0.999
    assert degrid.describe(done.name).facts["classes"][2] == ["élan", [7, 8, 9]]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("output", ["ids", "logits"])
def test_a_package_for_apple(model, tmp_path, output):
    pytest.importorskip("coremltools", reason="needs coremltools, which `make test` does not install")
    takes = degrid.ImageInput("float32", (50, 66))
    done = degrid.export(model, tmp_path / "m.mlpackage", format="coreml", takes=takes, output=output)
    assert done.comparisons == ()
    assert done.num_bytes > 4 * sum(weight.numel() for weight in model.parameters())
    with pytest.raises(UserError, match="m.mlpackage cannot be run here: degrid writes files of this kind"):
        OpenedFile(done.name)
    assert CoreMl().recognises(done.files[0])


def test_a_file_for_tensorrt_has_what_its_parser_knows(model, tmp_path):
    with pytest.raises(UserError, match="tensorrt files take pixels of float32; add: --input float32"):
        degrid.export(model, tmp_path / "m.onnx", format="tensorrt")
    takes = degrid.ImageInput("float32", (50, 66))
    done = degrid.export(model, tmp_path / "m.onnx", format="tensorrt", takes=takes)
    assert all(comparison.agreement > 0.999 for comparison in done.comparisons)
    assert stored_facts(tmp_path / "m.onnx") == OpenedFile(done.name).facts.to_json()


class Sizes(torch.nn.Module):
    """One pixel of logits: what Python makes of the sizes of the image, with whole numbers of both signs."""

    resize = "half_pixel"

    def forward(self, image):
        h, w = image.shape[-2:]
        terms = [h // 3, -(-h // 3), (50 - h) // 7, (h - 50) // -7]
        terms += [h % 3, -w % 32, (50 - h) % 7, (h - 50) % -7, h * w % 5]
        return torch.cat([image[:, :1, :1, :1].float() * 0 + each for each in terms], 1)


def test_sizes_are_divided_as_in_python_without_mod(tmp_path):
    takes, labels = degrid.ImageInput("float32"), degrid.LabelSpace.of_size(9)
    done = degrid.export(Sizes(), tmp_path / "m.onnx", format="tensorrt", takes=takes, labels=labels, output="logits")
    loaded = OpenedFile(done.name)
    for image in (torch.zeros(1, 3, height, 97 - height) for height in range(1, 97)):
        np.testing.assert_array_equal(loaded(image.numpy()), Sizes()(image).numpy())


def test_an_operator_that_tensorrt_does_not_know(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, image):
            return torch.fmod(image, 7.0)

    takes = degrid.ImageInput("float32")
    with pytest.raises(UserError, match="TensorRT's parser does not take Mod of this network; a file of one size"):
        degrid.export(Odd(), tmp_path / "m.onnx", format="tensorrt", takes=takes, labels=LABELS, output="logits")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "ending", "takes", "message"),
    [
        ("iree", ".vmfb", degrid.ImageInput(), "iree files are for a fixed number of images; say how many: --batch 1"),
        ("litert", ".tflite", degrid.ImageInput(), "litert files are for images of one size; say which: --size"),
        ("coreml", ".mlpackage", ONE_SIZE, "coreml files take pixels of float32"),
        ("ncnn", ".param", ONE_SIZE, "ncnn files give logits, from which degrid predict makes class ids; add"),
    ],
)
def test_what_a_format_does_not_take(model, tmp_path, format, ending, takes, message):
    with pytest.raises(UserError, match=message):
        degrid.export(model, tmp_path / f"m{ending}", format=format, takes=takes)


def test_opencv_4_reads_one_size(model, tmp_path, monkeypatch):
    library = exporter.Exporter.library
    cv2 = types.SimpleNamespace(__version__="4.13.0")
    monkeypatch.setattr(opencv.OpenCv, "library", lambda self, name: cv2 if name == "cv2" else library(self, name))
    with pytest.raises(UserError, match="OpenCV 4.13.0 reads files of one size only; say which: --size 512x1024"):
        degrid.export(model, tmp_path / "m.onnx", format="opencv")


def test_pixel_shuffles_that_iree_gets_wrong_are_written_otherwise(tmp_path):
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    shuffle = helper.make_node("DepthToSpace", ["r"], ["y"], blocksize=2, mode="CRD")
    ends = [[helper.make_tensor_value_info(name, number, ["n", c, "h", "w"])] for name, c in (("x", 12), ("y", 3))]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["r"]), shuffle], "main_graph", *ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    iree.deep_to_space(onnx, tmp_path / "m.onnx")
    *_, last = onnx.load(tmp_path / "m.onnx").graph.node
    (mode,) = [each.s for each in last.attribute if each.name == "mode"]
    assert mode == b"DCR"
    x = torch.rand(2, 12, 3, 5)
    (y,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_array_equal(y, torch.pixel_shuffle(x, 2).numpy())


def test_the_error_of_irees_compiler_is_told_and_not_its_advice(tmp_path, monkeypatch):
    class FaultError(Exception):
        stderr = "a.mlir:3:1: error: 'memref.alloca' op is too large\n  ^\nNeed more information? Set IREE_SAVE_TEMPS"

    def compile_file(*words, **options):
        raise FaultError

    compiler = types.SimpleNamespace(CompilerToolError=FaultError, compile_file=compile_file)
    monkeypatch.setattr(iree.Iree, "library", lambda self, name: compiler)
    monkeypatch.setattr(iree.Onnx, "write", lambda self, *words: None)
    monkeypatch.setattr(iree, "deep_to_space", lambda onnx, path: None)
    monkeypatch.setattr(iree.subprocess, "run", lambda *words, **options: None)
    with pytest.raises(UserError, match=r"fails on this network: a\.mlir:3:1: error: .* too large$"):
        iree.Iree().write(None, tmp_path / "m.vmfb", "")


def test_facts_at_the_end_of_a_file(tmp_path):
    file = tmp_path / "m.mnn"
    file.write_bytes(b"weights")
    assert appended_facts(file) is None
    append_facts(file, '{"a": 1}')
    assert appended_facts(file) == '{"a": 1}'
    assert file.read_bytes().startswith(b"weights")
    assert find_opener(file)[1] == file


def test_int8_is_not_for_them():
    assert not any(find_exporter(format).has_int8 for format in (*FORMATS, "coreml", "tensorrt"))
