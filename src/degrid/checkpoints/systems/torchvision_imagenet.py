"""ImageNet weights of torchvision: ResNet-18 to 152 and MobileNetV2, as encoders of timm."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, Rule, System, Tensors, first_match
from degrid.types import ConversionError
from degrid.weight_names import mobilenet_v2_name, torchvision_resnet


class TorchvisionImageNet(System):
    """State dicts of the classifiers; for ResNets timm has the same names."""

    title = "torchvision: ResNet or MobileNetV2 trained on ImageNet"

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        mobile = first_match(tensors, r"features\.18\.0\.weight")
        return mobile or (first_match(tensors, r"layer4\.0\.conv1\.weight") if "conv1.weight" in tensors else None)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        mobile = "features.18.0.weight" in tensors
        encoder = "mobilenetv2_100" if mobile else usual_resnet(tensors)
        if encoder is None:
            raise ConversionError(
                "this file has the names of a ResNet, but no known one; give it with model.pretrained=FILE"
            )
        return Plan({"encoder": f"timm:{encoder}"}, kind="encoder").fill(tensors, _rule(mobile))


def usual_resnet(tensors: Tensors, prefix: str = "") -> str | None:
    """timm's name of a ResNet or ResNeXt with torchvision's parameter names; None for another network.

    Args:
        tensors: by name.
        prefix: what stands before each name.
    """
    name = torchvision_resnet(tensors.keys(), prefix)
    if name is None or f"{prefix}layer1.0.conv2.weight" not in tensors:
        return None
    width, inner = tensors[f"{prefix}layer1.0.conv2.weight"].shape[:2]
    if (width, inner) == (64, 64):
        return name
    if width == 128 == inner:
        return f"wide_{name}_2"
    grouped = width > inner and width % inner == 0
    return f"resnext{name.removeprefix('resnet')}_{width // inner}x{inner}d" if grouped else None


def _rule(mobile: bool) -> Rule:
    unused = ("classifier.", "conv_head.", "bn2.") if mobile else ("fc.", "classifier.", "conv_head.")

    def rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
        renamed = (mobilenet_v2_name(name) or "") if mobile else name
        if renamed.startswith(unused):
            return Drop("ImageNet classifier")
        known = r"(conv1|bn1|conv_stem|layer[1-4]|blocks)\..*"
        return {f"encoder.net.{renamed}": value} if re.fullmatch(known, renamed) else None

    return rule
