"""kazuto1011/deeplab-pytorch: DeepLab v1, v2, v3 and v3+."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors, first_match
from degrid.types import MSC_SCALES

_PARTS = {"reduce": "1", "conv3x3": "2", "increase": "3"}


_HEADS = {
    "fc1.conv": "aspp.project.0",
    "fc1.bn": "aspp.project.1",
    "reduce.conv": "reduce.0",
    "reduce.bn": "reduce.1",
    "fc2.conv1.conv": "refine.0.0",
    "fc2.conv1.bn": "refine.0.1",
    "fc2.conv2.conv": "refine.1.0",
    "fc2.conv2.bn": "refine.1.1",
    "fc2.conv3": "classifier",
    "fc2": "classifier",
}


_WRAPPED = r"(base|scale)\..*"  # names inside the multi-scale wrapper


class Kazuto1011(System):
    """Either revision, with or without the multi-scale wrapper; layer2 to layer5 are the four stages."""

    title = "kazuto1011/deeplab-pytorch: DeepLab v1, v2, v3, v3+"

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`. The ResNet that the project trains on ImageNet has the same trunk, and a layer fc [1000,C]."""
        found = first_match(tensors, r"(base\.|scale\.)?layer2\.block1\.reduce\.conv\.weight")
        linear = first_match(tensors, r"(base\.|scale\.)?fc\.weight")
        return None if linear and tensors[linear].ndim == 2 else found

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        depth, _ = rules.bottleneck_resnet(tensors, r"(?:base\.|scale\.)?layer(\d)\.block(\d+)\.reduce\.conv\.weight")
        settings = {
            **_network(tensors),
            "encoder": f"caffe:resnet{depth}",
            **rules.CAFFE_INPUT,
            "resize": "half_pixel",
            "scales": MSC_SCALES if first_match(tensors, _WRAPPED) else (),
        }
        if settings["scales"] and settings["network"] == "deeplabv3plus":  # the maximum is computed at the image's size
            settings["network"] = "deeplabv3plus_kazuto1011"
        plan = rules.of_either_stride(settings, "multi_grid") if "multi_grid" in settings else Plan(settings)
        plan.fill(tensors, rules.batch_counter, partial(_rule, _branches(tensors)))
        if settings["scales"]:
            plan.notes.append(
                "the scaled inputs are those of torch up to 1.5; later ones take positions from the factor, which "
                "differs where 0.75 or 0.5 of a side is no whole number"
            )
        return plan


def _network(tensors: Tensors) -> dict[str, Any]:
    """The head. Strides, rates and multi-grid of v3 and v3+ are those of the project's functions, and of its examples
    where no wrapper is around them, as its functions have."""
    if first_match(tensors, r"(.*\.)?fc\.weight"):
        return {"network": "deeplabv2_largefov", "output_stride": 8}
    count = _branches(tensors)
    if first_match(tensors, r"(.*\.)?fc1\.conv\.weight") is None:
        rates = tuple(6 * branch + 6 for branch in range(count or 4))
        return {"network": "deeplabv2", "output_stride": 8, "rates": rates}
    plus = first_match(tensors, r"(.*\.)?fc2\.conv3\.weight") is not None
    name, stride = ("deeplabv3plus" if plus else "deeplabv3"), 16 if plus or first_match(tensors, _WRAPPED) else 8
    rates = tuple(6 * branch for branch in range(1, count))  # the first branch is a 1x1
    return {"network": name, "output_stride": stride, "rates": rates, "multi_grid": (1, 2, 4)}


def _branches(tensors: Tensors) -> int:
    """How many convolutions read the encoder's last feature side by side, without image pooling."""
    return sum(re.fullmatch(r"(.*\.)?aspp\.(stages\.)?c\d\.(conv\.)?weight", name) is not None for name in tensors)


def _rule(branches: int, name: str, value: np.ndarray) -> rules.Found | None:
    name = re.sub(r"^(base|scale)\.", "", name)
    if match := re.fullmatch(r"layer1\.conv1\.(conv|bn)\.(.+)", name):
        return {f"encoder.{match[1]}1.{match[2]}": value}
    layer, _, leaf = name.rpartition(".")
    if layer in _HEADS:
        return {f"head.{_HEADS[layer]}.{leaf}": value}
    if layer == "fc":  # a 1x1 is a 3x3 with zeros around
        return {f"head.branches.0.{leaf}": np.pad(value, [(0, 0)] * 2 + [(1, 1)] * 2) if value.ndim == 4 else value}
    if match := re.fullmatch(r"aspp\.stages\.(?:c(\d)|imagepool\.conv)\.(conv|bn)\.(\w+)", name):
        place = match[1] or f"{branches}.project"
        return {f"head.aspp.branches.{place}.{0 if match[2] == 'conv' else 1}.{match[3]}": value}
    if match := re.fullmatch(r"aspp\.(?:stages\.)?c(\d)\.(weight|bias)", name):
        return {f"head.branches.{match[1]}.{match[2]}": value}
    match = re.fullmatch(r"layer(\d)\.block(\d+)\.(\w+)\.(conv|bn)\.(.+)", name)
    if match is None:
        return None
    unit = f"encoder.layer{int(match[1]) - 1}.{int(match[2]) - 1}"
    if match[3] in _PARTS:
        return {f"{unit}.{match[4]}{_PARTS[match[3]]}.{match[5]}": value}
    if match[3] in ("shortcut", "proj"):
        return {f"{unit}.downsample.{0 if match[4] == 'conv' else 1}.{match[5]}": value}
    return None
