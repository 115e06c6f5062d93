"""The networks: strides, rates, counts, and equality with networks of others."""

import argparse
import os

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

from degrid.models import (
    ASPP,
    NETWORKS,
    RESNETS,
    DeepLabV2Head,
    EncoderSettings,
    HeadSettings,
    Segmenter,
    TimmEncoder,
    build_encoder,
    build_network,
    describe,
    freeze_batch_norm,
    read_weights,
)
from degrid.models.aspp import ImagePooling
from degrid.models.heads import v3_rates
from degrid.types import LabelSpace, Preprocess, UserError

VOC = LabelSpace.of_size(21)


def rates_by_stage(encoder):
    """The rates of the spatial convolutions of each top-level part that has any above 1."""
    found = {}
    for name, module in getattr(encoder, "net", encoder).named_modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            found.setdefault(name.split(".")[0] if "blocks." not in name else ".".join(name.split(".")[:2]), []).append(
                module.dilation[0]
            )
    return {stage: rates for stage, rates in found.items() if max(rates) > 1}


@pytest.mark.parametrize(
    ("name", "output_stride", "rates"),
    [
        ("resnet18", 32, {}),
        ("resnet18", 16, {"layer4": [1, 2, 2, 2]}),
        ("resnet18", 8, {"layer3": [1, 2, 2, 2], "layer4": [2, 4, 4, 4]}),
        ("resnet50", 16, {"layer4": [1, 2, 2]}),
        ("resnet50", 8, {"layer3": [1, 2, 2, 2, 2, 2], "layer4": [2, 4, 4]}),
        ("mobilenetv2_100", 16, {"blocks.5": [1, 2, 2], "blocks.6": [2]}),
        (
            "mobilenetv2_100",
            8,
            {"blocks.3": [1, 2, 2, 2], "blocks.4": [2, 2, 2], "blocks.5": [2, 4, 4], "blocks.6": [4]},
        ),
        ("mobilenetv3_small_050", 16, {"blocks.4": [1, 2, 2]}),
        ("regnety_002", 16, {"s4": [1, 2, 2, 2, 2, 2, 2]}),
    ],
)
def test_encoder_rates_and_strides(name, output_stride, rates):
    encoder = TimmEncoder(name, output_stride).eval()
    assert rates_by_stage(encoder) == rates
    assert encoder.reductions[-1] == output_stride
    for size in ((64, 96), (65, 97), (33, 47)):
        with torch.no_grad():
            features = encoder(torch.zeros(1, 3, *size))
        assert tuple(f.shape[1] for f in features) == encoder.channels
        for feature, reduction in zip(features, encoder.reductions, strict=True):
            assert tuple(feature.shape[-2:]) == tuple(-(-side // reduction) for side in size)


def test_uniform_rates_leave_no_unit_behind():
    plain = rates_by_stage(TimmEncoder("resnet50", 8))
    uniform = rates_by_stage(TimmEncoder("resnet50", 8, uniform_rates=True))
    assert plain == {"layer3": [1, 2, 2, 2, 2, 2], "layer4": [2, 4, 4]}
    assert uniform == {"layer3": [2] * 6, "layer4": [4] * 3}
    both = rates_by_stage(TimmEncoder("resnet50", 16, uniform_rates=True, multi_grid=(1, 2, 4)))
    assert both == {"layer4": [2, 4, 8]}


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["caffe:resnet50", "slim:resnet_v1_50", "slim:resnet_v2_50"])
def test_original_resnets(name, output_stride):
    encoder = build_encoder(name, EncoderSettings(output_stride)).eval()
    strides = {8: (2, 4, 8, 8, 8), 16: (2, 4, 8, 16, 16), 32: (2, 4, 8, 16, 32)}[output_stride]
    assert encoder.reductions == strides
    with torch.inference_mode():
        features = encoder(torch.randn(1, 3, 65, 97))
    assert [feature.shape[1] for feature in features] == list(encoder.channels)
    # Both 65 and 97 are 4k + 1 and so on: sizes are rounded up at each stride.
    for feature, stride in zip(features, strides, strict=True):
        assert feature.shape[-2:] == (-(-65 // stride), -(-97 // stride))
    rates = {8: {"layer3": [2] * 6, "layer4": [4] * 3}, 16: {"layer4": [2] * 3}, 32: {}}[output_stride]
    assert rates_by_stage(encoder) == rates


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("caffe:resnet50", 50),
        ("caffe:resnet101", 101),
        ("caffe:resnet152", 152),
        ("slim:resnet_v1_50", 50),
        ("slim:resnet_v1_101", 101),
        ("slim:resnet_v1_152", 152),
        ("slim:resnet_v1_152nd", 140),  # four units of three layers less
        ("slim:resnet_v2_50", 50),
        ("slim:resnet_v2_101", 101),
        ("slim:resnet_v2_152", 152),
        ("slim:resnet_v2_200", 200),
    ],
)
def test_depths_of_the_original_resnets(name, layers):
    """As they are counted: stem, three per unit, and the classifier that an encoder lacks; shortcuts do not count."""
    with torch.device("meta"):
        encoder = build_encoder(name, EncoderSettings(8))
    convs = [path for path, module in encoder.named_modules() if isinstance(module, nn.Conv2d)]
    assert len([path for path in convs if "downsample" not in path]) == layers - 1


def test_original_resnets_at_even_sizes():
    """Caffe rounds up in the pooling; TensorFlow pads at the bottom and right, with the same sizes."""
    image = torch.randn(1, 3, 64, 96)
    for legacy, size in ((False, (17, 25)), (True, (16, 24))):
        encoder = build_encoder("caffe:resnet50", EncoderSettings(8, legacy=legacy)).eval()
        with torch.inference_mode():
            assert encoder(image)[1].shape[-2:] == size
    slim = build_encoder("slim:resnet_v1_50", EncoderSettings(8)).eval()
    with torch.inference_mode():
        assert slim(image)[1].shape[-2:] == (16, 24)


def test_names_of_the_original_resnets():
    assert len(RESNETS) == 11
    assert build_encoder("deeplab", EncoderSettings(8)).preprocess.bgr
    with pytest.raises(UserError, match='unknown encoder "caffe:resnet51". Did you mean "caffe:resnet50"'):
        build_encoder("caffe:resnet51", EncoderSettings(8))
    with pytest.raises(UserError, match="there is no download for caffe:resnet50: convert"):
        build_encoder("caffe:resnet50", EncoderSettings(8, pretrained=True))
    with pytest.raises(UserError, match="multi_grid=1,2 needs a last stage of 2 units; slim:resnet_v1_50 has 3"):
        build_encoder("slim:resnet_v1_50", EncoderSettings(16, multi_grid=(1, 2)))
    with pytest.raises(UserError, match="output stride 16 or 32, with its own rates"):
        build_encoder("torchvision:mobilenet_v3_large", EncoderSettings(8))


def test_multi_scale_is_the_maximum_over_scales():
    model = build_network("deeplabv2", "timm:resnet10t", VOC, EncoderSettings(8), scales=(0.75, 0.5)).eval()
    image = torch.randint(0, 256, (2, 3, 64, 80), dtype=torch.uint8)
    with torch.inference_mode():
        scales, fused = model.scale_logits(image), model(image)
        assert [tuple(s.shape[-2:]) for s in scales] == [(8, 10), (6, 8), (4, 5)]
        large = [F.interpolate(s, (8, 10), mode="bilinear", align_corners=False) for s in scales]
        torch.testing.assert_close(fused, torch.stack(large).amax(0))
    with pytest.raises(UserError, match="factors above 0 and below 4"):
        build_network("deeplabv2", "timm:resnet10t", VOC, EncoderSettings(8), scales=(0.0,))
    with pytest.raises(UserError, match='"model.resize": expected half_pixel, align_corners, tf_legacy, got "cubic"'):
        build_network("deeplabv2", "timm:resnet10t", VOC, EncoderSettings(8), resize="cubic")


def test_multi_grid_multiplies_the_stage_rate():
    assert rates_by_stage(TimmEncoder("resnet50", 16, multi_grid=(1, 2, 4))) == {"layer4": [2, 4, 8]}
    at_8 = rates_by_stage(TimmEncoder("resnet50", 8, multi_grid=(1, 2, 4)))
    assert at_8["layer4"] == [4, 8, 16]
    encoder = TimmEncoder("resnet50", 16, multi_grid=(1, 2, 4)).eval()
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, 65, 65))[-1].shape[-2:] == (5, 5)
    with pytest.raises(UserError, match="multi_grid=1,2 needs a last stage of 2 units; resnet50 has 3"):
        TimmEncoder("resnet50", 16, multi_grid=(1, 2))


@pytest.mark.parametrize(
    ("name", "output_stride", "message"),
    [
        ("resnet50", 16, 'unknown encoder "resnet50". Did you mean "timm:resnet50"'),
        ("timm:resnet18", 7, "output stride 7: expected 8, 16 or 32"),
    ],
)
def test_impossible_encoders(name, output_stride, message):
    with pytest.raises(UserError, match=message):
        build_encoder(name, EncoderSettings(output_stride))


@pytest.mark.parametrize(("output_stride", "rates"), [(8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))])
@pytest.mark.parametrize("network", ["deeplabv3", "deeplabv3plus"])
def test_aspp_rates_follow_the_output_stride(network, output_stride, rates):
    assert v3_rates(output_stride) == rates
    model = build_network(network, "timm:resnet18", VOC, EncoderSettings(output_stride))
    found = [m.dilation[0] for m in model.head.aspp.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] == 3]
    assert tuple(found) == rates


@pytest.mark.parametrize(
    ("network", "stride"),
    [("deeplabv2", 8), ("deeplabv2_largefov", 8), ("deeplabv3", 8), ("deeplabv3plus", 4)],
)
def test_logits_at_the_heads_stride_for_any_size(network, stride):
    model = build_network(network, "timm:resnet18", VOC, EncoderSettings(8)).eval()
    assert (model.output_stride, model.logit_stride, len(model.labels)) == (8, stride, 21)
    for height, width in ((64, 64), (65, 81), (33, 50), (9, 7)):
        with torch.no_grad():
            logits = model(torch.zeros(2, 3, height, width, dtype=torch.uint8))
        assert logits.shape == (2, 21, -(-height // stride), -(-width // stride))


def test_published_parameter_counts():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(DeepLabV2Head(2048, 21)) == 1_548_372
    assert count(DeepLabV2Head(2048, 19)) == 1_400_908
    ours = build_network("deeplabv3", "timm:resnet50", VOC, EncoderSettings(8))
    theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)
    # torchvision has a further 3x3 256 -> 256 with batch norm between projection and classifier.
    assert count(ours) == count(theirs) - (256 * 256 * 9 + 512)


def test_v2_head_is_the_sum_of_its_branches():
    torch.manual_seed(0)
    head = DeepLabV2Head(8, 5)
    x = torch.randn(2, 8, 9, 11)
    expected = sum(
        F.conv2d(x, b.weight, b.bias, padding=r, dilation=r)
        for b, r in zip(head.branches, (6, 12, 18, 24), strict=True)
    )
    assert torch.allclose(head([x]), expected, atol=1e-6)


def test_v3_equals_torchvision_with_its_weights():
    """The strongest proof: torchvision's network, our network, one set of weights, the same logits."""
    torch.manual_seed(0)
    theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = build_network("deeplabv3", "timm:resnet50", VOC, EncoderSettings(8))
    ours.encoder.net.load_state_dict(theirs.backbone.state_dict())
    aspp, classifier = theirs.classifier[0], theirs.classifier
    for branch, other in zip(ours.head.aspp.branches[:4], aspp.convs[:4], strict=True):
        branch.load_state_dict(other.state_dict())
    pooling = aspp.convs[4]
    ours.head.aspp.branches[4].project.load_state_dict(
        {
            key.replace("1.", "0.", 1) if key[0] == "1" else key.replace("2.", "1.", 1): v
            for key, v in pooling.state_dict().items()
        }
    )
    ours.head.aspp.project.load_state_dict(aspp.project.state_dict())
    # Their extra 3x3 stays theirs; ours then classifies.
    extra = list(classifier)[1:4]
    ours.head.classifier.load_state_dict(classifier[4].state_dict())
    ours.head.aspp.dropout = nn.Sequential(nn.Identity(), *extra)
    ours.eval(), theirs.eval()
    image = torch.randint(0, 256, (1, 3, 81, 97), dtype=torch.uint8)
    p = ours.preprocess
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (p.mean, p.std))
    with torch.no_grad():
        expected = theirs((image.float() - mean) / std)["out"]
        logits = F.interpolate(ours(image), (81, 97), mode="bilinear", align_corners=False)
    assert torch.allclose(logits, expected, atol=1e-4 * float(expected.abs().max()))


def test_image_pooling():
    torch.manual_seed(0)
    pooling = ImagePooling(6, 4).eval()
    x = torch.randn(2, 6, 5, 7)
    y = pooling(x)
    assert y.shape == (2, 4, 5, 7)
    assert torch.equal(y, y[..., :1, :1].expand_as(y))
    expected = pooling.project(F.adaptive_avg_pool2d(x, 1))
    assert torch.allclose(y[..., :1, :1], expected, atol=1e-6)


def test_one_image_in_training_works_and_leaves_the_statistics():
    pooling = ImagePooling(6, 4).train()
    before = {k: v.clone() for k, v in pooling.state_dict().items()}
    x = torch.randn(1, 6, 5, 7, requires_grad=True)
    y = pooling(x)
    assert torch.allclose(y, pooling.eval()(x), atol=1e-6)
    y.sum().backward()
    assert all(torch.equal(before[k], v) for k, v in pooling.state_dict().items())
    model = build_network("deeplabv3plus", "timm:resnet18", VOC, EncoderSettings(16)).train()
    model(torch.zeros(1, 3, 65, 65)).sum().backward()


def test_separable_convolutions():
    aspp = ASPP(16, 8, (6, 12), separable=True)
    groups = [(m.groups, m.kernel_size[0], m.dilation[0]) for m in aspp.modules() if isinstance(m, nn.Conv2d)]
    assert groups == [(1, 1, 1), (16, 3, 6), (1, 1, 1), (16, 3, 12), (1, 1, 1), (1, 1, 1), (1, 1, 1)]
    plain = build_network("deeplabv3plus", "timm:resnet18", VOC, EncoderSettings(16))
    light = build_network("deeplabv3plus", "timm:resnet18", VOC, EncoderSettings(16), HeadSettings(separable=True))
    assert describe(light).multiply_adds < 0.5 * describe(plain).multiply_adds


class Maps(nn.Module):
    channels, reductions, preprocess = (6, 8), (4, 16), Preprocess()


def small_head(network, **settings):
    torch.manual_seed(0)
    return NETWORKS[network](Maps(), 5, HeadSettings(rates=(2,), channels=8, **settings))[0].eval()


MAPS = [torch.rand(1, 6, 17, 25, generator=torch.manual_seed(0)), torch.rand(1, 8, 5, 7)]


@pytest.mark.parametrize(
    ("network", "setting", "corners"),
    [
        ("deeplabv3plus", None, False),
        ("deeplabv3plus", "align_corners", True),
        ("deeplabv3plus_smp", None, True),
        ("deeplabv3plus_smp", "half_pixel", False),
    ],
)
def test_how_a_decoder_enlarges_the_output_of_aspp(network, setting, corners):
    head = small_head(network, resize=setting)
    wide = F.interpolate(head.after_aspp(head.aspp(MAPS[1])), (17, 25), mode="bilinear", align_corners=corners)
    expected = head.classifier(head.refine(torch.cat([wide, head.reduce(MAPS[0])], 1)))
    assert torch.allclose(head(MAPS), expected, atol=1e-6)


def test_numbers_that_implementations_differ_in():
    def convs(network):
        found = small_head(network).named_modules()
        return {name: (conv.kernel_size[0], conv.groups) for name, conv in found if isinstance(conv, nn.Conv2d)}

    assert convs("deeplabv3_mmseg")["aspp.project.0"] == convs("deeplabv3plus_mmseg")["aspp.project.0"] == (3, 1)
    assert convs("deeplabv3plus")["aspp.project.0"] == (1, 1)
    assert [name for name in convs("deeplabv3plus_vainf") if "refine" in name] == ["refine.0"]
    paddle = {name: size for name, size in convs("deeplabv3plus_paddleseg").items() if "refine" in name}
    assert paddle == {"refine.0.0": (3, 56), "refine.0.1": (1, 1), "refine.1.0": (3, 8), "refine.1.1": (1, 1)}
    assert convs("deeplabv3plus_paddleseg")["aspp.branches.1.0"] == (3, 8)
    # A pooled pixel cannot be projected on its own where the projection sees the border.
    assert small_head("deeplabv3_mmseg").aspp.as_plain_layers() is None


def test_image_pooling_over_a_window():
    pooling = small_head("deeplabv3", pooling_size=(48, 96)).aspp.branches[-1]  # 3x6 of a map of stride 16
    x = MAPS[1]
    means = F.avg_pool2d(x, (3, 6), stride=1)
    assert means.shape[-2:] == (3, 2)
    expected = F.interpolate(pooling.project(means), (5, 7), mode="bilinear")
    assert torch.allclose(pooling(x), expected, atol=1e-6)
    with pytest.raises(
        UserError, match=r"pooling_size.*export it for one size"
    ):  # the graph would be for one side of it
        torch.export.export(pooling, (x,), dynamic_shapes=({2: torch.export.Dim.DYNAMIC},), strict=False)
    whole = small_head("deeplabv3").aspp.branches[-1]
    assert torch.equal(pooling(x[..., :3, :6]), whole(x[..., :3, :6]))  # a map no larger than the window


@pytest.mark.parametrize("kind", ["deeplabv2", "deeplabv3", "deeplabv3plus"])
def test_heads_are_recorded_by_fx_for_every_size(kind):
    head = small_head(kind)
    graph = torch.fx.symbolic_trace(head)
    for maps in (MAPS, [each[..., :-1, :-2] for each in MAPS]):
        torch.testing.assert_close(graph(maps), head(maps))


def test_settings_of_heads_that_do_not_exist():
    with pytest.raises(UserError, match="head_resize.*nearest"):
        HeadSettings(resize="nearest")
    for size in ((512,), (0, 5)):
        with pytest.raises(UserError, match="pooling_size"):
            HeadSettings(pooling_size=size)


# ---- normalisation ------------------------------------------------------------------------------------------


class Seen(nn.Module):
    channels, reductions = (3,), (1,)

    def __init__(self, preprocess):
        super().__init__()
        self.preprocess = preprocess

    def forward(self, x):
        return [x]


class Last(nn.Module):
    def forward(self, features):
        return features[-1]


def test_the_model_normalises_and_orders_channels():
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1)
    rgb = Segmenter(Seen(Preprocess((1, 2, 3), (2, 2, 2))), Last(), LabelSpace.of_size(3), 1)
    assert rgb(image).flatten().tolist() == [4.5, 9, 13.5]
    assert torch.equal(rgb(image), rgb(image.float()))
    bgr = Segmenter(Seen(Preprocess((1, 2, 3), (2, 2, 2), bgr=True)), Last(), LabelSpace.of_size(3), 1)
    assert bgr(image).flatten().tolist() == [14.5, 9, 3.5]
    assert not rgb.state_dict()  # settings, not weights


def test_timm_normalisation_is_on_the_255_scale():
    assert TimmEncoder("resnet18").preprocess.mean == pytest.approx((123.675, 116.28, 103.53))


# ---- batch norm ---------------------------------------------------------------------------------------------


def test_frozen_batch_norm_stays():
    model = build_network("deeplabv3", "timm:mobilenetv2_100", VOC, EncoderSettings(16))
    keys = list(model.state_dict())
    count = freeze_batch_norm(model)
    assert count == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert list(model.state_dict()) == keys
    model.train()
    norm_names = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    assert changed
    assert not {k for k in changed if k.rpartition(".")[0] in norm_names}
    with pytest.raises(UserError, match="no batch norm to freeze"):
        freeze_batch_norm(nn.Conv2d(1, 1, 1))


# ---- weights ------------------------------------------------------------------------------------------------


def test_torchvision_mobilenet_weights_give_the_same_features(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v2(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "mnv2.pth")
    ours = TimmEncoder("mobilenetv2_100", 32, str(tmp_path / "mnv2.pth")).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(ours(x)[-1], theirs.features[:18](x), atol=1e-4)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}])
def test_timm_and_torchvision_resnet_weights(tmp_path, wrap):
    theirs = timm.create_model("resnet18").eval()
    torch.save(wrap({k: v.half() for k, v in theirs.state_dict().items()}), tmp_path / "r18.pth")
    ours = TimmEncoder("resnet18", 16, str(tmp_path / "r18.pth")).eval()
    assert torch.allclose(ours.net.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight, atol=1e-3)
    assert set(torchvision.models.resnet18(weights=None).state_dict()) == set(theirs.state_dict())


def test_safetensors_and_flattened_names(tmp_path):
    theirs = timm.create_model("convnext_atto")
    save_file(theirs.state_dict(), tmp_path / "c.safetensors")
    ours = TimmEncoder("convnext_atto", 16, str(tmp_path / "c.safetensors"))
    weight = theirs.state_dict()["stages.3.blocks.0.conv_dw.weight"]
    assert torch.equal(ours.net.state_dict()["stages_3.blocks.0.conv_dw.weight"], weight)


def test_weights_as_training_programs_write_them(tmp_path):
    """Arguments, numpy's numbers, an optimiser's state and counters beside the weights, and prefixes before names."""
    net = timm.create_model("resnet18")
    optimiser = torch.optim.AdamW(net.parameters())
    net.eval()(torch.zeros(1, 3, 32, 32)).sum().backward()
    optimiser.step()
    named = {f"module._orig_mod.{key}": value.bfloat16() for key, value in net.state_dict().items()}
    named["module._orig_mod.fc.total_ops"] = torch.zeros(1)
    state = {"args": argparse.Namespace(lr=0.1), "best": np.float64(0.5), "optimizer": optimiser.state_dict()}
    torch.save({"model_state_dict": named, **state}, tmp_path / "run.pth")
    ours = TimmEncoder("resnet18", 16, str(tmp_path / "run.pth")).net.state_dict()
    assert all(
        torch.equal(value, net.state_dict()[key].bfloat16().float()) for key, value in ours.items() if value.ndim
    )


def test_weights_of_another_network_are_named(tmp_path):
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "r34.pth")
    with pytest.raises(UserError, match=r"do not fit this encoder: .*not in this model .*looks like resnet34"):
        TimmEncoder("resnet18", 16, str(tmp_path / "r34.pth"))
    with pytest.raises(UserError, match=r"do not fit .*missing .*looks like resnet34"):
        TimmEncoder("mobilenetv2_100", 16, str(tmp_path / "r34.pth"))


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_weights_that_would_run_code_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Evil()}, "evil.pth")
    with pytest.raises(UserError, match=r"refused to load evil\.pth: .*could run code"):
        read_weights("evil.pth")
    assert not os.path.exists("executed")


def test_unusable_weight_files(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        read_weights(tmp_path / "none.pth")
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"\0garbage")
        with pytest.raises(UserError, match="of an unknown kind"):
            read_weights(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list.* expected a state dict"):
        read_weights(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(UserError, match="holds no tensors"):
        read_weights(tmp_path / "none.pth")


# ---- info ---------------------------------------------------------------------------------------------------


def test_describe_counts():
    model = build_network("deeplabv2", "timm:resnet18", LabelSpace.of_size(5), EncoderSettings(8))
    found = describe(model, (64, 96))
    assert found.parameters["head"] == 4 * (512 * 9 * 5 + 5)
    assert found.parameters["total"] == sum(p.numel() for p in model.parameters())
    assert found.parameters["smoothing"] == 0
    head_macs = 4 * 512 * 9 * 5 * 8 * 12
    encoder_macs = describe(
        build_network("deeplabv2_largefov", "timm:resnet18", LabelSpace.of_size(5), EncoderSettings(8)), (64, 96)
    )
    assert found.multiply_adds - encoder_macs.multiply_adds == head_macs * 3 // 4
    assert [c.rate[0] for c in found.dilated][-4:] == [6, 12, 18, 24]
    assert "resnet" not in found.network
    assert str(found).count("rate") >= len(found.dilated)


def test_own_encoder(tmp_path, monkeypatch):
    (tmp_path / "enc.py").write_text(
        "from torch import nn\nfrom degrid.types import Preprocess\n"
        "class Tiny(nn.Module):\n"
        "    channels, reductions = (4, 8), (4, 16)\n"
        "    def __init__(self, output_stride, pretrained, multi_grid, preprocess):\n"
        "        super().__init__()\n"
        "        self.preprocess = preprocess or Preprocess()\n"
        "        self.a, self.b = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 4, 4)\n"
        "    def forward(self, x):\n"
        "        a = self.a(x)\n"
        "        return [a, self.b(a)]\n"
        "class Wrong(nn.Module):\n"
        "    def __init__(self, **kwargs): super().__init__()\n"
    )
    monkeypatch.chdir(tmp_path)
    model = build_network("deeplabv3plus", "enc:Tiny", VOC, EncoderSettings(16), HeadSettings(channels=16)).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 21, 16, 16)
    with pytest.raises(UserError, match="must be an nn.Module with channels, reductions and preprocess"):
        build_encoder("enc:Wrong", EncoderSettings(16))
