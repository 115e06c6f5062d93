"""torchvision: DeepLab v3."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, System, Tensors, first_match

_PLACES = {"1": "head.refine.0", "2": "head.refine.1", "4": "head.classifier"}


class Torchvision(System):
    """deeplabv3_resnet50, deeplabv3_resnet101 and deeplabv3_mobilenet_v3_large."""

    title = "torchvision: DeepLab v3 (deeplabv3_*)"

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        return first_match(tensors, r"classifier\.0\.convs\.0\.0\.weight")

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        mobile = "backbone.0.0.weight" in tensors
        if mobile:
            encoder = "torchvision:mobilenet_v3_large"
        else:
            depth, _ = rules.bottleneck_resnet(tensors, r"backbone\.layer([1-4])\.(\d+)\.")
            encoder = f"timm:resnet{depth}"
        settings = {
            "network": "deeplabv3_refined",
            "encoder": encoder,
            "output_stride": 16 if mobile else 8,
            "rates": (12, 24, 36),
            "dropout": 0.5,
            **rules.IMAGENET_INPUT,
        }
        return Plan(settings).fill(tensors, rules.batch_counter, _rule)


def _rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if name.startswith("aux_classifier."):
        return Drop("second head, used for the training loss only")
    if name.startswith("backbone."):
        return {name.replace("backbone.", "encoder.net.", 1): value}
    match = re.fullmatch(r"classifier\.(\d)\.(.+)", name)
    if match and match[1] == "0":
        return rules.torchvision_aspp(match[2], value)
    return {f"{_PLACES[match[1]]}.{match[2]}": value} if match and match[1] in _PLACES else None
