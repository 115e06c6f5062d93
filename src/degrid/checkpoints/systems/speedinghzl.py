"""speedinghzl/pytorch-segmentation-toolbox: DeepLab v3."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, System, Tensors

_PLACES = {
    "head.0.conv1.1": "head.aspp.branches.4.project.0",
    "head.0.conv1.2": "head.aspp.branches.4.project.1",
    **rules.aspp_places("head.0.conv{}", (".0", ".1"), first=2),
    "head.0.bottleneck.0": "head.aspp.project.0",
    "head.0.bottleneck.1": "head.aspp.project.1",
    "head.1": "head.classifier",
    "conv1": "encoder.net.conv1.0",
    "bn1": "encoder.net.conv1.1",
    "conv2": "encoder.net.conv1.3",
    "bn2": "encoder.net.conv1.4",
    "conv3": "encoder.net.conv1.6",
    "bn3": "encoder.net.bn1",
}
_EPSILON = np.float32(1e-5)


class Speedinghzl(System):
    """ResNet-101 with a deep stem at output stride 8; its batch norm scales by the weight's magnitude and epsilon."""

    title = "speedinghzl/pytorch-segmentation-toolbox: DeepLab v3"
    marks = (r"head\.0\.conv1\.1\.weight", r"head\.0\.bottleneck\.0\.weight", r"layer4\.0\.conv3\.weight")

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        depth, _ = rules.bottleneck_resnet(tensors, r"layer([1-4])\.(\d+)\.")
        settings = {
            "network": "deeplabv3_speedinghzl",
            "encoder": f"speedinghzl:resnet{depth}s",
            "output_stride": 8,
            "rates": (12, 24, 36),
            "uniform_rates": True,
            "resize": "align_corners",
            **rules.PRECISE_CAFFE_INPUT,
        }
        return Plan(settings).fill(tensors, rules.batch_counter, _rule)


def _rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if name.startswith("dsn."):
        return Drop("second head, used for the training loss only")
    if value.ndim == 1 and name.endswith(".weight"):
        value = np.abs(value) + _EPSILON
    if name == "head.0.bottleneck.0.weight":  # there image pooling comes first, here last
        value = rules.joined_in_order(value, value.shape[1] // 5)
    if re.match(r"layer[1-4]\.", name):
        return {f"encoder.net.{name}": value}
    return rules.placed(_PLACES, name, value)
