"""DeepLab v2 in TensorFlow 1 with slim's ResNet."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors


class EthSlim(System):
    """The encoders "res50" and "res101" of the programs in `eth`; they start from slim's ImageNet weights."""

    title = "DeepLab v2 in TensorFlow with slim's ResNet (ETH, KDD, ZW)"
    marks = ("decoder/aspp/conv1/weights",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        depth, units = rules.bottleneck_resnet(tensors, r"resnet_v1_\d+/block(\d)/unit_(\d+)/")
        root = next(name.split("/")[0] for name in tensors if name.startswith("resnet_v1_"))
        smoothed = {
            f"{root}/block{stage}": [f"encoder.layer{stage}.{unit}.conv2" for unit in range(units[stage - 1])]
            for stage in (3, 4)
        }
        plan = Plan(rules.tensorflow_v2_settings(tensors, depth))
        return plan.fill(tensors, rules.training_state, _rule, rules.shared_smoothing(smoothed))


def _rule(name: str, value: np.ndarray) -> rules.Found | None:
    if match := re.fullmatch(r"decoder/aspp/conv(\d)/(weights|biases)", name):
        return rules.tensorflow_leaf(match[2], value, f"head.branches.{int(match[1]) - 1}", "")
    return rules.slim_v1(name, value)
