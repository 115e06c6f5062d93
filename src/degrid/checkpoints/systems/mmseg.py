"""mmsegmentation 0.x and 1.x: DeepLab v3 and v3+."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, Rule, System, Tensors, first_match
from degrid.types import ConversionError
from degrid.weight_names import BASIC_RESNETS, BOTTLENECK_RESNETS, num_units

_HEAD = {
    "image_pool.1": "aspp.branches.4.project",
    "bottleneck": "aspp.project",
    "c1_bottleneck": "reduce",
    **{f"aspp_modules.{index}": f"aspp.branches.{index}" for index in range(4)},
    **{f"sep_bottleneck.{index}": f"refine.{index}" for index in range(2)},
}
_NAME = re.compile(r"decode_head\.([\w.]+?)(\.depthwise_conv|\.pointwise_conv)?\.(conv|bn)\.(\w+)")
_STEM = {"stem.7": "bn1", **{f"stem.{layer}": f"conv1.{layer}" for layer in (0, 1, 3, 4, 6)}}
_MOBILE = {"0.conv": "conv_pw", "0.bn": "bn1", "1.conv": "conv_dw", "1.bn": "bn2", "2.conv": "conv_pwl", "2.bn": "bn3"}
_FIRST_MOBILE = {"0.conv": "conv_dw", "0.bn": "bn1", "1.conv": "conv_pw", "1.bn": "bn2"}

_SPLIT = "backbone.layer1.0.conv2.conv.weight"  # a split-attention convolution
# By the units and the width of the first convolution, which is half of the stem's channels.
_RESNESTS = {
    (BOTTLENECK_RESNETS["50"], 32): "resnest50d",
    (BOTTLENECK_RESNETS["101"], 64): "resnest101e",
}


class Mmseg(System):
    """Its models "d8": output stride 8, the rates 12, 24, 36; the "v1c" ResNets, and those named b and v1d."""

    title = "mmsegmentation: DeepLab v3, v3+"

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        return first_match(tensors, r"decode_head\.aspp_modules\.0\.conv\.weight")

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        plus = "decode_head.c1_bottleneck.conv.weight" in tensors
        channels = len(tensors["decode_head.aspp_modules.0.conv.weight"])
        low_level = len(tensors["decode_head.c1_bottleneck.conv.weight"]) if plus else 48
        settings = {
            "network": "deeplabv3plus_mmseg" if plus else "deeplabv3_mmseg",
            "encoder": _encoder(tensors),
            "output_stride": 8,
            "rates": (12, 24, 36),
            "channels": channels,
            "low_level_channels": low_level,
            "separable": "decode_head.aspp_modules.1.depthwise_conv.conv.weight" in tensors,
            **rules.IMAGENET_INPUT,
        }
        note = (
            "the file does not say its output stride and rates; those of the models called d8 are assumed, 8 and "
            "12,24,36, with corners not aligned (for d16-mg124 --set output_stride=16 --set rates=6,12,18 --set "
            "multi_grid=1,2,4; for 769x769 --set resize=align_corners --set head_resize=align_corners, settings=...)"
        )
        return Plan(settings, notes=[note]).fill(tensors, rules.batch_counter, _rule(channels))


def _encoder(tensors: Tensors) -> str:
    if "backbone.layer7.0.conv.0.conv.weight" in tensors:
        return "mmseg:mobilenet_v2"
    table = BOTTLENECK_RESNETS if "backbone.layer1.0.conv3.weight" in tensors else BASIC_RESNETS
    units = num_units(tensors, r"backbone\.layer([1-4])\.(\d+)\.")
    depth = next((depth for depth in ("18", "34", "50", "101", "152") if table.get(depth) == units), None)
    if (variant := (units, len(tensors.get("backbone.stem.0.weight", ())))) in _RESNESTS and _SPLIT in tensors:
        return f"mmseg:{_RESNESTS[variant]}"
    kernel = tensors.get("backbone.layer1.0.conv2.weight")
    if depth is None or kernel is None or kernel.shape[:2] != (64, 64):
        raise ConversionError(
            "this model of mmsegmentation has an encoder that degrid cannot convert; it can convert those on ResNet, "
            "ResNeSt and MobileNetV2"
        )
    if "backbone.stem.0.weight" not in tensors:
        return f"mmseg:resnet{depth}"
    pools = first_match(tensors, r"backbone\.layer2\.0\.downsample\.2\.weight")
    return f"mmseg:resnet{depth}{'d' if pools else 'c'}"


def _rule(channels: int) -> Rule:
    def rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
        if name.startswith("auxiliary_head."):
            return Drop("second head, used for the training loss only")
        if name.startswith("backbone."):
            renamed = _backbone(name.removeprefix("backbone."))
            return {f"encoder.net.{renamed}": value} if renamed else None
        if name.startswith("decode_head.conv_seg."):
            return {name.replace("decode_head.conv_seg", "head.classifier"): value}
        match = _NAME.fullmatch(name)
        if match is None or match[1] not in _HEAD:
            return None
        if match[1] == "bottleneck" and match[3] == "conv":  # there image pooling comes first, here last
            value = rules.joined_in_order(value, channels)
        index = (3 if match[2] == ".pointwise_conv" else 0) + (match[3] == "bn")
        return {f"head.{_HEAD[match[1]]}.{index}.{match[4]}": value}

    return rule


def _backbone(name: str) -> str | None:
    """timm's name of a tensor of the ResNets or of MobileNetV2."""
    layer, _, leaf = name.rpartition(".")
    if layer in _STEM:
        return f"{_STEM[layer]}.{leaf}"
    if layer in ("conv1.conv", "conv1.bn"):
        return f"{'conv_stem' if layer == 'conv1.conv' else 'bn1'}.{leaf}"
    if match := re.fullmatch(r"layer([1-7])\.(\d+)\.conv\.(\d\.(?:conv|bn))", layer):
        part = (_FIRST_MOBILE if match[1] == "1" else _MOBILE).get(match[3])
        return f"blocks.{int(match[1]) - 1}.{match[2]}.{part}.{leaf}" if part else None
    return name
