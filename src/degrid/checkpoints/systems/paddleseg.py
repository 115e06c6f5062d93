"""PaddleSeg: DeepLabV3 and DeepLabV3P."""

from __future__ import annotations

import re
from functools import partial

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, System, Tensors
from degrid.weight_names import BASIC_RESNETS, BOTTLENECK_RESNETS, num_units

_EPSILON = 1e-5
_LEAVES = {"_mean": "running_mean", "_variance": "running_var"}
_HEAD = {
    "aspp.global_avg_pool.1": "aspp.branches.4.project",
    "aspp.conv_bn_relu": "aspp.project",
    "decoder.conv_bn_relu1": "reduce",
    "decoder.conv_bn_relu2": "refine.0",
    "decoder.conv_bn_relu3": "refine.1",
    **{f"aspp.aspp_blocks.{index}": f"aspp.branches.{index}" for index in range(4)},
}
_NAME = re.compile(r"head\.([\w.]+?)(?:\.(depthwise_conv|piontwise_conv))?\.(_conv|_batch_norm)\.(\w+)")
_STEM = {"conv1_1": ("conv1.0", "conv1.1"), "conv1_2": ("conv1.3", "conv1.4"), "conv1_3": ("conv1.6", "bn1")}


class PaddleSeg(System):
    """ResNets "vd" at output stride 8 with multi-grid 1, 2, 4, as in the project's configurations."""

    title = "PaddleSeg: DeepLabV3, DeepLabV3P"
    marks = (r"head\.aspp\.aspp_blocks\.0\._conv\.weight",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        plus = "head.decoder.conv.weight" in tensors
        table = BOTTLENECK_RESNETS if "backbone.bb_0_0.conv2._conv.weight" in tensors else BASIC_RESNETS
        units = num_units(tensors, r"backbone\.bb_(\d)_(\d+)\.")
        depth = next((depth for depth in ("18", "34", "50", "101", "152") if table.get(depth) == units), None)
        if depth is None or "backbone.conv1_1._conv.weight" not in tensors:
            raise rules.no_encoder("PaddleSeg", "ResNet_vd")
        settings = {
            "network": "deeplabv3plus_paddleseg" if plus else "deeplabv3",
            "encoder": f"paddleseg:resnet{depth}d",
            "output_stride": 8,
            "multi_grid": (1, 2, 4) if depth != "18" and depth != "34" else None,
            "uniform_rates": True,
            "rates": (12, 24, 36),
            "resize": "half_pixel",
            "head_resize": "half_pixel",
            "channels": len(tensors["head.aspp.aspp_blocks.0._conv.weight"]),
            **rules.CENTRED_INPUT,
        }
        plan = Plan(
            settings,
            assumed=("output_stride", "rates", "multi_grid", "resize", "head_resize"),
            otherwise="as in the project's configurations; where those say align_corners: True --set "
            "resize=align_corners --set head_resize=align_corners",
        ).fill(tensors, partial(_rule, tensors))
        return rules.fold_biases(plan)


def _rule(tensors: Tensors, name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if name.startswith("backbone."):
        return _backbone(name.removeprefix("backbone."), value)
    if match := re.fullmatch(r"head\.(?:decoder\.conv|cls)\.(weight|bias)", name):
        return {f"head.classifier.{match[1]}": value}
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in _HEAD:
        return None
    place, leaf = f"head.{_HEAD[match[1]]}", _LEAVES.get(match[4], match[4])
    half, norm = match[2], match[3] == "_batch_norm"
    if half is None:
        return {f"{place}.{int(norm)}.{leaf}": value}
    if half == "depthwise_conv":
        if norm or leaf == "bias":
            return Drop("batch norm between the halves of a separable convolution, folded into them")
        factor, _ = _depthwise(tensors, f"head.{match[1]}.depthwise_conv")
        return {f"{place}.0.weight": value * factor.reshape(-1, 1, 1, 1)}
    if norm and leaf == "running_mean":
        _, shift = _depthwise(tensors, f"head.{match[1]}.depthwise_conv")
        weight = tensors[f"head.{match[1]}.piontwise_conv._conv.weight"]
        value = value - (weight[:, :, 0, 0].astype(np.float64) @ shift).astype(np.float32)
    return {f"{place}.{1 + norm}.{leaf}": value}


def _depthwise(tensors: Tensors, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Factor and shift of the batch norm after a depthwise convolution, whose bias is part of the shift."""
    norm = f"{layer}._batch_norm"
    scale, bias, mean, variance = (
        tensors[f"{norm}.{leaf}"].astype(np.float64) for leaf in ("weight", "bias", "_mean", "_variance")
    )
    factor = scale / np.sqrt(variance + _EPSILON)
    shift = bias + factor * (tensors.get(f"{layer}._conv.bias", np.zeros_like(mean)) - mean)
    return factor.astype(np.float32), shift


def _backbone(name: str, value: np.ndarray) -> rules.Found | None:
    """A tensor of the ResNet under timm's name."""
    match = re.fullmatch(r"(conv1_[123]|bb_(\d)_(\d+)\.(conv[012]|short))\.(_conv|_batch_norm)\.(\w+)", name)
    if match is None:
        return None
    if match[1] in _STEM:
        conv, norm = _STEM[match[1]]
    else:
        unit = f"layer{int(match[2]) + 1}.{match[3]}"
        index = None if match[4] == "short" else int(match[4][-1]) + 1
        conv = f"{unit}.downsample.1" if index is None else f"{unit}.conv{index}"
        norm = f"{unit}.downsample.2" if index is None else f"{unit}.bn{index}"
    place = norm if match[5] == "_batch_norm" else conv
    return {f"encoder.net.{place}.{_LEAVES.get(match[6], match[6])}": value}
