"""bubbliiiing/deeplabv3-plus-pytorch: DeepLab v3+."""

from __future__ import annotations

from functools import partial

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors
from degrid.weight_names import mobilenet_v2_name, xception_name

_PLACES = {
    **rules.aspp_places("aspp.branch{}", (".0", ".1")),
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


class Bubbliiiing(System):
    """Output stride 16 unless the user says otherwise; pixels are divided by 255, and nothing else.

    YudeWang/deeplabv3plus-pytorch has the same head under the same names, and the same Xception.
    """

    title = "bubbliiiing/deeplabv3-plus-pytorch and YudeWang/deeplabv3plus-pytorch: DeepLab v3+"
    aliases = ("yudewang",)
    marks = (r"aspp\.branch5_conv\.weight", r"cat_conv\.0\.weight")

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        settings = {
            "network": "deeplabv3plus",
            **_encoder(tensors),
            "output_stride": 16,
            "rates": (6, 12, 18),
            **rules.ALIGNED,
            "mean": (0.0, 0.0, 0.0),
            "std": (255.0, 255.0, 255.0),
            "bgr": False,
        }
        plan = rules.of_either_stride(settings)
        xception = settings["encoder"] == "bubbliiiing:xception"
        return rules.fold_biases(plan.fill(tensors, rules.batch_counter, partial(_rule, xception)))


def _encoder(tensors: Tensors) -> dict[str, object]:
    if "backbone.features.0.0.weight" in tensors:
        return {"encoder": "timm:mobilenetv2_100"}
    if "backbone.block1.sepconv1.depthwise.weight" in tensors:
        return {"encoder": "bubbliiiing:xception"}
    if "backbone.layer4.0.conv3.weight" in tensors:  # YudeWang's, whose multi-grid are the rates themselves
        depth, _ = rules.bottleneck_resnet(tensors, r"backbone\.layer([1-4])\.(\d+)\.")
        rates = (2, 2, 2) if depth == "101" else (1, 2, 1)
        return {"encoder": f"mmseg:resnet{depth}", "uniform_rates": True, "multi_grid": rates}
    projects = "bubbliiiing/deeplabv3-plus-pytorch or YudeWang/deeplabv3plus-pytorch"
    raise rules.no_encoder(projects, "MobileNet, Xception and ResNet")


def _rule(xception: bool, name: str, value: np.ndarray) -> rules.Found | None:
    if not name.startswith("backbone."):
        return rules.placed(_PLACES, name, value)
    inner = name.removeprefix("backbone.")
    if inner.startswith("features."):
        renamed = mobilenet_v2_name(inner, flat=True)
        return {f"encoder.net.{renamed}": value} if renamed else None
    if not xception:
        return {f"encoder.net.{inner}": value}
    renamed = xception_name(inner)
    return {f"encoder.{renamed}": value} if renamed else None
