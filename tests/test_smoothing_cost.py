"""What smoothing keeps in memory for training, and that computing it again changes neither values nor gradients."""

import copy
import gc
import itertools
import weakref

import pytest
import torch
from timm.layers.std_conv import StdConv2d
from torch import nn
from torch.utils.checkpoint import checkpoint

from degrid.acceleration import recompute
from degrid.kernels import smoothing
from degrid.smoothing import OPERATORS, PreFilter, filters, smooth_dilated_convs

LEGACY = ("gi", "average", "gaussian", "aggregation")
KINDS = [(name, False) for name in OPERATORS] + [(name, True) for name in LEGACY]


def smoothed(operator, rate=4, channels=4, legacy=False, **options):
    torch.manual_seed(rate)
    model = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, bias=False))
    if operator is not None:
        smooth_dilated_convs(model, operator, legacy=legacy, **options)
        with torch.no_grad():
            for parameter in model[0].smoothing.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(memory_format=torch.channels_last)


def image(channels=4, height=13, width=16, seed=0):
    torch.manual_seed(seed)
    return torch.randn(2, channels, height, width).contiguous(memory_format=torch.channels_last).requires_grad_()


def kept_bytes(model, x, *, autocast=False):
    """What autograd keeps between forward and backward, parameters left out, each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found = {}

    def pack(saved):
        found[saved.untyped_storage().data_ptr()] = saved
        return saved

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    y.float().sum().backward()
    return sum(saved.untyped_storage().nbytes() for place, saved in found.items() if place not in own)


@pytest.mark.parametrize(("operator", "legacy"), KINDS)
@pytest.mark.parametrize(("rate", "size"), [(2, (12, 14)), (4, (12, 16)), (4, (13, 17))])
def test_no_more_is_kept_than_for_the_plain_convolution(operator, legacy, rate, size):
    """But the filter itself; and for group interaction the convolved map, which its weight's gradient needs."""
    x = image(32, *size)
    plain = kept_bytes(smoothed(None, rate, 32), x)
    assert plain == x.numel() * 4
    model = smoothed(operator, rate, 32, legacy)
    found = kept_bytes(model, x)
    if operator == "gi":
        height, width = (-(-side // rate) * rate for side in size)
        found -= 4 * 2 * 32 * height * width
    filters_bytes = 4 * (32 * 120 if legacy else 400)
    assert plain <= found <= plain + filters_bytes + 4 * sum(p.numel() for p in model[0].smoothing.parameters())


@pytest.mark.parametrize("operator", ["ssc", "tent", "aggregation", "decompose"])
def test_under_autocast_the_map_is_kept_once_in_the_low_precision(operator):
    x = image(32, 13, 17)
    small = 4 * 200
    assert kept_bytes(smoothed(operator, 4, 32), x, autocast=True) <= 2 * x.numel() + small
    assert kept_bytes(smoothed(None, 4, 32), x, autocast=True) >= 2 * x.numel()


@pytest.mark.parametrize("operator", ["ssc", "average", "gi", "decompose"])
def test_the_prepared_map_is_freed_after_the_forward_pass(operator):
    layer = smoothed(operator)[0]
    seen = []

    def convolve(made, rate):
        seen.append(weakref.ref(made))
        return layer.convolve(made, rate)

    y = layer.smoothing(image(), convolve)
    gc.collect()
    assert y.requires_grad
    assert seen[0]() is None


def results(model, x, function=None):
    """Values and all gradients, with x used a second time after the layer."""
    function = function or model
    model.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x) * x + x
    y.square().sum().backward()
    own = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"y": y.detach(), "x": x.grad, **own}


def assert_same(found, expected, close=2e-4):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= close * (1e-3 + value.abs().max()), name


def plain_pytorch(monkeypatch):
    """Autograd's own gradients from here on."""
    for module in (recompute, filters):
        monkeypatch.setattr(module, "gradients_wanted", lambda *tensors: False)
    monkeypatch.setattr(smoothing, "numba_installed", lambda: False)


@pytest.mark.parametrize(("operator", "legacy"), KINDS)
def test_values_and_gradients_are_those_of_autograd(operator, legacy, monkeypatch):
    cases = list(
        itertools.product((2, 4), ((12, 16), (13, 18), (3, 2)), (torch.channels_last, torch.contiguous_format))
    )

    def all_results():
        return [
            results(smoothed(operator, rate, legacy=legacy), image(4, *size).contiguous(memory_format=layout))
            for rate, size, layout in cases
        ]

    found = all_results()
    plain_pytorch(monkeypatch)
    for own, expected in zip(found, all_results(), strict=True):
        assert_same(own, expected)


@pytest.mark.parametrize("operator", ["ssc", "aggregation", "tent", "gi"])
def test_gradients_under_autocast(operator):
    model, x = smoothed(operator, 4, 16), image(16)

    def low(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    assert_same(results(model, x, low), results(model, x), close=0.05)


@pytest.mark.parametrize("operator", ["ssc", "tent", "gi"])
def test_second_derivatives(operator):
    """Float32 would be too coarse to differentiate twice numerically; group interaction in double runs as PyTorch."""
    model = smoothed(operator, 2, 1).double()
    names = list(dict(model.named_parameters()))
    values = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    x = torch.randn(1, 1, 4, 3, dtype=torch.float64, requires_grad=True)

    def call(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values))
    assert torch.autograd.gradgradcheck(call, (x, *values))


@pytest.mark.parametrize("operator", ["ssc", "tent", "decompose", "gi"])
def test_changing_the_input_in_place_is_noticed(operator):
    x = image() * 1
    y = smoothed(operator)(x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("operator", ["ssc", "decompose", "gi", "tent"])
def test_backward_twice(operator):
    model, x = smoothed(operator), image()
    y = model(x).square().sum()
    first = torch.autograd.grad(y, [x, *model.parameters()], retain_graph=True)
    second = torch.autograd.grad(y, [x, *model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("operator", ["ssc", "decompose", "gi", "tent"])
def test_with_activation_checkpoints(operator):
    model, x = smoothed(operator), image()
    expected = results(model, x)
    assert_same(results(model, x, lambda x: checkpoint(model, x, use_reentrant=False)), expected, close=1e-6)


@pytest.mark.parametrize("operator", ["ssc", "decompose", "gi", "tent"])
def test_only_some_need_gradients(operator):
    """A frozen convolution, a frozen filter, and an image that needs none."""
    model, x = smoothed(operator), image()
    expected = results(model, x)
    model[0].weight.requires_grad_(False)
    found = results(model, x)
    assert_same(found, {name: value for name, value in expected.items() if name != "0.weight"}, close=1e-6)
    model[0].weight.requires_grad_(True)
    model[0].smoothing.requires_grad_(False)
    found = results(model, x)
    assert_same(found, {name: value for name, value in expected.items() if "smoothing" not in name}, close=1e-6)
    model.requires_grad_(True).zero_grad()
    leaf = x.detach()
    (model(leaf) * leaf + leaf).square().sum().backward()
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert_same(own, {name: expected[name] for name in own}, close=1e-6)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:FutureWarning"
)  # PyTorch's own, when it first makes a dual number
@pytest.mark.parametrize(
    "operator", ["ssc", "tent", *(pytest.param(name, marks=pytest.mark.slow) for name in ("decompose", "gi"))]
)
def test_what_must_see_pytorchs_own_operations_does(operator):
    """torch.func, forward-mode differentiation, compilation and export."""
    model, x = smoothed(operator), image()
    expected = results(model, x)
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(values, x):
        return (torch.func.functional_call(model, values, (x,)) * x + x).square().sum()

    gradients, for_x = torch.func.grad(loss, argnums=(0, 1))(values, x.detach())
    assert_same({"y": expected["y"], "x": for_x, **gradients}, expected, close=1e-5)

    tangent = torch.randn_like(x)
    _, along = torch.func.jvp(lambda x: loss(values, x), (x.detach(),), (tangent,))
    assert along.item() == pytest.approx((expected["x"] * tangent).sum().item(), rel=1e-3)

    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    assert_same(results(model, x, None), expected, close=1e-6)
    y = compiled(x)
    assert torch.allclose(y, model(x), atol=1e-5)
    program = torch.export.export(model, (x.detach(),))
    assert torch.allclose(program.module()(x.detach()), model(x), atol=1e-5)


def test_a_convolution_may_do_what_it_likes_with_the_filtered_map():
    """Use it twice, or change it: only what it keeps of the map itself is replaced."""

    class Twice(PreFilter):
        def kernel(self):
            return torch.ones(3, 3) / 9

        def forward(self, x, convolve):
            return filters.convolve_filtered(x, self.kernel(), lambda y: convolve(y, 2) * y + convolve(y.relu(), 1))

    layer = smoothed(Twice, 2)[0]
    x = image().detach().double().requires_grad_()
    layer.double()
    assert torch.autograd.gradcheck(layer, (x,), fast_mode=True)


@pytest.mark.parametrize("operator", ["ssc", "tent"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv1d(8, 8, 3, dilation=2, padding=2),
        lambda: StdConv2d(8, 8, 3, dilation=2, padding=2),
        lambda: nn.Conv2d(8, 8, 3, stride=2, dilation=2, padding=2),
        lambda: torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, dilation=2, padding=2)),
    ],
    ids=["one axis", "standardised", "strided", "weight norm"],
)
def test_layers_of_other_kinds_keep_no_more_either(make, operator):
    plain = make()
    x = torch.randn(2, 8, *(24,) * (plain.weight.ndim - 2), requires_grad=True)
    before = kept_bytes(plain, x)
    model = nn.Sequential(make())
    smooth_dilated_convs(model, operator)
    assert kept_bytes(model, x) <= before + 4 * 100
