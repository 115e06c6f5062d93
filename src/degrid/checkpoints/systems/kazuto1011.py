"""kazuto1011/deeplab-pytorch: DeepLab v2."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors, first_match
from degrid.types import MSC_SCALES

_PARTS = {"reduce": "1", "conv3x3": "2", "increase": "3"}


class Kazuto1011(System):
    """Either revision, with or without the multi-scale wrapper; layer2 to layer5 are the four stages."""

    title = "kazuto1011/deeplab-pytorch: DeepLab v2"

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        return first_match(tensors, r".*layer2\.block1\.reduce\.conv\.weight")

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        depth, _ = rules.bottleneck_resnet(tensors, r"(?:base\.|scale\.)?layer(\d)\.block(\d+)\.reduce\.conv\.weight")
        settings = {
            "network": "deeplabv2",
            "encoder": f"caffe:resnet{depth}",
            "output_stride": 8,
            **rules.CAFFE_INPUT,
            "resize": "half_pixel",
            "scales": MSC_SCALES if first_match(tensors, r"(base|scale)\..*") else (),
        }
        return Plan(settings).fill(tensors, rules.batch_counter, _rule)


def _rule(name: str, value: np.ndarray) -> rules.Found | None:
    name = re.sub(r"^(base|scale)\.", "", name)
    if match := re.fullmatch(r"layer1\.conv1\.(conv|bn)\.(.+)", name):
        return {f"encoder.{match[1]}1.{match[2]}": value}
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
