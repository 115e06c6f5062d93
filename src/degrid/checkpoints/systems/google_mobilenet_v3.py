"""MobileNetV3 in research/deeplab: its encoder, and Lite R-ASPP, the head of the published models."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, Rule, Tensors
from degrid.types import ConversionError

STEM = "MobilenetV3/Conv/weights"
_GATE = np.float32(6 * 0.16667)
"""Its gates are relu6(x + 3) * 0.16667; the factor to a hard sigmoid is moved into the weights after them."""
_STAGES = {15: ("large", (1, 2, 3, 4, 2, 3)), 11: ("small", (1, 2, 3, 2, 3))}
"""Units in the stages, by their sum."""
_UNIT = r"MobilenetV3/expanded_conv(?:_(\d+))?/(.+)"
_FIRST = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}  # it has no expansion
_OTHERS = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}
_EXCITE = {"squeeze_excite/Conv": "se.conv_reduce", "squeeze_excite/Conv_1": "se.conv_expand"}
_HEAD = {
    "aspp0": "head.project.0",
    "image_pooling": "head.scale.0",
    "decoder/decoder_conv0": "head.branches.0",
    "decoder/feature_projection0": "head.branches.1",
}


def split(name: str) -> tuple[str, str]:
    """The layer and the leaf of a variable, without what says that it is batch norm's."""
    layer, _, leaf = name.replace("/BatchNorm/", "/").rpartition("/")
    return layer, leaf


def leaf_of(leaf: str, value: np.ndarray, conv: str, norm: str) -> rules.Found | None:
    """As `rules.tensorflow_leaf`, and the weights [height, width, channels, 1] of a depthwise convolution."""
    if leaf == "depthwise_weights" and value.ndim == 4:
        return {f"{conv}.weight": value.transpose(2, 3, 0, 1)}
    return rules.tensorflow_leaf(leaf, value, conv, norm)


def is_lite(tensors: Tensors) -> bool:
    """Whether the decoder gives the logits, as in Lite R-ASPP."""
    return STEM in tensors and "decoder/decoder_conv0/biases" in tensors


def encoder_of(tensors: Tensors) -> tuple[str, Rule]:
    """Our name of the encoder, and where its variables go.

    Raises:
        ConversionError: it has other units, or another width than 1.
    """
    units = {int(match[1] or 0) for name in tensors if (match := re.match(_UNIT, name))}
    size, stages = _STAGES.get(len(units), ("", ()))
    if not size or tensors[STEM].shape[-1] != 16:
        raise ConversionError(
            f"this mobilenet_v3 of research/deeplab has {len(units)} units and {tensors[STEM].shape[-1]} channels in "
            "its first convolution; degrid can convert mobilenet_v3_large_seg (15 units) and mobilenet_v3_small_seg "
            "(11) of depth multiplier 1, which have 16"
        )
    places = [f"encoder.net.blocks.{stage}.{unit}" for stage, count in enumerate(stages) for unit in range(count)]
    gated = {index for index in units if f"{_name(index)}/squeeze_excite/Conv/weights" in tensors}

    def rule(name: str, value: np.ndarray) -> rules.Found | None:
        layer, leaf = split(name)
        if layer == "MobilenetV3/Conv":
            return leaf_of(leaf, value, "encoder.net.conv_stem", "encoder.net.bn1")
        if layer == "MobilenetV3/Conv_1":
            last = f"encoder.net.blocks.{len(stages)}.0"
            return leaf_of(leaf, value, f"{last}.conv", f"{last}.bn1")
        match = re.fullmatch(_UNIT, layer)
        if match is None:
            return None
        index, part = int(match[1] or 0), match[2]
        if part in _EXCITE:
            return leaf_of(leaf, value, f"{places[index]}.{_EXCITE[part]}", "")
        if part == "project" and leaf == "weights" and index in gated:
            value = value * _GATE
        conv, norm = (_OTHERS if index else _FIRST).get(part, ("", ""))
        return leaf_of(leaf, value, f"{places[index]}.{conv}", f"{places[index]}.{norm}") if conv else None

    return f"google:mobilenetv3_{size}", rule


def lite_plan(tensors: Tensors) -> Plan:
    """The plan of a network with Lite R-ASPP; what its file does not say is that of the published models.

    Raises:
        ConversionError: see `encoder_of`.
    """
    encoder, rule = encoder_of(tensors)
    settings = {
        "network": "lraspp_google",
        "encoder": encoder,
        "output_stride": 32,
        "channels": tensors["aspp0/weights"].shape[-1],
        "pooling_size": (769, 769),
        **rules.ALIGNED,
        **rules.CENTRED_INPUT,
    }
    plan = Plan(
        settings,
        assumed=("output_stride", "pooling_size"),
        otherwise="those of the published models; for others --set output_stride=16 --set pooling_size=none",
    )
    return plan.fill(tensors, rules.training_state, rules.moving_average, rule, _head)


def _head(name: str, value: np.ndarray) -> rules.Found | None:
    layer, leaf = split(name)
    if layer not in _HEAD:
        return None
    if layer == "decoder/decoder_conv0" and leaf == "weights":
        value = value * _GATE
    return leaf_of(leaf, value, _HEAD[layer], "head.project.1")


def _name(index: int) -> str:
    return f"MobilenetV3/expanded_conv{f'_{index}' if index else ''}"
