"""isht7/pytorch-deeplab-resnet: multi-scale DeepLab v2 in PyTorch 0.1 to 0.3."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors


class Isht7(System):
    """Its parameters are Caffe's under torchvision's names, below "Scale."."""

    title = "isht7/pytorch-deeplab-resnet: multi-scale DeepLab v2 (IS)"
    aliases = ("is",)
    marks = (r"Scale\.conv1\.weight",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        depth, _ = rules.bottleneck_resnet(tensors, r"Scale\.layer(\d)\.(\d+)\.")
        settings = {
            "network": "deeplabv2",
            "encoder": f"caffe:resnet{depth}",
            "output_stride": 8,
            **rules.CAFFE_INPUT,
            **rules.MULTI_SCALE,
        }
        return Plan(settings).fill(tensors, rules.batch_counter, _rule)


def _rule(name: str, value: np.ndarray) -> rules.Found | None:
    if match := re.fullmatch(r"Scale\.layer5\.conv2d_list\.(\d)\.(weight|bias)", name):
        return {f"head.branches.{match[1]}.{match[2]}": value}
    if re.match(r"Scale\.(conv1|bn1|layer[1-4])\.", name):
        return {name.replace("Scale.", "encoder.", 1): value}
    return None
