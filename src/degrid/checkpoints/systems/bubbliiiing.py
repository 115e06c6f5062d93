"""bubbliiiing/deeplabv3-plus-pytorch: DeepLab v3+."""

from __future__ import annotations

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors, first_match
from degrid.types import ConversionError
from degrid.weight_names import mobilenet_v2_name, xception_name

_PLACES = {
    **{f"aspp.branch{index + 1}.{part}": f"head.aspp.branches.{index}.{part}" for index in range(4) for part in (0, 1)},
    "aspp.branch5_conv": "head.aspp.branches.4.project.0",
    "aspp.branch5_bn": "head.aspp.branches.4.project.1",
    "aspp.conv_cat.0": "head.aspp.project.0",
    "aspp.conv_cat.1": "head.aspp.project.1",
    "shortcut_conv.0": "head.reduce.0",
    "shortcut_conv.1": "head.reduce.1",
    "cat_conv.0": "head.refine.0.0",
    "cat_conv.1": "head.refine.0.1",
    "cat_conv.4": "head.refine.1.0",
    "cat_conv.5": "head.refine.1.1",
    "cls_conv": "head.classifier",
}
_ENCODERS = {
    "backbone.features.0.0.weight": "timm:mobilenetv2_100",
    "backbone.block1.sepconv1.depthwise.weight": "bubbliiiing:xception",
}


class Bubbliiiing(System):
    """Output stride 16 unless the user says otherwise; pixels are divided by 255, and nothing else."""

    title = "bubbliiiing/deeplabv3-plus-pytorch: DeepLab v3+"

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        return first_match(tensors, r"aspp\.branch5_conv\.weight") if "cat_conv.0.weight" in tensors else None

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        encoder = next((encoder for name, encoder in _ENCODERS.items() if name in tensors), None)
        if encoder is None:
            raise ConversionError(
                "this model of bubbliiiing/deeplabv3-plus-pytorch has an encoder that degrid cannot convert; it can "
                "convert those on MobileNet and Xception"
            )
        settings = {
            "network": "deeplabv3plus",
            "encoder": encoder,
            "output_stride": 16,
            "rates": (6, 12, 18),
            "head_resize": "align_corners",
            "resize": "align_corners",
            "mean": (0.0, 0.0, 0.0),
            "std": (255.0, 255.0, 255.0),
            "bgr": False,
        }
        plan = Plan(settings, notes=[rules.assumed_stride(settings)])
        return rules.fold_biases(plan.fill(tensors, rules.batch_counter, _rule))


def _rule(name: str, value: np.ndarray) -> rules.Found | None:
    layer, _, leaf = name.rpartition(".")
    if layer in _PLACES:
        return {f"{_PLACES[layer]}.{leaf}": value}
    inner = name.removeprefix("backbone.")
    if inner.startswith("features."):
        renamed = mobilenet_v2_name(inner, flat=True)
        return {f"encoder.net.{renamed}": value} if renamed else None
    renamed = xception_name(inner)
    return {f"encoder.{renamed}": value} if renamed else None
