"""chenxi116/DeepLabv3.pytorch: DeepLab v3."""

from __future__ import annotations

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors
from degrid.types import ConversionError

_PLACES = {
    **rules.aspp_places("aspp.aspp{}", ("", "_bn")),
    "aspp.aspp5": "head.aspp.branches.4.project.0",
    "aspp.aspp5_bn": "head.aspp.branches.4.project.1",
    "aspp.conv2": "head.aspp.project.0",
    "aspp.bn2": "head.aspp.project.1",
    "aspp.conv3": "head.classifier",
}


class Chenxi116(System):
    """ResNets at output stride 16."""

    title = "chenxi116/DeepLabv3.pytorch: DeepLab v3"
    marks = (r"aspp\.aspp5_bn\.weight", r"layer4\.0\.conv3\.weight")

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`. Group norm and the stem of three convolutions without norm are refused."""
        if "bn1.running_mean" not in tensors or "conv1.weight" not in tensors:
            raise ConversionError(
                "of chenxi116/DeepLabv3.pytorch degrid can convert ResNets with batch norm and the usual stem only, "
                "and not those trained with --groups or --beta"
            )
        depth, _ = rules.bottleneck_resnet(tensors, r"layer([1-4])\.(\d+)\.")
        settings = {
            "network": "deeplabv3",
            "encoder": f"timm:resnet{depth}",
            "output_stride": 16,
            "rates": (6, 12, 18),
            "resize": "align_corners",
            **rules.IMAGENET_INPUT,
        }
        return Plan(settings).fill(tensors, rules.batch_counter, _rule)


def _rule(name: str, value: np.ndarray) -> rules.Found | None:
    if name.startswith("aspp."):
        return rules.placed(_PLACES, name, value)
    return {f"encoder.net.{name}": value}
