"""jfzhang95/pytorch-deeplab-xception: DeepLab v3+."""

from __future__ import annotations

import re
from functools import partial

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, System, Tensors
from degrid.weight_names import mobilenet_v2_name, xception_name

_PLACES = {
    **rules.aspp_places("aspp.aspp{}", (".atrous_conv", ".bn")),
    "aspp.global_avg_pool.1": "head.aspp.branches.4.project.0",
    "aspp.global_avg_pool.2": "head.aspp.branches.4.project.1",
    "aspp.conv1": "head.aspp.project.0",
    "aspp.bn1": "head.aspp.project.1",
    "decoder.conv1": "head.reduce.0",
    "decoder.bn1": "head.reduce.1",
    "decoder.last_conv.0": "head.refine.0.0",
    "decoder.last_conv.1": "head.refine.0.1",
    "decoder.last_conv.4": "head.refine.1.0",
    "decoder.last_conv.5": "head.refine.1.1",
    "decoder.last_conv.8": "head.classifier",
}


class Jfzhang95(System):
    """Output stride 16 unless the user says otherwise; corners are aligned, inside the head as well."""

    title = "jfzhang95/pytorch-deeplab-xception: DeepLab v3+"
    marks = (r"aspp\.aspp1\.atrous_conv\.weight",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        settings = {
            "network": "deeplabv3plus",
            "output_stride": 16,
            "rates": (6, 12, 18),
            **_encoder(tensors),
            "dropout": 0.5,
            **rules.ALIGNED,
            **rules.IMAGENET_INPUT,
        }
        drn = settings["encoder"] == "jfzhang95:drn_d_54"  # of one stride only
        plan = Plan(settings) if drn else rules.of_either_stride(settings)
        return plan.fill(tensors, rules.batch_counter, partial(_rule, tensors))


def _encoder(tensors: Tensors) -> dict[str, object]:
    if "backbone.low_level_features.0.0.weight" in tensors:
        return {"encoder": "jfzhang95:mobilenet_v2"}
    if "backbone.layer1.0.conv3.weight" in tensors and "backbone.conv1.weight" in tensors:
        depth, _ = rules.bottleneck_resnet(tensors, r"backbone\.layer([1-4])\.(\d+)\.")
        return {"encoder": f"timm:resnet{depth}", "uniform_rates": True, "multi_grid": (1, 2, 4)}
    if "backbone.block1.rep.0.conv1.weight" in tensors:
        return {"encoder": "jfzhang95:xception"}
    if "backbone.layer0.0.weight" in tensors and "backbone.layer6.0.conv3.weight" in tensors:
        return {"encoder": "jfzhang95:drn_d_54", "output_stride": 8, "rates": (12, 24, 36)}
    raise rules.no_encoder("jfzhang95/pytorch-deeplab-xception", "ResNet-101, MobileNet, Xception and DRN-D-54")


def _rule(tensors: Tensors, name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if not name.startswith("backbone."):
        return rules.placed(_PLACES, name, value)
    inner = name.removeprefix("backbone.")
    if first := re.match(r"(low|high)_level_features\.", inner):
        renamed = mobilenet_v2_name(inner.replace(first[0], "features."), flat=True)
        return {f"encoder.net.{renamed}": value} if renamed else None
    if inner.startswith("features."):
        return Drop("the same weights under a second name")
    if "backbone.layer0.0.weight" in tensors:
        return {f"encoder.{inner}": value}
    if "backbone.block1.rep.0.conv1.weight" in tensors:
        renamed = xception_name(inner)
        return {f"encoder.{renamed}": value} if renamed else None
    return {f"encoder.net.{inner}": value}
