"""What is the user's is afterwards as it was: modes, hooks, classes, weights, generators, threads, settings."""

import contextlib
import copy
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

import degrid
from degrid.analysis.receptive_field import dilated_stage_receptive_field, effective_receptive_field
from degrid.data.synthetic import SyntheticScenes
from degrid.engine.training.log import RunLog
from degrid.engine.training.optimizers import moving_average


class Net(nn.Module):
    """Parts in other modes than the whole, hooks, a shared layer, a layer that reads its own values."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.frozen, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.deep = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.again = nn.Sequential(self.deep, nn.ReLU())
        self.head = nn.Conv2d(8, len(SyntheticScenes.labels), 1)
        self.seen = []
        self.deep.register_forward_hook(lambda layer, args, output: self.seen.append(layer.training))
        self.train()
        self.frozen.eval()
        self.stem.weight.requires_grad_(False)

    def forward(self, x):
        y = self.norm(self.stem(x.float() / 255)).relu()
        return self.head(self.drop(self.again(self.frozen(self.deep(y)))))


def snapshot(model):
    """All that could change."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return {
        "modes": [(name, module.training) for name, module in model.named_modules()],
        "classes": [type(module) for module in model.modules()],
        "objects": [id(module) for module in model.modules()],
        "names": [name for name, _ in model.named_modules(remove_duplicate=False)],
        "hooks": [[tuple(getattr(module, kind)) for kind in hooks] for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "weights": [(id(p), p.requires_grad, p.grad is None, p.stride(), p.tolist()) for p in model.parameters()],
        "buffers": [(id(b), b.tolist()) for b in model.buffers()],
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": np.random.get_state()[1].tolist(),
        "python generator": random.getstate(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "living threads": sorted(thread.name for thread in threading.enumerate()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "types": (torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), torch.get_float32_matmul_precision()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def predicted(model, folder):
    predictor = degrid.Predictor(model, "cpu")
    for size in ((64, 64), (40, 50)):
        predictor(np.zeros((*size, 3), np.uint8))
    degrid.Predictor(model, "cpu", options=degrid.InferenceOptions(memory=1 << 22)).class_ids(
        torch.zeros(3, 200, 300, dtype=torch.uint8)
    )


def evaluated(model, folder):
    degrid.evaluate(model, "synthetic:1", device="cpu", measures=degrid.Measures(calibration=True))
    degrid.compare([model, model], "synthetic:1", device="cpu", draws=3, precision="auto")


def failed(model, folder):
    with pytest.raises(degrid.UserError):
        degrid.evaluate(model, "synthetic:1", device="cpu", options=degrid.InferenceOptions(memory=1))


def looked_at(model, folder):
    effective_receptive_field(model.stem, (3, 9, 9), runs=2)
    assert dilated_stage_receptive_field(model, side=9, runs=2).shape == (9, 9)


def logged(model, folder):
    with RunLog(folder, 2, 0) as log:
        log.graph(model, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("use", [predicted, evaluated, failed, looked_at, logged])
def test_everything_is_as_it_was(use, tmp_path, limit_of_maps, drawn):
    model = Net()
    model.seen.clear()
    before = snapshot(model)
    use(model, tmp_path)
    after = snapshot(model)
    for what, value in before.items():
        assert after[what] == value, what
    assert not any(model.seen)  # whatever ran, ran in evaluation mode


def test_the_network_is_in_evaluation_mode_while_threads_run_it():
    """One that cannot be copied runs itself; the modes are put back when the last thread is done."""

    class Locked(Net):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()  # no deep copy

    model = Locked()
    modes = snapshot(model)["modes"]
    predictor = degrid.Predictor(model, "cpu", "float32")
    image = np.zeros((48, 56, 3), np.uint8)
    expected = predictor(image)
    found = []
    threads = [threading.Thread(target=lambda: found.append(predictor(image))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(np.array_equal(each, expected) for each in found)
    assert not any(model.seen)
    assert snapshot(model)["modes"] == modes


def field(model, folder):
    return degrid.erf(model, "deep", size=(33, 33), runs=1).field


def grid(model, folder):
    return degrid.gridding(model, size=(65, 65), runs=1, repairs=False).to_dict()


def rates(model, folder):
    settings = {"model.encoder": "timm:test_resnet", "model.pretrained": False, "model.channels": 8}
    settings |= {"data.crop": (32, 32), "train.batch_size": 2, "data.workers": 0, "train.precision": "float32"}
    return degrid.find_learning_rate(data="synthetic:4", settings=settings, out=folder, steps=10).losses


def refined(model, folder):
    options = degrid.InferenceOptions(crf=degrid.CRF(iterations=2))
    return degrid.Predictor(model, "cpu", "float32", options=options)(np.zeros((24, 28, 3), np.uint8))


@contextlib.contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), double]


@pytest.mark.parametrize("mode", MODES, ids=["no_grad", "inference_mode", "autocast", "float64"])
@pytest.mark.parametrize("use", [field, grid, rates, refined], ids=lambda use: use.__name__)
def test_what_a_verb_computes_does_not_depend_on_the_modes_of_its_caller(use, mode, tmp_path):
    model = Net().eval()
    expected = use(model, tmp_path)
    if (use, mode) == (rates, double):
        return  # the network itself is made of what the caller wants to have by default
    with mode():
        before = snapshot(model)
        found = use(model, tmp_path)
        assert snapshot(model) == before
    np.testing.assert_equal(found, expected)


class Kept(nn.Sequential):
    """Layers that copies of a network share with it, as for a teacher that need not be there twice."""

    def __deepcopy__(self, memo):
        return self


class Shallow(nn.Sequential):
    """Copies are other modules with the same weights."""

    def __deepcopy__(self, memo):
        made = type(self)(*(copy.copy(each) for each in self))
        return made.train(self.training)


class Holds(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kept = kind(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3, 1, 2, 2))
        nn.init.uniform_(self.kept[1].running_mean)
        self.norm, self.head = nn.BatchNorm2d(64), nn.Conv2d(64, len(SyntheticScenes.labels), 1)
        self.seen = []

    def forward(self, x):
        return self.head(self.norm(self.kept(x.float() / 255)).relu())


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize("kind", [Kept, Shallow])
def test_what_copies_of_a_network_share_with_it_is_not_changed(kind, precision, caplog):
    model, image = Holds(kind), torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)
    with torch.no_grad():
        expected = Holds(kind).eval()(image[None])
    before = snapshot(model)
    found = degrid.Predictor(model, "cpu", precision).scores(image)
    options = degrid.InferenceOptions(memory=1 << 40)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if precision == "float32" else 0.05)
    assert "it now runs as it is" in caplog.text
    with pytest.raises(degrid.UserError, match="Holds cannot be copied: its copy by copy.deepcopy shares a"):
        degrid.Predictor(model, "cpu", "float32", options)(np.zeros((40, 56, 3), np.uint8))
    with pytest.raises(degrid.UserError, match="cannot be copied: its copy by copy.deepcopy shares a"):
        degrid.export(model, "n.onnx", labels=SyntheticScenes.labels)
    with pytest.raises(degrid.UserError, match="cannot be copied: its copy by copy.deepcopy shares a"):
        moving_average(model, 0.9)
    assert snapshot(model) == before


def test_networks_that_are_built_without_gradients_can_be_trained(tmp_path):
    with torch.inference_mode():
        network = degrid.deeplabv3("timm:test_resnet", 3, output_stride=8, channels=8, operator="ssc", pretrained=False)
    network.train()(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_training_leaves_the_random_numbers_of_its_caller(tmp_path):
    settings = {"model.encoder": "timm:test_resnet", "model.pretrained": False, "model.channels": 8, "data.val": ""}
    settings |= {"data.crop": (32, 32), "train.batch_size": 2, "data.workers": 0, "train.steps": 1}
    model = Net()
    torch.manual_seed(3)
    before = snapshot(model)
    degrid.train(data="synthetic:4", settings=settings, out=tmp_path / "run")
    after = snapshot(model)
    for what in ("torch generator", "numpy generator", "python generator", "threads", "gradients", "deterministic"):
        assert after[what] == before[what], what


LEFT = """
import multiprocessing, os, sys, threading, warnings
import matplotlib, numpy, torch
from PIL import Image
import degrid

def now():
    return {
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "threads": sorted(each.name for each in threading.enumerate()),
        "start of processes": multiprocessing.get_start_method(allow_none=True),
        "generator": torch.get_rng_state().tolist(),
        "libraries": sorted({"rasterio", "torchvision"} & set(sys.modules)),
    }

network = torch.nn.Sequential(torch.nn.Conv2d(3, 9, 3, padding=2, dilation=2))
Image.fromarray(numpy.zeros((24, 32, 3), numpy.uint8)).save("image.png")
uses = {
    "erf": lambda: degrid.erf(network, size=(33, 33), runs=1),
    "predict": lambda: degrid.predict(network, "image.png", "out", device="cpu"),
    "evaluate": lambda: degrid.evaluate(network, "synthetic:1", device="cpu", precision="float32"),
    "describe": lambda: degrid.describe("synthetic"),
    "network by name": lambda: degrid.erf("synthetic", size=(65, 65), runs=1),
    "network of its own": lambda: degrid.erf_of_operators(None, runs=1, operators=["ssc"]),
    "export": lambda: degrid.export(network, "network.onnx", labels=degrid.LabelSpace.of_size(9)),
}
for name, use in uses.items():
    before = now()
    use()
    after = now()
    changed = [key for key in before if before[key] != after[key]]
    # What timm, PyTorch's compiler and torchvision set when they are imported.
    imports = {"environment", "warnings", "libraries"} if name in ("describe", "export") else set()
    assert set(changed) <= imports, (name, {key: (before[key], after[key]) for key in changed})
"""


@pytest.mark.slow
def test_what_python_and_libraries_share_is_left_as_it_was(tmp_path):
    """In a process of its own: libraries start threads and decide things when they are first used."""
    done = subprocess.run([sys.executable, "-c", LEFT], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
