"""Encoders of timm: the strides and rates that were asked for, or one sentence when they are built."""

import json
import re
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from torch import nn

from degrid import networks
from degrid.config import ModelConfig, RunConfig, from_dict
from degrid.data import open_dataset
from degrid.models import (
    USUAL_INPUTS,
    EncoderSettings,
    TimmEncoder,
    build_encoder,
    library_encoders,
    likely_input,
    stated_input,
    timm_networks,
)
from degrid.models.strides import is_wide
from degrid.types import Preprocess, UserError
from degrid.verbs.run_start import start_network

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import encoders  # benchmarks/encoders.py

slow = pytest.mark.slow


def rates(name, output_stride=8, **settings):
    """The rates of the convolutions that are wider than 1, by stage; the network has no values."""
    with torch.device("meta"):
        net = TimmEncoder(name, output_stride, **settings).net
    found = {}
    for path, module in net.named_modules():
        if is_wide(module):
            stage = ".".join(path.split(".")[: 2 if path.startswith("blocks.") else 1])
            found.setdefault(stage, []).append(module.dilation[0])
    return {stage: values for stage, values in found.items() if max(values) > 1}


@slow
def test_a_network_that_timm_leaves_undilated_is_dilated():
    """timm takes output_stride=8 for MobileOne, and then removes strides without dilating anything."""
    assert rates("mobileone_s0") == {"stages_2": [1] * 4 + [2] * 36, "stages_3": [2] * 4}
    by_timm = timm.create_model("mobileone_s0", features_only=True, output_stride=8)
    assert {module.dilation for module in by_timm.modules() if isinstance(module, nn.Conv2d)} == {(1, 1)}


def test_right_strides_with_wrong_rates_are_not_accepted(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    (tmp_path / "none").touch()  # so that no plan is kept

    def undilated(name, output_stride=None):
        net = make(name, output_stride)
        for module in net.modules():
            if is_wide(module):
                module.dilation, module.padding = (1, 1), tuple(side // 2 for side in module.kernel_size)
        return net

    make = timm_networks._light
    monkeypatch.setattr(timm_networks, "_light", undilated)
    timm_networks._plan.cache_clear()
    assert timm_networks.plan("test_nfnet", 8).dilated_by == "degrid"
    monkeypatch.setattr(timm_networks, "_light", make)
    timm_networks._plan.cache_clear()
    assert timm_networks.plan("test_nfnet", 8).dilated_by == "timm"
    assert timm_networks.plan("test_nfnet", 32).dilated_by == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenetv3_small_050", {"blocks.2": [2] * 3, "blocks.3": [2] * 2, "blocks.4": [4] * 3}),
        ("repvgg_a0", {"stages_2": [2] * 14, "stages_3": [4]}),
        # Of two paths the second has twice the rate.
        ("skresnet18", {f"layer{at}": [rate, 2 * rate, rate] * 2 for at, rate in ((1, 1), (2, 1), (3, 2), (4, 4))}),
        ("test_convnext", {"stages_2": [2] * 5, "stages_3": [4] * 3}),
        ("test_efficientnet", {"blocks.3": [2], "blocks.4": [4]}),
    ],
)  # fmt: skip
def test_uniform_rates_reach_every_unit(name, expected):
    assert rates(name, uniform_rates=True) == expected


@slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenetv2_100", {"blocks.3": [2] * 4, "blocks.4": [2] * 3, "blocks.5": [4] * 3, "blocks.6": [4]}),
        ("hardcorenas_a", {"blocks.3": [2] * 2, "blocks.4": [2] * 2, "blocks.5": [4] * 2}),
        ("efficientnet_b0", {"blocks.3": [2] * 3, "blocks.4": [2] * 3, "blocks.5": [4] * 4, "blocks.6": [4]}),
        ("mixnet_s", {"blocks.3": [2] * 7, "blocks.4": [2] * 11, "blocks.5": [4] * 13}),
        ("tf_efficientnetv2_s", {"blocks.3": [2] * 6, "blocks.4": [2] * 9, "blocks.5": [4] * 15}),
        ("repvgg_a2", {"stages_2": [2] * 14, "stages_3": [4]}),
        ("xception41", {f"blocks_{index}": [2 if index < 11 else 4] * 3 for index in range(2, 13)}),
        ("xception65p", {f"blocks_{index}": [2 if index < 19 else 4] * 3 for index in range(2, 21)}),
        ("resnest14d", {"layer3": [2], "layer4": [4]}),  # timm leaves out a pooling where it dilates
        ("resnetblur50", {"layer3": [2] * 6, "layer4": [4] * 3}),
        ("mobilenetv4_conv_small_050", {"blocks.2": [2] * 7, "blocks.3": [4] * 8}),
    ],
)
def test_uniform_rates_of_larger_networks(name, expected):
    assert rates(name, uniform_rates=True) == expected


def test_even_kernels_keep_their_size_at_uniform_rates():
    encoder = TimmEncoder("test_convnext", 8, uniform_rates=True).eval()
    for height, width in ((96, 128), (64, 96)):
        with torch.no_grad():
            features = encoder(torch.zeros(1, 3, height, width))
        assert [tuple(feature.shape[-2:]) for feature in features] == [
            (height // stride, width // stride) for stride in (4, 8, 8, 8)
        ]


def test_uniform_rates_do_not_change_the_size_of_anything_else():
    encoder = TimmEncoder("test_efficientnet", 16, uniform_rates=True).eval()
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, 65, 97))[-1].shape[-2:] == (5, 7)


@pytest.mark.parametrize(
    ("name", "output_stride", "message"),
    [
        ("botnet26t_256", 16, "made for images of 256x256, and does not run on one of 128x192"),
        ("pvt_v2_b0", 8, "it supports 32: its features would not keep their values, since a position sees more than"),
        pytest.param("xcit_nano_12_p8_224", 32, "it supports 8: its last feature has stride 8", marks=slow),
        pytest.param(
            "convmixer_768_32",
            32,
            "its last feature of a 128x192 image is 18x27, which is not the image over a power",
            marks=slow,
        ),
        pytest.param("halonet_h1", 8, "made for images of 256x256", marks=slow),
        pytest.param("inception_v4", 32, "feature of a 128x192 image is 2x4, which is not", marks=slow),
        pytest.param("inception_resnet_v2", 32, "image is 2x4, which is not the image over", marks=slow),
        pytest.param("hrnet_w18_small", 8, "supports 32: with dilation it does not run", marks=slow),
        pytest.param("lowformer_b0", 8, "is a ConvTranspose2d, which it cannot dilate", marks=slow),
    ],
)
def test_what_a_network_cannot_have_is_said_when_it_is_built(name, output_stride, message):
    with pytest.raises(UserError, match=f"timm's {name} does not support output stride {output_stride}.*{message}"):
        build_encoder(f"timm:{name}", EncoderSettings(output_stride))


def test_names_and_tags():
    with pytest.raises(UserError, match='timm knows no network "resnet81". Did you mean "resnet18"'):
        TimmEncoder("resnet81")
    with pytest.raises(UserError, match=r'timm knows no weights "nonsense" of resnet18\. Known: .*a1_in1k'):
        TimmEncoder("resnet18.nonsense")
    with pytest.raises(UserError, match='timm knows no weights "a4_in1k" of resnet18. Did you mean "a'):
        TimmEncoder("resnet18.a4_in1k")
    with torch.device("meta"):
        assert TimmEncoder("resnet18.a1_in1k").reductions == (2, 4, 8, 16, 16)


@pytest.mark.parametrize("output_stride", [8, 32])
def test_images_of_other_sides_are_padded_for_a_network_that_needs_multiples(output_stride):
    torch.manual_seed(0)
    encoder = TimmEncoder("dla46x_c", output_stride).eval()
    image = torch.randn(1, 3, 97, 129)
    with torch.no_grad():
        features = encoder(image)
        whole = encoder.net(F.pad(image, (0, -129 % encoder.multiple, 0, -97 % encoder.multiple)))
    for feature, padded, stride in zip(features, whole, encoder.reductions, strict=True):
        assert torch.equal(feature, padded[..., : -(-97 // stride), : -(-129 // stride)])


@pytest.mark.parametrize(
    "name",
    ["pvt_v2_b0", "test_mambaout", *(pytest.param(name, marks=slow) for name in ("densenet121", "edgenext_xx_small"))],
)
def test_networks_without_dilation_have_output_stride_32(name):
    with torch.device("meta"):
        encoder = TimmEncoder(name, 32).eval()
        features = encoder(torch.zeros(1, 3, 64, 96))
    assert [tuple(each.shape) for each in features] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(encoder.channels, encoder.reductions, strict=True)
    ]
    assert encoder.reductions[-1] == 32


def test_a_wrapped_network_takes_its_own_weights(tmp_path):
    """timm puts CSPNeXt in a module called "model" where it is to give features."""
    torch.manual_seed(0)
    state = timm.create_model("cspnext_tiny").state_dict()
    torch.save(state, tmp_path / "weights.pth")
    own = TimmEncoder("cspnext_tiny", 8, pretrained=str(tmp_path / "weights.pth")).net.state_dict()
    assert len(own) > 100
    assert all(torch.equal(value, state[key.removeprefix("model.")]) for key, value in own.items())


@pytest.mark.parametrize(
    ("resolved", "proxies", "offline"), [(False, {}, True), (True, {}, False), (False, {"https": "proxy"}, False)]
)
def test_without_a_network_only_the_cache_of_weights_is_asked(resolved, proxies, offline, monkeypatch):
    def resolve(host, port):
        assert host == "huggingface.co"
        if not resolved:
            raise socket.gaierror("name or service not known")

    def build(self, in_channels, pretrained=False):
        asked.append(constants.HF_HUB_OFFLINE)
        raise OSError("no weights here")

    asked = []
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(library_encoders, "getproxies", lambda: proxies)
    monkeypatch.setattr(timm_networks.TimmPlan, "build", build)
    with pytest.raises(UserError, match="could not get the ImageNet weights of resnet10t .*no weights here"):
        TimmEncoder("resnet10t", 16, pretrained=True)
    assert asked == [offline]
    assert not constants.HF_HUB_OFFLINE


def test_a_misspelt_operator_is_found_before_weights_are_downloaded(monkeypatch):
    monkeypatch.setattr(networks, "build_network", None)
    with pytest.raises(UserError, match='unknown smoothing operator "scc"'):
        networks.deeplabv3("timm:resnet10t", 3, pretrained=True, operator="scc")


def test_multi_grid_multiplies_the_rates_that_a_network_has():
    assert rates("skresnet18", 16, multi_grid=(1, 2))["layer4"] == [2, 4, 2, 4, 8, 4]
    assert rates("test_convnext", 16, multi_grid=(1, 2))["stages_3"] == [1, 2, 4]  # the first is no unit
    with pytest.raises(UserError, match="multi_grid=1,2,4 needs a last stage of 3 units; test_convnext has 2"):
        rates("test_convnext", 16, multi_grid=(1, 2, 4))
    # timm's last stage of an EfficientNet is one unit, which the table of docs/encoders.md says.
    assert rates("efficientnet_b0", 16, multi_grid=(2,))["blocks.6"] == [4]
    with pytest.raises(UserError, match="multi_grid=1,2,4 needs a last stage of 3 units; efficientnet_b0 has 1"):
        rates("efficientnet_b0", 16, multi_grid=(1, 2, 4))
    with pytest.raises(UserError, match="needs a last stage that consists of units; the last .* its layer final_conv,"):
        rates("repvgg_a0", 8, multi_grid=(1, 2, 4))


@slow
@pytest.mark.parametrize("name", ["xception41p", "xception65p"])
def test_units_without_a_wide_convolution_have_no_multi_grid(name):
    with pytest.raises(UserError, match=f"wider than 1; unit shortcut in the last stage of {name} has none"):
        rates(name, 16, multi_grid=(1, 2, 4))


def test_plans_are_kept_on_disk_as_they_were_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = timm_networks._measured_plan("test_nfnet", 8)
    for _ in range(2):
        timm_networks._plan.cache_clear()
        assert timm_networks.plan("test_nfnet", 8) == measured
        monkeypatch.setattr(timm_networks, "_measured_plan", None)
    (file,) = (tmp_path / "degrid").iterdir()
    file.write_text("{")  # half of one, as after a crash
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timm_networks._plan.cache_clear()
    assert timm_networks.plan("test_nfnet", 8) == measured


# ---- the table of docs/encoders.md ----------------------------------------------------------------------------


def test_the_table_has_every_family_of_timm():
    assert {row.family for row in encoders.read().values()} == set(timm.list_modules())


@pytest.mark.parametrize("name", ["test_resnet", "dla46x_c"])
def test_the_table_is_true(name):
    assert encoders.measure(name) == encoders.read()[name]


@slow
@pytest.mark.parametrize("name", encoders.read())
def test_all_of_the_table_is_true(name):
    assert encoders.measure(name) == encoders.read()[name]


# ---- the input that weights expect ---------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    """A file with the weights of test_resnet."""
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), file)
    return str(file)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"architecture": "x", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.2] * 3}}, ((127.5,) * 3, (51.0,) * 3)),
        ({"architecture": "x", "mean": [0.5] * 3, "std": [0.2] * 3}, ((127.5,) * 3, (51.0,) * 3)),
        ({"preprocess": {"mean": [1, 2, 3], "std": [4, 5, 6], "bgr": True}}, ((1, 2, 3), (4, 5, 6), True)),
        ({"preprocess": {"mean": [1, 2, 3]}}, None),
        ({"architecture": "x"}, None),
        ([1], None),
    ],
)
def test_the_config_beside_weights_says_what_they_expect(weights, config, expected):
    expected = expected and Preprocess(*expected)
    Path(weights).with_name("config.json").write_text(json.dumps(config))
    assert stated_input(weights) == stated_input(Path(weights).parent) == expected
    made = build_encoder("timm:test_resnet", EncoderSettings(pretrained=weights))
    own = build_encoder("timm:test_resnet", EncoderSettings())
    assert made.preprocess == (expected or own.preprocess)
    if expected:
        given = Preprocess((9.0,) * 3, (8.0,) * 3)
        assert (
            build_encoder("timm:test_resnet", EncoderSettings(pretrained=weights, preprocess=given)).preprocess == given
        )
        grey = build_encoder("timm:test_resnet", EncoderSettings(pretrained=weights, in_channels=1))
        assert grey.preprocess == expected.of_channels(1)


def test_timm_says_what_the_weights_under_a_tag_expect():
    for name, mean in (("tf_mobilenetv3_small_100", 127.5), ("mobilenetv3_small_100", 123.675)):
        with torch.device("meta"):
            assert build_encoder(f"timm:{name}", EncoderSettings()).preprocess.mean[0] == pytest.approx(mean)


@pytest.mark.parametrize("words", USUAL_INPUTS)
def test_batch_norm_shows_which_input_weights_expect(words):
    """Statistics are taken from blurred noise under one normalisation; the encoder assumes ImageNet's."""
    torch.manual_seed(1)
    encoder = build_encoder("timm:test_resnet", EncoderSettings(preprocess=Preprocess()))
    grey = F.interpolate(torch.randn(16, 1, 24, 24), (96, 96), mode="bilinear") * 60 + 115
    image = (grey + 15 * torch.randn(16, 3, 96, 96)).clamp(0, 255)
    found = USUAL_INPUTS[words]
    mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (found.mean, found.std))
    for norm in (module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None  # the mean over all batches
    encoder.train()(((image.flip(1) if found.bgr else image) - mean) / std)
    assert likely_input(encoder.eval()) == (None if "ImageNet" in words else words)


def test_without_batch_norm_nothing_is_known_of_the_input():
    assert likely_input(build_encoder("timm:test_convnext", EncoderSettings())) is None


def test_training_says_which_input_it_takes_weights_from_a_file_to_expect(weights, tmp_path):
    values = {"encoder": "timm:test_resnet", "pretrained": weights}
    labels = open_dataset("synthetic:2", "train").labels

    def said(**more):
        config = RunConfig(model=from_dict(ModelConfig, {**values, **more}))
        data = SimpleNamespace(train=SimpleNamespace(labels=labels))
        return start_network(config, data, torch.device("cpu"), interrupted=False)[1]

    (note,) = said()
    assert re.search(
        r"weights\.pth does not say how its images .* as timm:test_resnet has it: mean 127\.5, 127\.5", note
    )
    assert said(mean=(1.0,) * 3, std=(1.0,) * 3) == said(pretrained=False) == ()
    state = torch.load(weights, weights_only=True)
    first = next(name for name in state if name.endswith("running_var"))
    torch.save({**state, first: state[first] * 4 * 80**2}, weights)
    assert "model.bgr=true" in said()[0]
    (tmp_path / "config.json").write_text('{"preprocess": {"mean": [1, 2, 3], "std": [4, 5, 6]}}')
    assert said() == ()
