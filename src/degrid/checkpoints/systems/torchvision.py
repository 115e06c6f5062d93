"""torchvision: DeepLab v3."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, System, Tensors, first_match
from degrid.types import ConversionError

_PLACES = {"1": "head.refine.0", "2": "head.refine.1", "4": "head.classifier"}


class Torchvision(System):
    """deeplabv3_resnet50, deeplabv3_resnet101 and deeplabv3_mobilenet_v3_large."""

    title = "torchvision: DeepLab v3 (deeplabv3_*)"

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        deeplab = first_match(tensors, r"classifier\.0\.convs\.0\.0\.weight")
        if deeplab or not {"backbone.conv1.weight", "backbone.0.0.weight"} & tensors.keys():
            return deeplab
        return first_match(tensors, r"classifier\.cbr\.0\.weight") or _fcn(tensors)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`. Its other networks, fcn_* and lraspp_*, are refused."""
        if "classifier.0.convs.0.0.weight" not in tensors:
            raise ConversionError(
                f"this is torchvision's {'fcn' if _fcn(tensors) else 'lraspp'}, and no DeepLab; degrid has no such "
                "head: run it with torchvision, or train a deeplabv3_* from its encoder"
            )
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


def _fcn(tensors: Tensors) -> str | None:
    """The first convolution of torchvision's FCN head, a 3x3."""
    name = "classifier.0.weight"
    is_head = name in tensors and "classifier.4.weight" in tensors and tensors[name].shape[2:] == (3, 3)
    return name if is_head else None


def _rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if name.startswith("aux_classifier."):
        return Drop("second head, used for the training loss only")
    if name.startswith("backbone."):
        return {name.replace("backbone.", "encoder.net.", 1): value}
    match = re.fullmatch(r"classifier\.(\d)\.(.+)", name)
    if match and match[1] == "0":
        return rules.torchvision_aspp(match[2], value)
    return {f"{_PLACES[match[1]]}.{match[2]}": value} if match and match[1] in _PLACES else None
