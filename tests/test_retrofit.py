"""Smoothing networks that are not ours."""

import copy
import itertools
import pickle
import sys
import types
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import std_conv
from timm.layers.cond_conv2d import CondConv2d
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torchvision.ops import DeformConv2d

import degrid
from degrid.acceleration.fold import fold_batch_norm
from degrid.acceleration.winograd_layer import use_winograd
from degrid.contracts import FoldingConv2d
from degrid.engine.inference.fast_network import FastNetwork
from degrid.exporters.graph import to_plain_layers
from degrid.exporters.runtime import AGREEMENT
from degrid.exporters.table import find_exporter
from degrid.models import freeze_batch_norm
from degrid.smoothing import SmoothedConv2d, SmoothedLayer, rate_at_most, smooth_dilated_convs
from degrid.types import LabelSpace, UserError

LABELS = LabelSpace.of_size(4)


def dilated(channels=2, rate=2, **kwargs):
    return nn.Conv2d(channels, channels, 3, dilation=rate, padding=kwargs.pop("padding", rate), **kwargs)


def timm_features(name):
    return timm.create_model(name, features_only=True, output_stride=8)


@pytest.mark.parametrize(
    ("build", "smoothed", "skipped"),
    [
        (
            lambda: torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None),
            8,
            3,
        ),
        (lambda: timm_features("resnet101"), 25, 0),
        (lambda: timm_features("convnext_tiny"), 12, 1),
        (lambda: timm_features("mobilenetv2_100"), 10, 0),
    ],
    ids=["torchvision deeplabv3_resnet50", "resnet101", "convnext_tiny", "mobilenetv2_100"],
)
def test_networks_of_others(build, smoothed, skipped):
    model = build().eval()
    plain = copy.deepcopy(model.state_dict())
    x = torch.randn(1, 3, 64, 72)

    def output():
        with torch.no_grad():
            y = model(x)
        return y["out"] if isinstance(y, dict) else y[-1]

    before = output()
    report = smooth_dilated_convs(model, "ssc")
    assert (len(report.replaced), len(report.skipped)) == (smoothed, skipped)
    assert sum(isinstance(m, SmoothedConv2d) for m in model.modules()) == smoothed
    assert torch.allclose(output(), before, atol=1e-4 * float(before.abs().max()))
    # A checkpoint of the plain network loads; only the operators' own parameters are new.
    missing, unexpected = model.load_state_dict(plain, strict=False)
    assert not unexpected
    assert len(missing) == smoothed
    assert all(".smoothing." in key for key in missing)


class Own(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(2, 2, 1, dilation=2), "1x1 kernel: its rate has no effect"),
        (Own(2, 2, 3, dilation=2, padding=2), "Own has a forward of its own, which is more than one convolution"),
        (nn.Conv2d(2, 2, 2, dilation=2, padding=1), "even kernel 2x2"),
        (dilated(padding=1), r'padding \(1, 1\) is not zero "same" padding \(2, 2\)'),
        (dilated(padding=0), "no padding: if the network pads the map itself before, with zeros, say padded_outside="),
        (dilated(padding_mode="reflect"), "reflect"),
        (nn.Conv2d(2, 2, (3, 1), dilation=(1, 2), padding=(1, 0)), "3x1 kernel: it is 1 wide along its dilated axis"),
        (nn.ConvTranspose2d(2, 2, 3, dilation=2), "ConvTranspose2d writes on a grid where others read from one"),
        (nn.LazyConv2d(2, 3, dilation=2, padding=2), "LazyConv2d has no weight yet: run the network once"),
        (nn.MaxPool2d(3, 1, padding=2, dilation=2), "MaxPool2d is none of PyTorch's convolutions"),
        (DeformConv2d(2, 2, 3, padding=2, dilation=2), "DeformConv2d is none of PyTorch's convolutions"),
        (dilated(rate=6), "rate 6 left out by where"),
    ],
)
def test_what_must_not_be_touched_is_skipped_with_the_reason(layer, reason):
    model = nn.Sequential(dilated(), layer)
    kind = type(layer)
    report = smooth_dilated_convs(model, "tent")
    assert [name for name, _ in report.replaced] == ["0"]
    assert type(model[1]) is kind
    [(name, given)] = report.skipped
    assert name == "1"
    with pytest.raises(UserError, match=reason):
        smooth_dilated_convs(nn.Sequential(layer), "tent")
    assert given in str(report)


def test_folded_layers_are_left_alone():
    model = nn.Sequential(dilated(3), nn.BatchNorm2d(3)).eval()
    freeze_batch_norm(model)
    with pytest.raises(UserError, match="a frozen batch norm is folded into it: smooth the network before"):
        smooth_dilated_convs(model, "tent")


def test_plain_layers_are_not_worth_a_word():
    report = smooth_dilated_convs(nn.Sequential(dilated(), nn.Conv2d(2, 2, 3), nn.ReLU()), "ssc")
    assert report.skipped == ()
    with pytest.raises(UserError, match="it has no dilated convolution"):
        smooth_dilated_convs(nn.Sequential(nn.Conv2d(2, 2, 3)), "ssc")


def test_same_padding_in_words_counts():
    model = nn.Sequential(dilated(padding="same"))
    assert smooth_dilated_convs(model, "tent").replaced == (("0", 2),)


def test_parameters_are_the_same_objects():
    """An optimiser made before the retrofit still trains the layer, and hooks, mode and flags stay."""
    model = nn.Sequential(dilated()).eval()
    weight, bias = model[0].weight, model[0].bias
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    smooth_dilated_convs(model, "ssc")
    assert model[0].weight is weight
    assert model[0].bias is bias
    assert not model[0].smoothing.training
    before = weight.detach().clone()
    model(torch.randn(1, 2, 8, 8)).sum().backward()
    optimizer.step()
    assert calls
    assert not torch.equal(model[0].weight, before)


def test_a_layer_used_twice_is_smoothed_once():
    layer = dilated()
    model = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    report = smooth_dilated_convs(model, "ssc")
    assert len(report.replaced) == 1
    assert model["a"] is model["b"][0]


def test_the_model_itself_may_be_the_layer():
    layer = dilated()
    report = smooth_dilated_convs(layer, "tent")
    assert isinstance(layer, SmoothedConv2d)
    assert report.replaced == (("", 2),)


def test_twice_is_refused():
    model = nn.Sequential(dilated())
    smooth_dilated_convs(model, "ssc")
    with pytest.raises(UserError, match="already smoothed by ssc"):
        smooth_dilated_convs(model, "tent")


def test_where_chooses():
    model = nn.Sequential(dilated(rate=2), dilated(rate=12), dilated(rate=4))
    report = smooth_dilated_convs(model, "tent", where=rate_at_most(2))
    assert report.replaced == (("0", 2),)
    report = smooth_dilated_convs(model, "tent", where=lambda name, conv: name == "1")
    assert report.replaced == (("1", 12),)


def test_unchanged_rates_are_told_once():
    model = nn.Sequential(dilated(rate=2), dilated(rate=2), dilated(rate=4))
    report = smooth_dilated_convs(model, "average_filter")
    assert report.operator == "average"
    assert report.unchanged == (2,)
    assert str(report).count("single tap") == 1
    x = torch.randn(1, 2, 9, 9)
    plain = nn.Conv2d(2, 2, 3, dilation=2, padding=2)
    plain.load_state_dict(model[0].state_dict())
    assert torch.allclose(model[0](x), plain(x), atol=1e-6)


@pytest.mark.parametrize(
    ("original", "name"),
    [
        ("smooth_GI", "gi"),
        ("smooth_SSC", "ssc"),
        ("average_filter", "average"),
        ("gaussian_filter", "gaussian"),
    ],
)
def test_original_names(original, name):
    assert smooth_dilated_convs(nn.Sequential(dilated()), original).operator == name


def test_unknown_names_and_options():
    with pytest.raises(UserError, match='unknown smoothing operator "scc". Did you mean "ssc"'):
        smooth_dilated_convs(nn.Sequential(dilated()), "scc")
    with pytest.raises(UserError, match='operator "gaussian" has no option "sgima". Did you mean "sigma"'):
        smooth_dilated_convs(nn.Sequential(dilated()), "gaussian", sgima=1)


def test_a_failing_operator_leaves_the_model_as_it_was():
    model = nn.Sequential(dilated(rate=2), dilated(rate=4))

    def picky(rate):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        smooth_dilated_convs(model, picky)
    assert all(type(layer) is nn.Conv2d for layer in model)


@pytest.mark.slow
def test_exports_for_every_size():
    """Of the sizes that it is recorded with, one is a multiple of the rate and one is not."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=2, dilation=2) for _ in range(2)])
    for layer, operator in zip(model, ("gi", "decompose"), strict=True):
        smooth_dilated_convs(nn.Sequential(layer), operator)
    nn.init.normal_(model[0].smoothing.weight)
    any_size = dict.fromkeys((2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(model, (torch.zeros(1, 4, 17, 24),), dynamic_shapes=(any_size,), strict=False)
    for size in ((17, 24), (20, 21), (9, 9), (12, 30)):
        x = torch.randn(1, 4, *size)
        torch.testing.assert_close(program.module()(x), model(x))


def test_exports_and_images_without_batch():
    model = nn.Sequential(dilated(rate=3)).eval()
    smooth_dilated_convs(model, "gi")
    x = torch.randn(1, 2, 9, 10)
    program = torch.export.export(model, (x,))
    assert torch.allclose(program.module()(x), model(x), atol=1e-6)
    assert torch.allclose(model(x[0]), model(x)[0], atol=1e-6)


# ---- layers of other classes: what they compute after smoothing, written out -----------------------------------


class PaddedFirst(nn.Conv2d):
    """As the EfficientNets of segmentation_models.pytorch: a padding layer, then the convolution without padding."""

    def __init__(self, *args, rim=0, **kwargs):
        super().__init__(*args, **kwargs)
        self.static_padding = nn.ZeroPad2d(rim)

    def forward(self, x):
        return F.conv2d(
            self.static_padding(x), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Standardised(nn.Conv2d):
    """The weights of each output have mean 0 and variance 1."""

    def forward(self, x):
        flat = self.weight.flatten(1)
        weight = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return self._conv_forward(x, weight.view_as(self.weight), self.bias)


class Tagged(nn.Conv2d):
    """Adds nothing but its class."""


def with_gain(layer):
    with torch.no_grad():
        layer.gain.uniform_(0.5, 1.5)
        layer.bias.normal_()
    return layer


def old_norm(norm, layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return norm(layer)


SAME = {"dilation": 2, "padding": 2}
OTHER_CLASSES = {
    "subclass": lambda: Tagged(3, 4, 3, **SAME),
    "timm Conv2dSame": lambda: Conv2dSame(3, 4, 3, dilation=2),
    "padding of its own": lambda: PaddedFirst(3, 4, 3, dilation=2, rim=2),
    "padding made plain": lambda: PaddedFirst(4, 4, 3, groups=2, **SAME),
    "StdConv2d": lambda: std_conv.StdConv2d(3, 4, 3, bias=True, **SAME),
    "StdConv2dSame": lambda: std_conv.StdConv2dSame(3, 4, 3, bias=True, dilation=2),
    "ScaledStdConv2d": lambda: with_gain(std_conv.ScaledStdConv2d(4, 4, 3, groups=2, **SAME)),
    "ScaledStdConv2dSame": lambda: with_gain(std_conv.ScaledStdConv2dSame(3, 4, 3, dilation=2)),
    "standardised elsewhere": lambda: Standardised(3, 4, 3, **SAME),
    "weight norm": lambda: torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, **SAME)),
    "spectral norm": lambda: torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3, **SAME)),
    "weight norm of StdConv2d": lambda: torch.nn.utils.parametrizations.weight_norm(
        std_conv.StdConv2d(3, 4, 3, **SAME)
    ),
    "old weight norm": lambda: old_norm(torch.nn.utils.weight_norm, nn.Conv2d(3, 4, 3, **SAME)),
    "old spectral norm": lambda: old_norm(torch.nn.utils.spectral_norm, nn.Conv2d(3, 4, 3, **SAME)),
}


def literally(plain, operator, x):
    """Filter, then the layer as it was; or the layer on a map that whole blocks cover, mixed block by block, cut."""
    if operator.name != "gi":
        kernel = operator.kernel().detach()
        filtered = [F.conv2d(x[:, c : c + 1], kernel[None, None], padding="same") for c in range(x.shape[1])]
        return plain(torch.cat(filtered, 1))
    height, width = x.shape[-2:]
    bias = plain.bias[:, None, None] if getattr(plain, "bias", None) is not None else 0
    y = plain(F.pad(x, (0, width % 2, 0, height % 2))) - bias
    mixed = torch.zeros_like(y)
    groups = list(itertools.product((slice(0, None, 2), slice(1, None, 2)), repeat=2))
    for (i, to), (j, of) in itertools.product(enumerate(groups), repeat=2):
        mixed[(..., *to)] += operator.weight[j, i] * y[(..., *of)]
    return mixed[..., :height, :width] + bias


@pytest.mark.parametrize("operator", ["tent", "ssc", "gi"])
@pytest.mark.parametrize("kind", OTHER_CLASSES)
def test_other_classes_are_smoothed_around_what_they_compute(kind, operator):
    layer, plain = (OTHER_CLASSES[kind]().double().eval() for _ in range(2))
    torch.manual_seed(0)
    plain(torch.zeros(1, layer.in_channels, 5, 5).double())
    plain.load_state_dict(layer.state_dict())
    model = nn.Sequential(layer)
    assert smooth_dilated_convs(model, operator).replaced == (("0", 2),)
    assert model[0] is layer
    assert isinstance(layer, SmoothedLayer)
    x = torch.randn(2, layer.in_channels, 7, 6, dtype=torch.float64)
    if operator != "tent":
        assert torch.allclose(layer(x), plain(x), atol=1e-9)
        with torch.no_grad():
            for parameter in layer.smoothing.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    expected = literally(plain, layer.smoothing, x)
    assert torch.allclose(layer(x), expected, atol=1e-9)
    assert torch.allclose(layer(x[0]), expected[0], atol=1e-9)
    if not kind.startswith("old"):  # PyTorch cannot copy them
        assert torch.allclose(copy.deepcopy(layer)(x), expected, atol=1e-9)
    if "norm" not in kind:  # PyTorch cannot pickle parametrisations
        assert torch.allclose(pickle.loads(pickle.dumps(layer))(x), expected, atol=1e-9)
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-9)
        assert torch.allclose(layer.as_plain_layers()(x), expected, atol=1e-9)
    # The gradient reaches what the weights are made of, and the operator.
    found = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    expected = torch.autograd.grad(literally(plain, layer.smoothing, x).square().sum(), list(plain.parameters()))
    names = [name for name, _ in layer.named_parameters() if not name.startswith("smoothing")]
    by_name = dict(zip([name for name, _ in layer.named_parameters()], found, strict=True))
    for name, value in zip([name for name, _ in plain.named_parameters()], expected, strict=True):
        assert name in names
        assert torch.allclose(by_name[name], value, atol=1e-8)


def test_classes_remain_and_parametrisations_can_be_taken_off():
    same, normed = (nn.Sequential(OTHER_CLASSES[kind]()) for kind in ("timm Conv2dSame", "weight norm"))
    for model in (same, normed):
        smooth_dilated_convs(model, "ssc")
    assert isinstance(same[0], Conv2dSame | SmoothedConv2d)
    x = torch.randn(1, 3, 6, 5)
    before = normed(x)
    torch.nn.utils.parametrize.remove_parametrizations(normed[0], "weight")
    assert type(normed[0]) is SmoothedConv2d
    assert isinstance(normed[0].weight, nn.Parameter)
    assert torch.allclose(normed(x), before, atol=1e-6)


@pytest.mark.parametrize("operator", ["tent", "gi"])
def test_conditional_convolutions(operator):
    torch.manual_seed(0)
    layer = CondConv2d(3, 4, 3, dilation=2, num_experts=3).double()
    plain, model = copy.deepcopy(layer), nn.ModuleDict({"conv": layer})
    assert smooth_dilated_convs(model, operator).replaced == (("conv", 2),)
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    routing = torch.rand(2, 3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.smoothing.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    expected = literally(lambda x: plain(x, routing), layer.smoothing, x)
    assert torch.allclose(layer(x, routing), expected, atol=1e-9)
    assert torch.allclose(pickle.loads(pickle.dumps(layer))(x, routing), expected, atol=1e-9)
    with torch.no_grad():
        assert torch.allclose(layer.as_plain_layers()(x, routing), expected, atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dilated(3, stride=2),
        lambda: Conv2dSame(3, 3, 3, stride=2, dilation=2),
        lambda: std_conv.StdConv2dSame(3, 3, 3, stride=2, dilation=2),
    ],
    ids=["nn.Conv2d", "Conv2dSame", "StdConv2dSame"],
)
def test_strides_are_smoothed_by_filters_of_their_input(make):
    layer = make().double()
    plain = copy.deepcopy(layer)
    smooth_dilated_convs(layer, "tent")
    x = torch.randn(1, 3, 8, 9, dtype=torch.float64)
    assert torch.allclose(layer(x), literally(plain, layer.smoothing, x), atol=1e-12)
    assert torch.allclose(layer.as_plain_layers()(x), layer(x), atol=1e-12)
    # Without a filter, only every other pixel along each axis is read.
    for operator in ("gi", "decompose"):
        with pytest.raises(UserError, match=f"stride 2: {operator} is defined for outputs at stride 1 only"):
            smooth_dilated_convs(make(), operator)


def test_decompose_leaves_computed_weights_alone():
    with pytest.raises(UserError, match="StdConv2d computes its weights itself, and decompose needs"):
        smooth_dilated_convs(OTHER_CLASSES["StdConv2d"](), "decompose")


class TfPadding(nn.Module):
    """Padding by a function before the layer; with a setting that only says something in transformers' own classes."""

    def __init__(self, conv, **config):
        super().__init__()
        self.config = types.SimpleNamespace(**config)
        self.convolution = conv

    def forward(self, x):
        return self.convolution(F.pad(x, (2, 2, 2, 2)))


@pytest.mark.parametrize("operator", ["ssc", "tent", "gi", "decompose"])
def test_maps_that_the_network_pads_itself(operator, monkeypatch):
    place = "transformers.models.mobilenet_v2.modeling_mobilenet_v2"
    of_transformers = type("MobileNetV2ConvLayer", (TfPadding,), {})
    monkeypatch.setitem(sys.modules, place, types.SimpleNamespace(MobileNetV2ConvLayer=of_transformers))
    torch.manual_seed(0)
    inside = dilated(3).double()
    bare = nn.Conv2d(3, 3, 3, dilation=2).double()
    bare.load_state_dict(inside.state_dict())
    models = [
        of_transformers(copy.deepcopy(bare), tf_padding=True),
        nn.Sequential(nn.ZeroPad2d(2), copy.deepcopy(bare)),
        TfPadding(copy.deepcopy(bare), tf_padding=True),
    ]
    for unknown in (models[2], of_transformers(copy.deepcopy(bare), tf_padding=False)):
        with pytest.raises(UserError, match="say padded_outside=True"):
            smooth_dilated_convs(unknown, operator)
    with pytest.raises(UserError, match="say padded_outside=True"):
        smooth_dilated_convs(nn.Sequential(nn.ZeroPad2d(1), copy.deepcopy(bare)), operator)
    smooth_dilated_convs(inside, operator)
    values = [0.3 * torch.randn_like(parameter) for parameter in inside.smoothing.parameters()]
    x = torch.randn(1, 3, 7, 8, dtype=torch.float64)
    for model, given in zip(models, (False, False, True), strict=True):
        smooth_dilated_convs(model, operator, padded_outside=given)
        layer = next(each for each in model.modules() if isinstance(each, SmoothedLayer))
        for conv in (layer, inside):
            with torch.no_grad():
                for parameter, value in zip(conv.smoothing.parameters(), values, strict=True):
                    parameter.copy_(value)
        assert torch.allclose(model(x), inside(x), atol=1e-12)
        exported = layer.as_plain_layers()(F.pad(x, (2, 2, 2, 2)))
        assert torch.allclose(exported, inside(x), atol=1e-12)


# ---- fast paths and exports, for all kinds of layers -------------------------------------------------------------


class Along(nn.Module):
    """A layer of one axis, along rows and columns in one; or of three, of which the first is 1 wide."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.axes = layer, len(layer.kernel_size)

    def forward(self, x):
        return self.layer(x.flatten(2) if self.axes == 1 else x[:, :, None]).reshape(x.shape)


class Pixels(nn.Module):
    """uint8 or float, 0 to 255."""

    def forward(self, x):
        return x / 255


def of_all_kinds(operator, channels=64):
    """A network with a layer of each kind, each before a batch norm; its operators have random parameters."""
    torch.manual_seed(0)
    size = (channels, channels, 3)
    layers = [
        nn.Conv2d(*size, dilation=(1, 2), padding=(1, 2)),
        nn.Conv2d(channels, channels, (1, 3), dilation=2, padding=(0, 2)),
        Conv2dSame(*size, dilation=2),
        PaddedFirst(*size, dilation=2, rim=2),
        nn.Sequential(nn.ZeroPad2d(2), nn.Conv2d(*size, dilation=2)),
        std_conv.StdConv2d(*size, **SAME),
        with_gain(std_conv.ScaledStdConv2dSame(*size, dilation=2)),
        torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(*size, **SAME)),
        Along(nn.Conv1d(*size, groups=channels, **SAME)),
        Along(nn.Conv3d(channels, channels, (1, 3, 3), groups=channels, dilation=(1, 2, 2), padding=(0, 2, 2))),
        nn.Conv2d(*size, stride=2, **SAME),
    ]
    units = [part for layer in layers for part in (layer, nn.BatchNorm2d(channels), nn.ReLU())]
    model = nn.Sequential(Pixels(), nn.Conv2d(3, channels, 1), *units, nn.Conv2d(channels, 4, 1))
    report = smooth_dilated_convs(model, operator)
    assert len(report.replaced) == len(layers) - (operator == "gi")
    with torch.no_grad():
        for layer in model.modules():
            for parameter in layer.smoothing.parameters() if isinstance(layer, SmoothedLayer) else ():
                parameter.add_(0.1 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(255 * torch.rand(1, 3, 21, 18))
    return model.eval()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("operator", ["ssc", "gi"])
def test_fast_paths_agree_for_every_kind_of_layer(operator, caplog):
    model, x = of_all_kinds(operator), 255 * torch.rand(1, 3, 13, 14)

    def close(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))

    with torch.no_grad():
        expected = model(x)
        folding = fold_batch_norm(model, x)
        # Those with computed weights, and of other axes, keep their batch norm.
        assert len(folding.pairs) == 6
        close(folding.model(x), expected)
        assert use_winograd(folding.model) >= 4
        close(folding.model(x), expected)
        plain = copy.deepcopy(model)
        assert to_plain_layers(plain) == 10 + (operator != "gi")
        close(plain(x), expected)
        close(torch.jit.trace(model, x[..., :9, :9])(x), expected)
        close(torch.fx.symbolic_trace(model)(x), expected)
        close(FastNetwork(model, torch.device("cpu"), "float32", "half_pixel")(x), expected)
        assert not caplog.records  # it tells where it falls back
    # Frozen: also the gradients, which rounding changes where a ReLU begins.
    frozen, x = copy.deepcopy(model.double()), x.double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.requires_grad_(False)
    freeze_batch_norm(frozen, example=x)
    assert sum(isinstance(layer, FoldingConv2d) for layer in frozen.modules()) == 5 + (operator == "gi")
    gradients = []
    for each in (frozen, model):
        y = each(x)
        close(y, expected.double())
        gradients.append(torch.autograd.grad(y.square().mean(), [p for p in each.parameters() if p.requires_grad]))
    for found, wanted in zip(*gradients, strict=True):
        close(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino", "torch-export"])
@pytest.mark.parametrize("operator", ["tent", "gi"])
def test_every_kind_of_layer_is_exported(operator, kind, tmp_path):
    path = tmp_path / f"model{find_exporter(kind).ending}"
    found = degrid.export(
        of_all_kinds(operator, channels=8), path, format=kind, output="logits", labels=LABELS
    ).comparisons
    assert len(found) > 1
    assert all(comparison.agreement >= AGREEMENT for comparison in found)


class ByHand(nn.Module):
    """Pads before the layer, and convolves without one, too; a layer that is used with and without padding stays."""

    def __init__(self):
        super().__init__()
        self.padded, self.bare = nn.Conv2d(3, 3, 3, dilation=2), nn.Conv2d(3, 3, 3, dilation=2)
        self.weight = nn.Parameter(torch.rand(3, 3, 3, 3))

    def forward(self, x):
        y = self.padded(F.pad(x, (2, 2, 2, 2)))
        y = F.conv2d(y, self.weight, dilation=3, padding=3)
        return self.bare(F.pad(self.bare(y), (2, 2, 2, 2)))


def test_an_example_shows_padding_and_functions():
    torch.manual_seed(0)
    model, x = ByHand(), torch.rand(1, 3, 12, 13)
    model.padded.train()
    before = torch.get_rng_state()
    report = smooth_dilated_convs(model, "tent", example=x)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.padded.training
    assert report.replaced == (("padded", 2),)
    (name, function), (bare, shrinks) = report.skipped
    assert (name, function) == ("", "a function, not a layer, convolves at rate 3")
    assert bare == "bare"
    assert shrinks.startswith("no padding")
    inside = nn.Conv2d(3, 3, 3, dilation=2, padding=2)
    inside.load_state_dict(model.padded.state_dict(), strict=False)
    smooth_dilated_convs(inside, "tent")
    assert torch.allclose(model.padded(F.pad(x, (2, 2, 2, 2))), inside(x), atol=1e-6)
    with pytest.raises(UserError, match=r"could not run ByHand on the example of \(1, 4, 5, 5\) \(RuntimeError"):
        smooth_dilated_convs(ByHand(), "tent", example=torch.rand(1, 4, 5, 5))


def changed(**attributes):
    def change(layer):
        for name, value in attributes.items():
            setattr(layer, name, value)

    return change


CHANGES = {
    "rate": (changed(dilation=(4, 4), padding=(4, 4)), r"dilation \(2, 2\), then \(4, 4\)"),
    "stride": (changed(stride=2), r"stride \(1, 1\), then \(2, 2\)"),
    "padding": (changed(padding=(0, 0)), r"padding \(2, 2\), then \(0, 0\)"),
    "mode": (changed(padding_mode="reflect"), "padding_mode zeros, then reflect"),
    "weight": (changed(weight=nn.Parameter(torch.zeros(2, 2, 5, 5))), r"sides of the weight \(3, 3\), then \(5, 5\)"),
}


@pytest.mark.parametrize(
    "operator", ["regular", "decompose", "average", "gaussian", "tent", "ssc", "aggregation", "gi"]
)
@pytest.mark.parametrize("kind", CHANGES)
def test_layers_that_change_after_smoothing_are_refused(operator, kind):
    change, said = CHANGES[kind]
    model = nn.Sequential(dilated())
    smooth_dilated_convs(model, operator)
    model(torch.rand(1, 2, 9, 9))
    change(model[0])
    with pytest.raises(UserError, match=f"changed after it was smoothed by {operator} .*{said}"):
        model(torch.rand(1, 2, 9, 9))


def test_layers_with_a_forward_of_their_own_are_refused_after_a_change_of_rate():
    model = nn.Sequential(Standardised(3, 4, 3, **SAME))
    smooth_dilated_convs(model, "tent")
    model[0].dilation = 4, 4
    with pytest.raises(UserError, match=r"smoothed by tent \(dilation \(2, 2\), then \(4, 4\)\)"):
        model(torch.rand(1, 3, 9, 9))


def test_what_stays_the_same_in_another_form_is_no_change():
    model, x = nn.Sequential(dilated()), torch.rand(1, 2, 9, 9)
    smooth_dilated_convs(model, "tent")
    expected = model(x)
    model[0].dilation, model[0].padding, model[0].stride = [2, 2], 2, 1
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    assert torch.equal(model(x), expected)
    torch.nn.utils.parametrizations.weight_norm(model[0])
    assert torch.allclose(model(x), expected, atol=1e-6)


class OneForAllRates(nn.Module):
    """One kernel at several rates, as networks with switchable rates have it."""

    def __init__(self, rate):
        super().__init__()
        self.conv, self.other = dilated(rate=rate), dilated()

    def forward(self, x):
        total = self.other(x)
        for rate in (1, 2, 4):
            self.conv.dilation = self.conv.padding = rate, rate
            total = total + self.conv(x)
        return total


@pytest.mark.parametrize("rate", [1, 2, 4])
def test_an_example_shows_layers_whose_rate_the_network_sets(rate):
    model, x = OneForAllRates(rate), torch.rand(1, 2, 12, 13)
    expected = model(x)
    model.conv.dilation = model.conv.padding = rate, rate
    report = smooth_dilated_convs(model, "ssc", example=x)
    assert report.replaced == (("other", 2),)
    [(name, reason)] = report.skipped
    assert name == "conv"
    assert reason.startswith("the network changes it as it runs (")
    assert torch.allclose(model(x), expected, atol=1e-6)


class DropsInTraining(nn.Conv2d):
    """Half of its weights in training, all otherwise."""

    def forward(self, x):
        weight = self.weight * self.kept if self.training else self.weight
        return F.conv2d(x, weight, self.bias, 1, self.padding, self.dilation)


@pytest.mark.parametrize("operator", ["regular", "ssc", "gi"])
def test_what_a_layer_does_in_training_alone_stays(operator):
    model, x = nn.Sequential(DropsInTraining(3, 4, 3, **SAME)), torch.rand(1, 3, 9, 9)
    model[0].kept = (torch.rand(4, 3, 3, 3) < 0.5).float()
    expected = [model.train(mode)(x) for mode in (True, False)]
    assert not torch.allclose(*expected)
    smooth_dilated_convs(model, operator)
    for mode, value in zip((True, False), expected, strict=True):
        assert torch.allclose(model.train(mode)(x), value, atol=1e-6)
    with pytest.raises(UserError, match="DropsInTraining computes its weights itself, and decompose needs"):
        smooth_dilated_convs(nn.Sequential(copy.deepcopy(DropsInTraining(3, 4, 3, **SAME))), "decompose")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is")
def test_an_example_runs_through_parts_that_torchscript_compiled():
    model, x = nn.Sequential(dilated(), torch.jit.script(dilated())), torch.rand(1, 2, 9, 9)
    report = smooth_dilated_convs(model, "tent", example=x)
    assert report.replaced == (("0", 2),)
    assert report.skipped == (("1", "compiled by TorchScript: smooth the network before"),)
