"""ImageNet weights of TensorFlow's slim: ResNet v1 and v2 (pre-activation)."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, System, Tensors, first_match


class Slim(System):
    """resnet_v1_50 to 152, or resnet_v2_50 to 200.

    Networks with a segmentation head have these names, too; their systems are asked first. The last batch norm of v2
    is kept: the default network uses it.

    Args:
        version: "v1" or "v2".
    """

    def __init__(self, version: str) -> None:
        self.version, self.title = version, f"slim ResNet {version} trained on ImageNet"

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        return first_match(tensors, rf"resnet_{self.version}_\d+/block1/unit_1/.*")

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        depth, _ = rules.bottleneck_resnet(tensors, rf"resnet_{self.version}_\d+/block([1-4])/unit_(\d+)/")
        settings = {"encoder": f"slim:resnet_{self.version}_{depth}", "legacy": self.version == "v1"}
        rule = rules.slim_v1 if self.version == "v1" else rules.slim_v2
        return Plan(settings, kind="encoder").fill(tensors, rules.training_state, self._unused, rule)

    def _unused(self, name: str, value: np.ndarray) -> Drop | None:
        if re.match(rf"resnet_{self.version}_\d+/logits/", name):
            return Drop("ImageNet classifier")
        return Drop("the input mean, which the encoder knows") if name.endswith("/mean_rgb") else None
