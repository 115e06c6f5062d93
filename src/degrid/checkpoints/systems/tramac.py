"""Tramac/awesome-semantic-segmentation-pytorch: DeepLab v3."""

from __future__ import annotations

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, System, Tensors, first_match
from degrid.types import ConversionError

_ASPP = rules.aspp_places("head.aspp.b{}", (".block.0", ".block.1"), first=0)
_PLACES = {
    **_ASPP,
    "head.aspp.b0.0": "head.aspp.branches.0.0",
    "head.aspp.b0.1": "head.aspp.branches.0.1",
    "head.aspp.b4.gap.1": "head.aspp.branches.4.project.0",
    "head.aspp.b4.gap.2": "head.aspp.branches.4.project.1",
    "head.aspp.project.0": "head.aspp.project.0",
    "head.aspp.project.1": "head.aspp.project.1",
    "head.block.0": "head.refine.0",
    "head.block.1": "head.refine.1",
    "head.block.4": "head.classifier",
}


class Tramac(System):
    """ResNets with a deep stem at output stride 8."""

    title = "Tramac/awesome-semantic-segmentation-pytorch: DeepLab v3"

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        return first_match(tensors, r"head\.aspp\.b4\.gap\.1\.weight")

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`. Its DeepLab v3+, on an Xception, is refused."""
        if "pretrained.conv1.6.weight" not in tensors:
            raise ConversionError(
                "of Tramac/awesome-semantic-segmentation-pytorch degrid can convert DeepLab v3 on a ResNet, and not v3+"
            )
        depth, _ = rules.bottleneck_resnet(tensors, r"pretrained\.layer([1-4])\.(\d+)\.")
        settings = {
            "network": "deeplabv3_refined",
            "encoder": f"timm:resnet{depth}s",
            "output_stride": 8,
            "rates": (12, 24, 36),
            "dropout": 0.5,
            "resize": "align_corners",
            **rules.IMAGENET_INPUT,
        }
        return Plan(settings).fill(tensors, rules.batch_counter, _rule)


def _rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if name.startswith("auxlayer."):
        return Drop("second head, used for the training loss only")
    if name.startswith("pretrained.fc."):
        return Drop("ImageNet classifier")
    if name.startswith("pretrained."):
        return {name.replace("pretrained.", "encoder.net.", 1): value}
    return rules.placed(_PLACES, name, value)
