"""A small DeepLab v3 for VOC: TensorFlow's mobilenetv2_dm08 and dm10, in torchvision's names."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors
from degrid.weight_names import mobilenet_v2_name

_PARTS = {"aspp0": "branches.0", "image_pooling": "branches.1.project", "concat_projection": "project"}


class MobileNetV2Voc(System):
    """MobileNetV2 at output stride 8; ASPP is image pooling and a 1x1 branch, without rates."""

    title = "DeepLab v3 on MobileNetV2 (TensorFlow's, with torchvision's names)"
    marks = (r"head\.aspp0\.0\.weight", r"features\.0\.0\.weight")

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        settings = {
            "network": "deeplabv3",
            "encoder": "timm:mobilenetv2_100",
            "output_stride": 8,
            "rates": (),
            "resize": "align_corners",
            **rules.CENTRED_INPUT,
        }
        return Plan(settings).fill(tensors, rules.batch_counter, _rule)


def _rule(name: str, value: np.ndarray) -> rules.Found | None:
    if name.startswith("head.logits."):
        return {name.replace("logits", "classifier"): value}
    if match := re.fullmatch(r"head\.(aspp0|image_pooling|concat_projection)\.([01])\.(\w+)", name):
        if match[1] == "concat_projection" and match[2] == "0":  # there image pooling comes first, here last
            half = value.shape[1] // 2
            value = np.concatenate([value[:, half:], value[:, :half]], axis=1)
        return {f"head.aspp.{_PARTS[match[1]]}.{match[2]}.{match[3]}": value}
    renamed = mobilenet_v2_name(name)
    return {f"encoder.net.{renamed}": value} if renamed else None
