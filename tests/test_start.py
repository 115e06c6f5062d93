"""What a command imports: imports are most of the time until the first result."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import network

import degrid
from degrid.__main__ import main
from degrid.model_folder import open_model
from degrid.threads import num_threads, usable_cores

COMPILER = ("torch._dynamo", "torch._inductor", "sympy")
HEAVY = {*COMPILER, "torchvision", "timm", "matplotlib", "pydantic"}


def modules_after(*commands: tuple[object, ...]) -> list[set[str]]:
    """The modules in memory after each of some commands, run one after the other in a process of their own."""
    code = """
import json, sys
import degrid.cli

for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        degrid.cli.run()
    except SystemExit as ended:
        assert ended.code in (None, 0, 2), words  # data check finds one image to be few
    print("\\nmodules:", *sys.modules)
"""
    given = json.dumps([[str(word) for word in words] for words in commands])
    done = subprocess.run([sys.executable, "-c", code, given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stdout.splitlines() if line.startswith("modules:")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose encoder is none of timm's, and a data set of one image."""
    place = tmp_path_factory.mktemp("start")
    degrid.save(degrid.deeplabv3("caffe:resnet50", 3, channels=8).eval(), place / "model")
    for kind in ("images", "masks"):
        (place / "data" / kind).mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(place / "data" / "images" / "a.png")
    Image.fromarray(rng.integers(0, 3, (40, 50), np.uint8)).save(place / "data" / "masks" / "a.png")
    return place


def test_data_check_imports_no_torch(folder):
    [found] = modules_after(("data", "check", folder / "data", "--processes", 1))
    assert not {*HEAVY, "torch"} & found
    assert "numpy" in found
    # Nor other commands, and formats of which nothing is there.
    others = {"degrid.cli.train", "degrid.data.formats.tools.coco_json", "degrid.data.formats.benchmarks.voc"}
    assert not others & found


def test_info_and_predict_import_no_compiler_and_no_library_of_encoders(folder):
    info = ("info", folder / "model", "--size", "65x65")
    predict = ("predict", folder / "model", folder / "data" / "images" / "a.png", "-o", folder / "out")
    assert not HEAVY & modules_after(info, predict)[-1]
    assert (folder / "out" / "a.png").exists()


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("model.onnx", "ids"),
        pytest.param("model.xml", "ids", marks=pytest.mark.slow),
        pytest.param("logits.onnx", "logits", marks=pytest.mark.slow),
    ],
)
def test_an_exported_model_needs_no_torch_and_gives_the_same(folder, tmp_path, name, output):
    model = tmp_path / name
    degrid.export(network(), model, format="openvino" if name.endswith("xml") else "onnx", output=output)
    data, image = folder / "data", folder / "data" / "images" / "a.png"
    save = ("--save-logits",) if output == "logits" else ()
    measures = ("--trimap", "--worst", 1, "--shift", 2)
    found = modules_after(
        ("info", model),
        ("predict", model, image, "-o", tmp_path, *save),
        ("eval", model, "--data", data, "--split", "train", *measures, "-o", tmp_path / "scores.json"),
    )
    assert not {*HEAVY, "torch"} & found[-1]
    wanted = degrid.Predictor(open_model(model)).predict(image)
    ids = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(ids, wanted.ids)
    assert ids.shape == (40, 50)
    if output == "logits":
        np.testing.assert_array_equal(np.load(tmp_path / "a.logits.npy"), wanted.logits)

    with_torch = degrid.evaluate(
        open_model(model), data, "train", measures=degrid.Measures(trimap=True, worst=1, shift=2)
    )
    scores, same = json.loads((tmp_path / "scores.json").read_text()), json.loads(json.dumps(with_torch.to_dict()))
    assert scores.pop("model") == str(model)
    assert same.pop("model") == "ExportedModel"
    assert scores == same
    assert 0 < scores["miou"] < 1
    assert (tmp_path / "scores_worst").is_dir()


@pytest.mark.parametrize("environment", ["3", "2,1", "", "many", "0"])
def test_threads_are_those_that_the_environment_asks_for(environment, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", environment)
    assert num_threads() == {"3": 3, "2,1": 2}.get(environment, usable_cores())


def test_threads_are_those_of_torch_once_it_is_loaded(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    assert num_threads() == torch.get_num_threads()


def test_what_a_file_says_and_what_is_written_need_no_torch():
    code = """
import sys
from pathlib import Path
from degrid.exporters.facts import Facts, ImageInput
from degrid.exporters.table import find_opener
from degrid.types import RGB
from degrid.verbs.outputs import ResultFiles
facts = Facts.of(ImageInput(size=(4, 6)), (("sky", (0, 0, 255)),), "ids", "half_pixel", RGB)
assert Facts.read(facts.to_json(), Path("a.onnx")).takes.shape((2, 3, 9, 9)) == (1, 3, 4, 6)
assert find_opener("a.onnx") and ResultFiles().format == "ids"
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch" not in done.stdout.split()
    assert "numpy" in done.stdout.split()


def test_ctrl_c_while_the_command_line_is_loaded(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("degrid.cli.run", interrupted)
    monkeypatch.setattr("gc.set_threshold", lambda count: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "degrid: stopped\n")
