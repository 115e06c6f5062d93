"""Tramac/awesome-semantic-segmentation-pytorch: DeepLab v3 and v3+."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, System, Tensors
from degrid.weight_names import xception_name

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
_PLUS = {
    **_PLACES,
    "head.c1_block.conv": "head.reduce.0",
    "head.c1_block.bn": "head.reduce.1",
    "head.block.0.conv": "head.refine.0.0",
    "head.block.0.bn": "head.refine.0.1",
    "head.block.2.conv": "head.refine.1.0",
    "head.block.2.bn": "head.refine.1.1",
}


class Tramac(System):
    """ResNets with a deep stem for v3, Xception for v3+, at output stride 8."""

    title = "Tramac/awesome-semantic-segmentation-pytorch: DeepLab v3, v3+"
    marks = (r"head\.aspp\.b4\.gap\.1\.weight",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        plus = "head.c1_block.conv.weight" in tensors
        if plus:
            network, encoder = "deeplabv3plus_tramac", "tramac:xception"
        else:
            depth, _ = rules.bottleneck_resnet(tensors, r"pretrained\.layer([1-4])\.(\d+)\.")
            network, encoder = "deeplabv3_refined", f"timm:resnet{depth}s"
        settings = {
            "network": network,
            "encoder": encoder,
            "output_stride": 8,
            "rates": (12, 24, 36),
            "dropout": 0.5,
            **rules.ALIGNED,
            **rules.IMAGENET_INPUT,
        }
        return Plan(settings).fill(tensors, rules.batch_counter, _plus_rule if plus else _rule)


def _beside(name: str) -> Drop | None:
    if name.startswith("auxlayer."):
        return Drop("second head, used for the training loss only")
    return Drop("ImageNet classifier") if name.startswith("pretrained.fc.") else None


def _rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if name.startswith("pretrained.") and not name.startswith("pretrained.fc."):
        return {name.replace("pretrained.", "encoder.net.", 1): value}
    return _beside(name) or rules.placed(_PLACES, name, value)


def _plus_rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if beside := _beside(name):
        return beside
    if name.startswith("pretrained."):
        inner = name.removeprefix("pretrained.")
        inner = re.sub(r"^midflow\.(\d+)\.", lambda match: f"block{int(match[1]) + 4}.", inner)
        renamed = xception_name(inner)
        return {f"encoder.{renamed}": value} if renamed else None
    return rules.placed(_PLUS, name, value)
