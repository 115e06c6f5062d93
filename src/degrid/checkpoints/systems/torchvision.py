"""torchvision: DeepLab v3, FCN and Lite R-ASPP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, Rule, System, Tensors, first_match

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
        return Plan(settings).fill(tensors, rules.batch_counter, _rule(_PLACES[network]))


def _fcn(tensors: Tensors) -> str | None:
    """The first convolution of torchvision's FCN head, a 3x3."""
    name = "classifier.0.weight"
    is_head = name in tensors and "classifier.4.weight" in tensors and tensors[name].shape[2:] == (3, 3)
    return name if is_head else None


def _rule(places: Mapping[str, str]) -> Rule:
    def rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
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

    return rule
