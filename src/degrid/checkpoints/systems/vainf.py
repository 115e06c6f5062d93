"""VainF/DeepLabV3Plus-Pytorch: DeepLab v3 and v3+."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import FILE_NAME, ConfiguredSystem, Plan, Rule, Tensors
from degrid.weight_names import mobilenet_v2_name, xception_name

_PLUS = {
    "classifier.project.0": "head.reduce.0",
    "classifier.project.1": "head.reduce.1",
    "classifier.classifier.0": "head.refine.0",
    "classifier.classifier.1": "head.refine.1",
    "classifier.classifier.3": "head.classifier",
}
# With --separable_conv: depthwise, 1x1, batch norm.
_SEPARABLE = {
    "classifier.classifier.0.body.0": "head.refine.0",
    "classifier.classifier.0.body.1": "head.refine.1",
    "classifier.classifier.1": "head.refine.2",
}
_STRIDE = re.compile(r"_os(8|16)(?!\d)")  # best_deeplabv3plus_mobilenet_voc_os16.pth
_V3 = {
    "classifier.classifier.1": "head.refine.0",
    "classifier.classifier.2": "head.refine.1",
    "classifier.classifier.4": "head.classifier",
}


class VainF(ConfiguredSystem):
    """The project writes the output stride into the name of the file only; 16 where that says none."""

    title = "VainF/DeepLabV3Plus-Pytorch: DeepLab v3, v3+"
    marks = (r"classifier\.(aspp|classifier\.0)\.convs\.0\.0\.weight",)

    def plan_beside(self, tensors: Tensors, config: Mapping[str, Any]) -> Plan:
        """See `System`."""
        plus = "classifier.project.0.weight" in tensors
        encoder = _encoder(tensors)
        hrnet = encoder.startswith("vainf:hrnet")
        separable = "classifier.classifier.0.body.0.weight" in tensors
        network = "deeplabv3plus_vainf_separable" if separable else "deeplabv3plus_vainf"
        settings = {
            "network": network if plus else "deeplabv3_refined",
            "encoder": encoder,
            "output_stride": 4 if hrnet else 16,
            "rates": (12, 24, 36) if hrnet else (6, 12, 18),
            **rules.IMAGENET_INPUT,
        }
        plan = Plan(settings) if hrnet else rules.of_either_stride(settings)
        if not hrnet and (said := _STRIDE.search(config.get(FILE_NAME, ""))):
            settings |= {"output_stride": 8, "rates": (12, 24, 36)} if said[1] == "8" else {}
            plan = Plan(settings, notes=[f"output stride and rates are those of {said[0]} in the name of the file"])
        return plan.fill(tensors, rules.batch_counter, _rule(plus, separable, encoder == "vainf:xception"))


def _encoder(tensors: Tensors) -> str:
    if "backbone.low_level_features.0.0.weight" in tensors:
        return "vainf:mobilenet_v2"
    if "backbone.transition1.0.0.weight" in tensors:
        return f"vainf:hrnetv2_{len(tensors['backbone.transition1.0.0.weight'])}"
    if "backbone.block1.rep.0.conv1.weight" in tensors:
        return "vainf:xception"
    if "backbone.layer4.0.conv3.weight" in tensors:
        depth, _ = rules.bottleneck_resnet(tensors, r"backbone\.layer([1-4])\.(\d+)\.")
        return f"timm:resnet{depth}"
    raise rules.no_encoder("VainF/DeepLabV3Plus-Pytorch", "ResNet, MobileNet, Xception and HRNet")


def _rule(plus: bool, separable: bool, xception: bool) -> Rule:
    places, aspp = (_PLUS, "classifier.aspp.") if plus else (_V3, "classifier.classifier.0.")
    if separable:
        places = {**places, **_SEPARABLE}

    def rule(name: str, value: np.ndarray) -> rules.Found | None:
        if name.startswith("backbone."):
            inner = name.removeprefix("backbone.")
            if xception:
                ours = xception_name(inner)
                return {f"encoder.{ours}": value} if ours else None
            mobile = re.sub(r"^(low|high)_level_features\.", "features.", inner)
            inner = re.sub(r"^transition([23])\.(?=[01]\.)", r"transition\1.\1.0.", inner)  # as timm numbers them
            renamed = mobilenet_v2_name(mobile) if mobile.startswith("features.") else inner
            return {f"encoder.net.{renamed}": value} if renamed else None
        if name.startswith(aspp):
            inner = name.removeprefix(aspp)
            return rules.torchvision_aspp(inner.replace(".body.", "."), value, separable)
        if plus and re.fullmatch(r"classifier\.classifier\.0\.(body\.[01]\.)?weight", name):
            value = rules.joined_in_order(value, 48, axis=0 if ".body.0." in name else 1)
        return rules.placed(places, name, value)

    return rule
