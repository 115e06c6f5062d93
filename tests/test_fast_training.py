"""Fast convolutions in training against PyTorch's own: values, gradients, whole steps, and what they leave alone."""

import contextlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from degrid.acceleration import training
from degrid.acceleration.training import FastConvolutions
from degrid.engine.training.loop import Training, train_step
from degrid.engine.training.objective import Objective
from degrid.kernels import support
from degrid.models import freeze_batch_norm
from degrid.types import Batch

LAST = torch.channels_last
SPEED_ONLY = {"WEIGHT_COST": 0, "MARGIN": 9, "PIXELS": 0, "WIDE": 64}


@pytest.fixture
def eager(monkeypatch):
    """The fast ways also where maps are so small that they do not pay."""
    for name, value in SPEED_ONLY.items():
        monkeypatch.setattr(training, name, value)
    training._tile.cache_clear()
    yield
    training._tile.cache_clear()


@pytest.fixture(autouse=True)
def products(request, monkeypatch):
    """Whether matrix products count as fast, whatever the processor: where the test does not say so, they do not."""
    fast = getattr(request, "param", False)
    monkeypatch.setattr(training, "multiplies_fast", lambda: fast)
    return fast


EITHER = pytest.mark.parametrize("products", [False, True], indirect=True, ids=["library", "products"])


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=LAST)


def passes(x, weight, bias, grad, mode, **geometry):
    """Output and gradients of one convolution, whose output is changed in place, as by a ReLU."""
    leaves = [each.clone(memory_format=torch.preserve_format).requires_grad_() for each in (x, weight, bias)]
    with mode:
        y = F.conv2d(*leaves, **geometry).mul_(2)
        y.backward(grad)
    return y.detach(), *(each.grad for each in leaves)


def error(found, truth):
    assert found.shape == truth.shape
    return ((found - truth).abs().max() / truth.abs().max()).item()


@EITHER
@pytest.mark.parametrize(
    ("channels", "out", "size", "rate"), [(64, 80, (13, 18), 2), (96, 64, (5, 20), 4), (64, 64, (12, 12), 1)]
)
def test_values_and_gradients_are_those_of_double_precision(eager, products, threads, channels, out, size, rate):
    x, weight, bias = normal(2, channels, *size), normal(out, channels, 3, 3, seed=1) / 20, normal(1, out, 1, 1).ravel()
    grad = normal(2, out, *size, seed=2)
    geometry = {"padding": rate, "dilation": rate}
    mode = FastConvolutions()
    for _ in range(2):  # the first call is compared, the second is not
        found = passes(x, weight, bias, grad, mode, **geometry)
        truth = passes(*(each.double() for each in (x, weight, bias, grad)), contextlib.nullcontext(), **geometry)
        assert all(error(*pair) < 1e-4 for pair in zip(found, truth, strict=True))
    kinds = {kind[0]: agrees for kind, agrees in mode._agrees.items()}
    by_library = {"gradient of the filter"} if products and rate == 1 else set()
    assert kinds == dict.fromkeys({"forward", "gradient of the input", "gradient of the filter"} - by_library, True)


@pytest.mark.parametrize(("size", "rate"), [((13, 18), 2), ((9, 20), 6), ((7, 7), 12)])
def test_depthwise_convolutions_too(size, rate):
    x, weight, bias = normal(2, 72, *size), normal(72, 1, 3, 3, seed=1), normal(1, 72, 1, 1).ravel()
    grad = normal(2, 72, *size, seed=2)
    geometry = {"padding": rate, "dilation": rate, "groups": 72}
    mode = FastConvolutions()
    truth = passes(*(each.double() for each in (x, weight, bias, grad)), contextlib.nullcontext(), **geometry)
    for _ in range(2):
        found = passes(x, weight, bias, grad, mode, **geometry)
        assert all(error(*pair) < 1e-6 for pair in zip(found, truth, strict=True))
    assert len(mode._agrees) == 2 + (rate > 2)  # at rate 2 the library is the fastest forwards
    assert all(mode._agrees.values())


@EITHER
def test_a_single_tap_is_products_or_on_one_thread_computed_by_onednn(products, threads):
    x, weight, bias, grad = normal(2, 32, 9, 9), normal(48, 32, 1, 1), normal(1, 48, 1, 1).ravel(), normal(2, 48, 9, 9)
    mode = FastConvolutions()
    truth = passes(*(each.double() for each in (x, weight, bias, grad)), contextlib.nullcontext())
    for _ in range(2):
        found = passes(x, weight, bias, grad, mode)
        assert all(error(*pair) < 1e-6 for pair in zip(found, truth, strict=True))
    assert list(mode._agrees.values()) == [True] * 2 * products
    with torch.profiler.profile() as profile:
        passes(x, weight, bias, grad, mode)
    used = {event.key for event in profile.key_averages()}
    assert ("aten::mkldnn_convolution" in used) or (products and threads == 1)
    assert ("aten::convolution_backward" in used) != products


@pytest.mark.parametrize(("maker", "fast"), [("GenuineIntel", True), ("AuthenticAMD", False)])
def test_matrix_products_are_fast_on_the_processors_of_their_maker(tmp_path, monkeypatch, maker, fast):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nvendor_id\t: {maker}\n")
    monkeypatch.setattr(support, "Path", lambda name: file if name == "/proc/cpuinfo" else Path(name))
    assert support.multiplies_fast.__wrapped__() == (fast and torch.backends.mkl.is_available())


def test_what_a_wrong_algorithm_gives_is_not_used(eager, monkeypatch, caplog):
    monkeypatch.setattr(
        training, "_by_winograd", lambda x, weight, *more, tile: x.new_ones(len(x), len(weight), *x.shape[2:])
    )
    x, weight, bias, grad = normal(1, 64, 8, 8), normal(64, 64, 3, 3), torch.zeros(64), normal(1, 64, 8, 8, seed=3)
    mode = FastConvolutions()
    truth = passes(x, weight, bias, grad, contextlib.nullcontext(), padding=1)
    for _ in range(2):
        found = passes(x, weight, bias, grad, mode, padding=1)
        assert all(error(*pair) < 1e-5 for pair in zip(found, truth, strict=True))
    assert len([line for line in caplog.messages if "now used" in line]) == 2  # forward, and once backward


@pytest.mark.parametrize(
    "geometry",
    [
        {"padding": 1, "stride": 2},
        {"padding": 0},
        {"padding": (1, 2), "dilation": (1, 2)},
        {"padding": 1, "groups": 2},
        {"padding": 2},
    ],
    ids=str,
)
def test_other_geometries_are_left_to_pytorch(eager, geometry):
    x, weight = normal(1, 128, 12, 12), normal(64, 128 // geometry.get("groups", 1), 3, 3).requires_grad_()
    with FastConvolutions():
        found = F.conv2d(x, weight, **geometry)
    assert torch.equal(found, F.conv2d(x, weight, **geometry))
    assert type(found.grad_fn).__name__ == "ConvolutionBackward0"


def test_evaluation_other_types_and_layouts_are_left_to_pytorch(eager):
    x, weight = normal(1, 64, 12, 12), normal(64, 64, 3, 3).requires_grad_()
    with FastConvolutions():
        with torch.no_grad():
            assert F.conv2d(x, weight, padding=1).grad_fn is None
        with torch.autocast("cpu", torch.bfloat16):
            half = F.conv2d(x, weight, padding=1)
        others = [half, F.conv2d(x.double(), weight.double(), padding=1), F.conv2d(x.contiguous(), weight, padding=1)]
        ours = F.conv2d(x, weight, padding="same")
    assert [type(each.grad_fn).__name__ for each in others] == ["ConvolutionBackward0"] * 3
    assert type(ours.grad_fn).__name__ == "_ConvolutionBackward"


def test_gradients_can_be_differentiated_again(eager):
    found = []
    for mode in (FastConvolutions(), contextlib.nullcontext()):
        x, weight = normal(1, 64, 6, 6).requires_grad_(), normal(64, 64, 3, 3).requires_grad_()
        with mode:
            first = torch.autograd.grad(F.conv2d(x, weight, padding=1).square().sum(), x, create_graph=True)[0]
            found.append(torch.autograd.grad(first.square().sum(), weight)[0])
    assert error(*found) < 1e-4


@EITHER
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_frozen_batch_norm_in_the_convolution_too(eager, products, kernel):
    def gradients(mode):
        torch.manual_seed(0)
        convolution = nn.Conv2d(64, 64, kernel, padding=kernel // 2 * 2, dilation=2, bias=False)
        model = nn.Sequential(convolution, nn.BatchNorm2d(64)).to(memory_format=LAST)
        model[1].running_var.uniform_(0.5, 2)
        assert freeze_batch_norm(model, example=normal(1, 64, 8, 8)) == 1
        x = normal(2, 64, 12, 12).requires_grad_()
        with mode:
            y = model(x).mul_(2)
            y.square().sum().backward()
        return y.detach(), x.grad, convolution.weight.grad

    mode = FastConvolutions()
    for found, wanted in zip(gradients(mode), gradients(contextlib.nullcontext()), strict=True):
        assert error(found, wanted) < 1e-4
    assert len(mode._agrees) == (3 if kernel == 3 else 2 * products)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, 2, 1)
        self.norm = nn.BatchNorm2d(64)
        self.middle = nn.Conv2d(64, 64, 3, padding=2, dilation=2)
        self.head = nn.Conv2d(64, 3, 1)

    def forward(self, x):
        x = self.norm(self.first(x / 255)).relu()
        return self.head(x + self.middle(x).relu())


def tiny(fast):
    torch.manual_seed(0)
    model = Tiny().to(memory_format=LAST)
    return Training(model, torch.optim.SGD(model.parameters(), 0.05, 0.9), fast=FastConvolutions() if fast else None)


def crops(step):
    """Four images whose classes follow from their colours, with noise."""
    generator = torch.Generator().manual_seed(step)
    coarse = torch.randint(0, 3, (4, 4, 4), generator=generator)
    label = coarse.repeat_interleave(6, 1).repeat_interleave(6, 2)
    image = F.one_hot(label, 3).permute(0, 3, 1, 2) * 90 + torch.randint(0, 160, (4, 3, 24, 24), generator=generator)
    return Batch(image, label, ("",) * 4)


def losses(state, steps):
    return [train_step(state, [crops(step)], Objective()) for step in steps]


@pytest.mark.parametrize("products", [True], indirect=True)
def test_losses_of_200_steps_are_those_of_pytorch(eager):
    fast = tiny(True)
    found, wanted = (torch.tensor(losses(state, range(200))) for state in (fast, tiny(False)))
    assert len(fast.fast._agrees) == 5
    assert wanted[-20:].mean() < 0.5 * wanted[:5].mean()
    assert (found - wanted).abs().max() < 1e-3 * wanted.max()


def test_a_resumed_run_is_the_same_to_the_last_bit(eager, tmp_path):
    whole, begun, resumed = tiny(True), tiny(True), tiny(True)
    wanted = losses(whole, range(6))
    losses(begun, range(3))
    begun.save(tmp_path / "state")
    resumed.restore(tmp_path / "state")
    assert losses(resumed, range(3, 6)) == wanted[3:]
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
