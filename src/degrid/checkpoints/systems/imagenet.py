"""ImageNet weights: an encoder without a segmentation head."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems.deeplab_v2 import slim_v1
from degrid.checkpoints.systems.plan import (
    Drop,
    Plan,
    Tensors,
    num_units,
    resnet_depth,
    tensorflow_leaf,
    training_state,
)
from degrid.types import ConversionError
from degrid.weight_names import mobilenet_v2_name

_CLASSIFIER = "ImageNet classifier"
_SLIM_V2_UNIT = re.compile(r"resnet_v2_\d+/block(\d)/unit_(\d+)/bottleneck_v2/(preact|shortcut|conv1|conv2|conv3)/(.+)")


def slim_v2(name: str, value: np.ndarray) -> dict[str, np.ndarray] | None:
    """A variable of slim's ResNet v2, with the prefix "encoder."."""
    name = name.replace("/BatchNorm/", "/")
    if match := re.fullmatch(r"resnet_v2_\d+/conv1/(\w+)", name):
        return tensorflow_leaf(match[1], value, "encoder.conv1", "")
    if match := re.fullmatch(r"resnet_v2_\d+/postnorm/(\w+)", name):
        return tensorflow_leaf(match[1], value, "", "encoder.norm.0")
    if match := _SLIM_V2_UNIT.fullmatch(name):
        unit = f"encoder.layer{match[1]}.{int(match[2]) - 1}"
        conv = "downsample" if match[3] == "shortcut" else match[3]
        norm = "preact" if match[3] == "preact" else match[3].replace("conv", "bn")
        return tensorflow_leaf(match[4], value, f"{unit}.{conv}", f"{unit}.{norm}")
    return None


def _slim(tensors: Tensors, version: str) -> Plan:
    units = num_units(tensors, rf"resnet_{version}_\d+/block([1-4])/unit_(\d+)/")
    encoder = f"slim:resnet_{version}_{resnet_depth(units, 'the file')}"
    model = {"encoder": encoder, "legacy": True}

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | Drop | None:
        if re.match(rf"resnet_{version}_\d+/logits/", name):
            return Drop(_CLASSIFIER)
        if name.endswith("/mean_rgb"):
            return Drop("the input mean, which the encoder knows")
        return (slim_v1 if version == "v1" else slim_v2)(name, value)

    plan = Plan(f"slim ResNet {version} trained on ImageNet", "encoder", model)
    return plan.fill(tensors, training_state, rule)


def is_slim_v1(tensors: Tensors) -> bool:
    """Names of slim's ResNet v1; those with a segmentation head are recognised before."""
    return any(re.match(r"resnet_v1_\d+/block1/unit_1/", name) for name in tensors)


def slim_resnet_v1(tensors: Tensors) -> Plan:
    """slim's resnet_v1_50, 101 and 152."""
    return _slim(tensors, "v1")


def is_slim_v2(tensors: Tensors) -> bool:
    """Names of slim's ResNet v2; those with a segmentation head are recognised before."""
    return any(re.match(r"resnet_v2_\d+/block1/unit_1/", name) for name in tensors)


def slim_resnet_v2(tensors: Tensors) -> Plan:
    """slim's resnet_v2_50, 101, 152 and 200. The last batch norm is kept: the default network uses it."""
    plan = _slim(tensors, "v2")
    plan.model["legacy"] = False
    return plan


def is_torchvision(tensors: Tensors) -> bool:
    """Names of torchvision's ResNets and MobileNetV2, which for ResNets are timm's too."""
    return "features.18.0.weight" in tensors or {"conv1.weight", "layer4.0.conv1.weight"} <= set(tensors)


_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}


def resnet_of(tensors: Tensors, prefix: str = "") -> str | None:
    """timm's name of the ResNet with torchvision's parameter names; None for an unusual one.

    Args:
        prefix: of the names.
    """
    units = num_units(tensors, rf"{re.escape(prefix)}layer([1-4])\.(\d+)\.")
    name = _RESNETS.get((f"{prefix}layer1.0.conv3.weight" in tensors, units))
    # Wide and grouped ResNets have the same names and other shapes.
    usual = name and tensors[f"{prefix}layer1.0.conv2.weight"].shape[:2] == (64, 64)
    return name if usual else None


def torchvision(tensors: Tensors) -> Plan:
    """torchvision's ImageNet state dicts of ResNet-18 to 152 and MobileNetV2, as encoders of timm."""
    mobile = "features.18.0.weight" in tensors
    encoder = "mobilenetv2_100" if mobile else resnet_of(tensors)
    if encoder is None:
        raise ConversionError(
            "this file has the names of a ResNet, but no known one; give it with model.pretrained=FILE"
        )
    model = {"encoder": f"timm:{encoder}"}

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | Drop | None:
        renamed = (mobilenet_v2_name(name) or "") if mobile else name
        if renamed.startswith(("classifier.", "fc.", "conv_head.")) or (mobile and renamed.startswith("bn2.")):
            return Drop(_CLASSIFIER)
        known = r"(conv1|bn1|conv_stem|layer[1-4]|blocks)\..*"
        return {f"encoder.net.{renamed}": value} if re.fullmatch(known, renamed) else None

    return Plan("torchvision network trained on ImageNet", "encoder", model).fill(tensors, rule)
