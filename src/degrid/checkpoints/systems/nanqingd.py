"""NanqingD/DeepLabV3-Tensorflow: DeepLab v3 on slim's ResNet v1."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors

# Ours are in the order 1x1, the rates, image pooling.
_PLACES = {
    "aspp/1x1conv": "head.aspp.branches.0",
    "aspp/rate6": "head.aspp.branches.1",
    "aspp/rate12": "head.aspp.branches.2",
    "aspp/rate18": "head.aspp.branches.3",
    "img_pool/1x1conv": "head.aspp.branches.4.project",
    "fusion/1x1conv": "head.aspp.project",
}


class NanqingD(System):
    """Output stride 16, multi-grid 1, 2, 4."""

    title = "NanqingD/DeepLabV3-Tensorflow: DeepLab v3 (ND)"
    marks = (r"resnet_v1_\d+/aspp/1x1conv/weights",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        depth, _ = rules.bottleneck_resnet(tensors, r"resnet_v1_\d+/block([1-4])/unit_(\d+)/")
        settings = {
            "network": "deeplabv3",
            "encoder": f"slim:resnet_v1_{depth}",
            "output_stride": 16,
            "multi_grid": (1, 2, 4),
            "rates": (6, 12, 18),
            **rules.PRECISE_CAFFE_INPUT,
            "legacy": True,
        }
        return Plan(settings).fill(tensors, rules.training_state, _rule)


def _rule(name: str, value: np.ndarray) -> rules.Found | None:
    match = re.fullmatch(r"resnet_v1_\d+/(aspp/\w+|img_pool/1x1conv|fusion/1x1conv|logits/Conv)/(.+)", name)
    if match is None:
        return rules.slim_v1(name, value)
    part, leaf = match[1], match[2].removeprefix("BatchNorm/")
    if part == "logits/Conv":
        return rules.tensorflow_leaf(leaf, value, "head.classifier", "")
    place = _PLACES.get(part)
    return rules.tensorflow_leaf(leaf, value, f"{place}.0", f"{place}.1") if place else None
