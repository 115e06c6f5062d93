"""Smoothing networks that are not ours."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from degrid.smoothing import SmoothedConv2d, rate_at_most, smooth_dilated_convs
from degrid.types import UserError


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


def test_standardised_convolutions_are_left_alone():
    model = timm_features("resnetv2_50x1_bit")
    with pytest.raises(UserError, match="skipped 8: StdConv2d has a forward of its own") as error:
        smooth_dilated_convs(model, "ssc")
    assert "nothing to smooth in this FeatureListNet" in str(error.value)
    assert not any(isinstance(m, SmoothedConv2d) for m in model.modules())


class Own(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(2, 2, 1, dilation=2), "1x1 kernel: its rate has no effect"),
        (Own(2, 2, 3, dilation=2, padding=2), "Own has a forward of its own"),
        (dilated(stride=2), "stride 2"),
        (nn.Conv2d(2, 2, 2, dilation=2, padding=1), "even kernel 2x2"),
        (dilated(padding=0), r'padding \(0, 0\) \(zeros\) is not zero "same" padding \(2, 2\)'),
        (dilated(padding_mode="reflect"), "reflect"),
        (nn.Conv2d(2, 2, 3, dilation=(2, 4), padding=(2, 4)), "unequal rates 2 and 4"),
        (nn.ConvTranspose2d(2, 2, 3, dilation=2), "ConvTranspose2d is not a 2-D convolution"),
        (nn.Conv1d(2, 2, 3, dilation=2, padding=2), "Conv1d is not a 2-D convolution"),
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


def test_exports_and_images_without_batch():
    model = nn.Sequential(dilated(rate=3)).eval()
    smooth_dilated_convs(model, "gi")
    x = torch.randn(1, 2, 9, 10)
    program = torch.export.export(model, (x,))
    assert torch.allclose(program.module()(x), model(x), atol=1e-6)
    assert torch.allclose(model(x[0]), model(x)[0], atol=1e-6)
