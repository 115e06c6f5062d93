"""Every operator against a literal NumPy version written from its definition, and what must hold by mathematics."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from degrid.smoothing import OPERATORS, Operator, filters, operator_factory, smooth_dilated_convs
from degrid.smoothing.operators import interlace, periodic_subsample
from degrid.types import UserError

RATES = (1, 2, 3, 4, 6)
SIZES = ((12, 12), (13, 17), (5, 4))
IDENTITY_AT_START = ("regular", "decompose", "gi", "ssc")
LAYERS = {
    "dense": {"in_channels": 3, "out_channels": 4, "kernel_size": 3},
    "groups": {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "groups": 2},
    "depthwise": {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "groups": 4},
    "5x5": {"in_channels": 2, "out_channels": 3, "kernel_size": 5},
    "3x1": {"in_channels": 2, "out_channels": 3, "kernel_size": (3, 1)},
}


def conv(rate, bias=True, dtype=torch.float32, **shape):
    kernel = shape["kernel_size"] if isinstance(shape["kernel_size"], tuple) else (shape["kernel_size"],) * 2
    padding = tuple(rate * (size // 2) for size in kernel)
    return nn.Conv2d(**shape, dilation=rate, padding=padding, bias=bias).to(dtype)


def smoothed(layer, operator, **options):
    """A smoothed copy, whatever its rate; a rate of 1 is not dilated, so it is dressed by hand."""
    layer = copy.deepcopy(layer)
    if max(layer.dilation) > 1:
        smooth_dilated_convs(layer, operator, lambda name, module: True, **options)
        return layer
    from degrid.smoothing import SmoothedConv2d

    made = operator_factory(operator, **options)(1).to(layer.weight.dtype)
    layer.__class__ = SmoothedConv2d
    layer.smoothing = made
    return layer


# ---- the literal versions -----------------------------------------------------------------------------------


def naive_conv(x, weight, rates, groups):
    """Zero-padded dilated convolution of [C,*sides], tap by tap; rates: one per axis."""
    out_channels, per_group, *kernel = weight.shape
    sides = x.shape[1:]
    reach = [rate * (size // 2) for rate, size in zip(rates, kernel, strict=True)]
    padded = np.pad(x, [(0, 0), *((each, each) for each in reach)])
    y = np.zeros((out_channels, *sides))
    for o in range(out_channels):
        first = o // (out_channels // groups) * per_group
        for c, *tap in itertools.product(range(per_group), *map(range, kernel)):
            part = tuple(slice(at * rate, at * rate + side) for at, rate, side in zip(tap, rates, sides, strict=True))
            y[o] += weight[(o, c, *tap)] * padded[(first + c, *part)]
    return y


def naive_filter(x, kernel):
    """Each channel with the same kernel."""
    ones = [1] * kernel.ndim
    return np.concatenate([naive_conv(x[c : c + 1], kernel[None, None], ones, 1) for c in range(len(x))])


def product(lines):
    return functools.reduce(np.multiply.outer, map(np.asarray, lines))


def naive_side(rate):
    return rate - 1 if rate % 2 == 0 else rate


def naive_box(rates):
    return product([np.full(naive_side(rate), 1 / naive_side(rate)) for rate in rates])


def naive_gaussian(rates, sigma):
    kernel = product(
        [[np.exp(-((i - naive_side(r) // 2) ** 2) / (2 * sigma**2)) for i in range(naive_side(r))] for r in rates]
    )
    return kernel / kernel.sum()


def naive_tent(rates):
    return product([[(rate - abs(i)) / rate**2 for i in range(1 - rate, rate)] for rate in rates])


def naive(operator, x, weight, groups, rates, p):
    """y of one image, from the definitions of the papers; p: the operator's parameters by name."""
    if operator in ("regular", "decompose"):
        return naive_conv(x, weight, rates, groups)
    if operator == "gi":
        sides = x.shape[1:]
        padded = np.pad(x, ((0, 0), *((0, -side % rate) for side, rate in zip(sides, rates, strict=True))))
        f = naive_conv(padded, weight, rates, groups)
        out = np.zeros_like(f)
        for place in itertools.product(*map(range, f.shape[1:])):
            target = np.ravel_multi_index([at % rate for at, rate in zip(place, rates, strict=True)], rates)
            for source, inside in enumerate(np.ndindex(*rates)):
                block = [at - at % rate + step for at, rate, step in zip(place, rates, inside, strict=True)]
                out[(slice(None), *place)] += p["weight"][source, target] * f[(slice(None), *block)]
        return out[(slice(None), *map(slice, sides))]
    if operator == "average":
        return naive_conv(naive_filter(x, naive_box(rates)), weight, rates, groups)
    if operator == "gaussian":
        return naive_conv(naive_filter(x, naive_gaussian(rates, np.exp(p.get("log_sigma", 0)))), weight, rates, groups)
    if operator == "tent":
        return naive_conv(naive_filter(x, naive_tent(rates)), weight, rates, groups)
    kernel = p["residual"].copy()
    kernel[tuple(rate - 1 for rate in rates)] += 1
    if operator == "ssc":
        return naive_conv(naive_filter(x, kernel), weight, rates, groups)
    c = np.exp(p["mix"]) / np.exp(p["mix"]).sum()
    mixed = (
        c[0] * x
        + c[1] * naive_filter(x, naive_box(rates))
        + c[2] * naive_filter(x, naive_gaussian(rates, 1.0))
        + c[3] * naive_filter(x, kernel)
    )
    return naive_conv(mixed, weight, rates, groups)


def filtered_rates(layer):
    """The rates at which a layer is filtered or mixed: 1 along axes where its kernel is 1 wide."""
    return [rate if size > 1 else 1 for rate, size in zip(layer.dilation, layer.kernel_size, strict=True)]


def compare(layer, operator, x, atol=1e-6):
    """A layer whose operator has random parameters, against the literal version."""
    with torch.no_grad():
        for parameter in layer.smoothing.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    own = {name: value.detach().numpy() for name, value in layer.smoothing.named_parameters()}
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().reshape(-1, *[1] * (x.ndim - 2)).numpy()
    rates = filtered_rates(layer)
    expected = [naive(operator, image, weight, layer.groups, rates, own) + bias for image in x.numpy()]
    assert np.abs(layer(x).detach().numpy() - np.stack(expected)).max() < atol


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_equals_the_literal_version(operator, rate):
    torch.manual_seed(rate)
    options = {"sigma": "layer"} if operator == "gaussian" else {}
    for shape, (height, width) in zip(LAYERS.values(), itertools.cycle(SIZES), strict=False):
        layer = smoothed(conv(rate, **shape, dtype=torch.float64), operator, **options)
        x = torch.randn(2, shape["in_channels"], height, width, dtype=torch.float64)
        compare(layer, operator, x)


UNEQUAL = {
    "rates (1, 2)": (nn.Conv2d(2, 3, 3, dilation=(1, 2), padding=(1, 2)), (7, 8)),
    "rates (4, 2)": (nn.Conv2d(2, 2, (3, 5), dilation=(4, 2), padding=(4, 4), groups=2), (9, 7)),
    "1x3": (nn.Conv2d(2, 3, (1, 3), dilation=3, padding=(0, 3)), (2, 11)),
    "one axis": (nn.Conv1d(2, 3, 3, dilation=3, padding=3), (13,)),
    "three axes": (nn.Conv3d(2, 2, 3, dilation=2, padding=2), (3, 5, 4)),
    "three axes, two dilated": (nn.Conv3d(1, 2, (1, 3, 3), dilation=(1, 2, 3), padding=(0, 2, 3)), (2, 5, 4)),
}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("kind", UNEQUAL)
def test_every_number_of_axes_and_rate_along_them_equals_the_literal_version(operator, kind):
    """And the layers of PyTorch alone that are exported; and the gradients."""
    torch.manual_seed(0)
    plain, sides = UNEQUAL[kind]
    layer = smoothed(plain.double(), operator)
    x = torch.randn(2, plain.in_channels, *sides, dtype=torch.float64)
    compare(layer, operator, x)
    with torch.no_grad():
        y = layer(x)
        exported = layer.as_plain_layers()
        assert torch.allclose(exported(x), y, atol=1e-8)
    assert torch.allclose(layer(x[0]), y[0])
    parameters = dict(layer.named_parameters())
    values = [value.detach().clone().requires_grad_() for value in parameters.values()]

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *values), fast_mode=True)


def test_filters_along_the_dilated_axis_only():
    layer = nn.Conv2d(1, 1, (1, 3), dilation=2, padding=(0, 2))
    assert smoothed(layer, "tent").smoothing.kernel().tolist() == [[0.25, 0.5, 0.25]]
    assert smoothed(layer, "ssc").smoothing.residual.shape == (1, 3)
    assert smoothed(layer, "average", size=5).smoothing.kernel().shape == (1, 5)
    assert smoothed(layer, "gi").smoothing.weight.shape == (2, 2)


@pytest.mark.parametrize(
    ("init", "kernel"), [("identity", filters.delta), ("tent", filters.tent), ("box", filters.box)]
)
def test_starts_of_ssc(init, kernel):
    layer = smoothed(conv(3, in_channels=1, out_channels=1, kernel_size=3), "ssc", init=init)
    expected = filters.embed(kernel(3 if init != "identity" else 1), 5)
    assert torch.allclose(layer.smoothing.kernel(), expected, atol=1e-7)
    with pytest.raises(UserError, match='init of "ssc" must be identity, tent or box, got "cone"'):
        operator_factory("ssc", init="cone")(2)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("operator", IDENTITY_AT_START)
@pytest.mark.parametrize("kind", LAYERS)
def test_begins_as_the_plain_convolution(operator, rate, kind):
    torch.manual_seed(0)
    for bias, (height, width) in itertools.product((True, False), SIZES):
        layer = conv(rate, bias, **LAYERS[kind])
        x = torch.randn(2, layer.in_channels, height, width)
        assert torch.allclose(smoothed(layer, operator)(x), layer(x), atol=1e-5)


@settings(max_examples=60)
@given(
    operator=st.sampled_from(sorted(OPERATORS)),
    rate=st.integers(2, 7),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel=st.sampled_from([(3, 3), (1, 3), (5, 3), (7, 7)]),
    groups=st.sampled_from([1, 2, 4]),
)
def test_any_shape(operator, rate, height, width, kernel, groups):
    layer = conv(rate, in_channels=4, out_channels=8, kernel_size=kernel, groups=groups)
    x = torch.randn(1, 4, height, width)
    y = smoothed(layer, operator)(x)
    assert y.shape == layer(x).shape
    # Smoothing is linear in x.
    plain = smoothed(layer, operator)
    plain.bias.data.zero_()
    assert torch.allclose(plain(3 * x), 3 * plain(x), atol=1e-4)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("rate", [2, 3])
def test_gradients(operator, rate):
    torch.manual_seed(0)
    options = {"sigma": "shared"} if operator == "gaussian" else {}
    layer = smoothed(conv(rate, in_channels=2, out_channels=2, kernel_size=3, dtype=torch.float64), operator, **options)
    parameters = dict(layer.named_parameters())
    values = [value.detach().clone().requires_grad_() for value in parameters.values()]
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values))


# ---- filters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", range(1, 13))
def test_filters_are_centred_symmetric_and_sum_to_one(rate):
    sigma = torch.tensor(1.3, dtype=torch.float64)
    size = filters.default_size(rate)
    for kernel in (
        filters.box(size),
        filters.tent(rate),
        filters.gaussian(size, sigma),
        filters.delta(2 * rate - 1),
    ):
        assert kernel.shape[0] % 2 == 1
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
        assert torch.allclose(kernel, kernel.flip(0), atol=1e-7)
        assert torch.allclose(kernel, kernel.T, atol=1e-7)
    assert size == (rate - 1 if rate % 2 == 0 else rate)


def test_filters_by_hand():
    assert filters.tent(2).tolist() == [
        [1 / 16, 1 / 8, 1 / 16],
        [1 / 8, 1 / 4, 1 / 8],
        [1 / 16, 1 / 8, 1 / 16],
    ]
    three = filters.gaussian(3, torch.tensor(1.0))
    assert three[1, 1].item() == pytest.approx(0.20418, abs=1e-5)
    assert three[0, 1].item() == pytest.approx(0.12384, abs=1e-5)
    assert three[0, 0].item() == pytest.approx(0.07511, abs=1e-5)
    # The original code's filter, whatever its sigma, is the one of sigma 1/sqrt(2).
    assert filters.gaussian(3, torch.tensor(0.5**0.5))[1, 1].item() == pytest.approx(0.33191, abs=1e-5)


def test_average_by_hand():
    """One row, one channel, kernel of ones: with rate 4 the box of 3 turns three taps of a row into nine."""
    layer = nn.Conv2d(1, 1, (1, 3), dilation=4, padding=(0, 4), bias=False)
    nn.init.ones_(layer.weight)
    smooth_dilated_convs(layer, "average")
    x = torch.zeros(1, 1, 3, 13)
    x[0, 0, 1, 6] = 3
    y = layer(x)
    assert torch.allclose(y[0, 0, 1], torch.tensor([0.0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0]))
    assert y[0, 0, 0].abs().max() == 0


def test_group_interaction_by_hand():
    """Rate 2, 1x1 image block: every output of a block becomes the sum that G says."""
    layer = nn.Conv2d(1, 1, 3, dilation=2, padding=2, bias=False)
    nn.init.zeros_(layer.weight)
    layer.weight.data[0, 0, 1, 1] = 1  # the convolution is the identity, so f is x
    smooth_dilated_convs(layer, "gi")
    layer.smoothing.weight.data.zero_()
    layer.smoothing.weight.data[0, 3] = 5  # the first group reaches the last one
    layer.smoothing.weight.data[1, 0] = 7
    y = layer(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert y.tolist() == [[[[14.0, 0.0], [0.0, 5.0]]]]


def test_periodic_subsample_and_back():
    x = torch.arange(2 * 3 * 5 * 7, dtype=torch.float32).reshape(2, 3, 5, 7)
    groups = periodic_subsample(x, 3)
    assert groups.shape == (18, 3, 2, 3)
    for i, j, n in itertools.product(range(3), range(3), range(2)):
        part = x[n, :, i::3, j::3]
        item = groups[(i * 3 + j) * 2 + n]
        assert torch.equal(item[:, : part.shape[1], : part.shape[2]], part)
        assert item.sum() == part.sum()
    assert torch.equal(interlace(groups, 3)[..., :5, :7], x)


# ---- parameters, precision, layout --------------------------------------------------------------------------


def network():
    return nn.Sequential(
        *(nn.Conv2d(4, 4, 3, dilation=rate, padding=rate, bias=False) for rate in (2, 4, 4)),
        nn.Conv2d(4, 2, 1),
    )


@pytest.mark.parametrize(
    ("operator", "options", "count"),
    [
        ("regular", {}, 0),
        ("decompose", {}, 0),
        ("gi", {}, 16 + 256 + 256),
        ("ssc", {}, 9 + 49 + 49),
        ("average", {}, 0),
        ("gaussian", {}, 0),
        ("gaussian", {"sigma": 2.0}, 0),
        ("gaussian", {"sigma": "shared"}, 1),
        ("gaussian", {"sigma": "layer"}, 3),
        ("aggregation", {}, 4 + 9 + 49 + 49),
        ("tent", {}, 0),
    ],
)
def test_parameter_counts_and_names(operator, options, count):
    model = network()
    plain = set(model.state_dict())
    before = sum(p.numel() for p in model.parameters())
    smooth_dilated_convs(model, operator, **options)
    assert sum(p.numel() for p in model.parameters()) - before == count
    new = set(model.state_dict()) - plain
    assert plain <= set(model.state_dict())
    assert all(".smoothing." in name for name in new)
    assert bool(new) == bool(count)


@pytest.mark.parametrize(("operator", "options"), [("gaussian", {"sigma": "shared"}), ("aggregation", {})])
def test_what_a_network_shares_stays_shared(operator, options):
    name = "log_sigma" if operator == "gaussian" else "mix"
    model = network()
    smooth_dilated_convs(model, operator, **options)
    for each in (model, copy.deepcopy(model), copy.deepcopy(model).double()):
        shared = [getattr(each[i].smoothing, name) for i in range(3)]
        assert shared[0] is shared[1] is shared[2]
    model(torch.randn(1, 4, 16, 16)).square().sum().backward()
    assert getattr(model[1].smoothing, name).grad.abs().sum() > 0
    other = network()
    smooth_dilated_convs(other, operator, **options)
    assert getattr(other[0].smoothing, name) is not getattr(model[0].smoothing, name)


def test_aggregation_starts_with_equal_weights():
    model = network()
    smooth_dilated_convs(model, "aggregation")
    kernel = model[1].smoothing.kernel()
    expected = filters.delta(7) / 2 + filters.embed(filters.box(3), 7) / 4
    expected = expected + filters.embed(filters.gaussian(3, torch.tensor(1.0)), 7) / 4
    assert torch.allclose(kernel, expected, atol=1e-7)


@pytest.mark.parametrize("operator", OPERATORS)
def test_channels_last_and_bfloat16_agree(operator):
    torch.manual_seed(0)
    layer = smoothed(conv(4, in_channels=16, out_channels=16, kernel_size=3), operator)
    x = torch.randn(2, 16, 13, 18)
    y = layer(x)
    swapped = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    assert torch.allclose(swapped(x.contiguous(memory_format=torch.channels_last)), y, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    assert (low - y).abs().max() < 0.05 * y.abs().max()
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_sizes_and_sigmas_are_checked():
    for options in ({"size": 4}, {"size": 0}, {"size": -3}):
        with pytest.raises(UserError, match="must be odd and positive"):
            smooth_dilated_convs(network(), "average", **options)
    for sigma in (0, -1.0):
        with pytest.raises(UserError, match="sigma must be a positive number"):
            smooth_dilated_convs(network(), "gaussian", sigma=sigma)
    with pytest.raises(UserError, match='sigma must be a number, "shared" or "layer", got "both"'):
        smooth_dilated_convs(network(), "gaussian", sigma="both")


def test_own_operator_from_a_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from degrid.smoothing import Operator\n"
        "class Doubled(Operator):\n"
        "    def __init__(self, rate, factor=2.0):\n"
        "        super().__init__(rate)\n"
        "        self.factor = factor\n"
        "    def forward(self, x, convolve):\n"
        "        return self.factor * convolve(x, self.rate)\n"
    )
    monkeypatch.chdir(tmp_path)
    layer = conv(2, bias=False, in_channels=2, out_channels=2, kernel_size=3)
    x = torch.randn(1, 2, 8, 8)
    expected = layer(x)
    own = copy.deepcopy(layer)
    report = smooth_dilated_convs(own, "mine:Doubled", factor=3.0)
    assert torch.allclose(own(x), 3 * expected)
    assert report.operator == own.smoothing.name == "Doubled"


def test_an_operator_must_define_forward():
    class Empty(Operator):
        pass

    with pytest.raises(TypeError, match="Empty must define forward"):
        Empty(2)(torch.zeros(1, 1, 4, 4), None)
