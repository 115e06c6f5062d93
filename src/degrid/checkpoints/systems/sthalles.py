"""sthalles/deeplab_v3: DeepLab v3 on slim's ResNet v2, in TensorFlow."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, System, Tensors

# Ours are in the order 1x1, the rates, image pooling.
_PLACES = {
    "conv_1x1_0": "head.aspp.branches.0",
    "conv_3x3_1": "head.aspp.branches.1",
    "conv_3x3_2": "head.aspp.branches.2",
    "conv_3x3_3": "head.aspp.branches.3",
    "image_level_conv_1x1": "head.aspp.branches.4.project",
    "conv_1x1_output": "head.aspp.project",
}


class Sthalles(System):
    """Its head has no ReLU and takes the features from before the last batch norm."""

    title = "sthalles/deeplab_v3: DeepLab v3 (ST)"
    marks = ("DeepLab_v3/ASPP_layer/.*",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        depth, _ = rules.bottleneck_resnet(tensors, r"resnet_v2_\d+/block([1-4])/unit_(\d+)/")
        settings = {
            "network": "deeplabv3_linear",
            "encoder": f"slim:resnet_v2_{depth}",
            "output_stride": 16,
            "multi_grid": (1, 2, 4),
            "rates": (6, 12, 18),
            "legacy": True,
        }
        plan = Plan(settings, assumed=("output_stride",), otherwise="or --set output_stride=8")
        return plan.fill(tensors, rules.training_state, _rule)


def _rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if re.match(r"resnet_v2_\d+/(postnorm|logits)/", name):
        return Drop("built by the original code and not connected to its output")
    if name.startswith("DeepLab_v3/logits/"):
        return rules.tensorflow_leaf(name.rpartition("/")[2], value, "head.classifier", "")
    match = re.fullmatch(r"DeepLab_v3/ASPP_layer/(\w+)/(.+)", name)
    if match is None:
        return rules.slim_v2(name, value)
    part, leaf = match[1], match[2].removeprefix("BatchNorm/")
    if part == "conv_1x1_output" and leaf == "weights":  # there image pooling comes first, here last
        width = value.shape[-1]
        value = np.concatenate([value[:, :, width:], value[:, :, :width]], axis=2)
    place = _PLACES.get(part)
    return rules.tensorflow_leaf(leaf, value, f"{place}.0", f"{place}.1") if place else None
