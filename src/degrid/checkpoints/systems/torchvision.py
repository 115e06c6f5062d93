"""torchvision: DeepLab v3, FCN and Lite R-ASPP; and ResNets and MobileNetV2 trained on ImageNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, Rule, System, Tensors, first_match
from degrid.types import ConversionError
from degrid.weight_names import mobilenet_v2_name, torchvision_resnet

_PLACES = {
    "deeplabv3_refined": {"1": "head.refine.0", "2": "head.refine.1", "4": "head.classifier"},
    "fcn": {"0": "head.refine.0", "1": "head.refine.1", "4": "head.classifier"},
    "lraspp": {
        "cbr.0": "head.project.0",
        "cbr.1": "head.project.1",
        "scale.1": "head.scale.0",
        "high_classifier": "head.branches.0",
        "low_classifier": "head.branches.1",
    },
}
"""Our names of the head's layers by torchvision's, of each network."""


class Torchvision(System):
    """deeplabv3_* and fcn_* on ResNets, deeplabv3_mobilenet_v3_large and lraspp_mobilenet_v3_large."""

    title = "torchvision: deeplabv3_*, fcn_*, lraspp_*"

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        deeplab = first_match(tensors, r"classifier\.0\.convs\.0\.0\.weight")
        if deeplab or not {"backbone.conv1.weight", "backbone.0.0.weight"} & tensors.keys():
            return deeplab
        return first_match(tensors, r"classifier\.cbr\.0\.weight") or _fcn(tensors)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        deeplab = "classifier.0.convs.0.0.weight" in tensors
        network = "deeplabv3_refined" if deeplab else "fcn" if _fcn(tensors) else "lraspp"
        mobile = "backbone.0.0.weight" in tensors
        if mobile:
            encoder = f"torchvision:mobilenet_v3_large{'_lraspp' if network == 'lraspp' else ''}"
        elif network == "lraspp":
            raise rules.no_encoder("torchvision", "MobileNetV3-Large, where its head is lraspp")
        else:
            depth, _ = rules.bottleneck_resnet(tensors, r"backbone\.layer([1-4])\.(\d+)\.")
            encoder = f"timm:resnet{depth}"
        settings: dict[str, Any] = {
            "network": network,
            "encoder": encoder,
            "output_stride": 16 if mobile else 8,
            **rules.IMAGENET_INPUT,
        }
        if deeplab:
            settings |= {"rates": (12, 24, 36), "dropout": 0.5}
        elif network == "lraspp":
            settings["channels"] = len(tensors["classifier.cbr.0.weight"])
        return Plan(settings).fill(tensors, rules.batch_counter, partial(_rule, _PLACES[network]))


def _fcn(tensors: Tensors) -> str | None:
    """The first convolution of torchvision's FCN head, a 3x3."""
    name = "classifier.0.weight"
    is_head = name in tensors and "classifier.4.weight" in tensors and tensors[name].shape[2:] == (3, 3)
    return name if is_head else None


def _rule(places: Mapping[str, str], name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if name.startswith("aux_classifier."):
        return Drop("second head, used for the training loss only")
    if name.startswith("backbone."):
        return {name.replace("backbone.", "encoder.net.", 1): value}
    if not name.startswith("classifier."):
        return None
    name = name.removeprefix("classifier.")
    if "0" not in places and name.startswith("0."):
        return rules.torchvision_aspp(name.removeprefix("0."), value)
    return rules.placed(places, name, value)


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
        return Plan({"encoder": f"timm:{encoder}"}, kind="encoder").fill(tensors, _imagenet_rule(mobile))


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


def _imagenet_rule(mobile: bool) -> Rule:
    unused = ("classifier.", "conv_head.", "bn2.") if mobile else ("fc.", "classifier.", "conv_head.")

    def rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
        renamed = (mobilenet_v2_name(name) or "") if mobile else name
        if renamed.startswith(unused):
            return Drop("ImageNet classifier")
        known = r"(conv1|bn1|conv_stem|layer[1-4]|blocks)\..*"
        return {f"encoder.net.{renamed}": value} if re.fullmatch(known, renamed) else None

    return rule
