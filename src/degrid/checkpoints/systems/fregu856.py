"""fregu856/deeplabv3: DeepLab v3 on ResNet-18 to 152."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors
from degrid.types import ConversionError
from degrid.weight_names import BASIC_RESNETS, BOTTLENECK_RESNETS, num_units

_PLACES = {"conv_1x1_1": "branches.0", **{f"conv_3x3_{index}": f"branches.{index}" for index in (1, 2, 3)}}
_PLACES |= {"conv_1x1_2": "branches.4.project", "conv_1x1_3": "project"}


class Fregu856(System):
    """The first stages are in one sequence, and the dilated ones beside it; images are BGR, with the mean of RGB."""

    title = "fregu856/deeplabv3: DeepLab v3"
    marks = (r"aspp\.bn_conv_1x1_2\.weight", r"resnet\.layer5\.0\.conv1\.weight")

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`. With a dilated stage 4 the output stride is 8, otherwise 16."""
        names = {_in_resnet(name) or "" for name in tensors}
        units = num_units(names, r"layer([1-4])\.(\d+)\.")
        table = BOTTLENECK_RESNETS if "layer1.0.conv3.weight" in names else BASIC_RESNETS
        depth = next((depth for depth, known in table.items() if known == units), None)
        if depth is None or "aspp.conv_1x1_4.weight" not in tensors:
            raise ConversionError("this model of fregu856/deeplabv3 is on no known ResNet, or has another head")
        settings = {
            "network": "deeplabv3",
            "encoder": f"timm:resnet{depth}",
            "output_stride": 8 if "resnet.layer4.0.conv1.weight" in tensors else 16,
            "rates": (6, 12, 18),
            "channels": len(tensors["aspp.conv_1x1_1.weight"]),
            "uniform_rates": True,
            **{**rules.IMAGENET_INPUT, "bgr": True},
        }
        return rules.fold_biases(Plan(settings).fill(tensors, rules.batch_counter, _rule))


def _in_resnet(name: str) -> str | None:
    """torchvision's name of a tensor of the ResNet: the sequence is conv1, bn1, ReLU, pooling and the first stages."""
    if match := re.fullmatch(r"resnet\.resnet\.([01])\.(\w+)", name):
        return f"{'bn1' if match[1] == '1' else 'conv1'}.{match[2]}"
    match = re.fullmatch(r"resnet\.(resnet\.|layer)([4-6])\.(.+)", name)
    if match is None:
        return None
    return f"layer{int(match[2]) - (3 if match[1] == 'resnet.' else 1)}.{match[3]}"


def _rule(name: str, value: np.ndarray) -> rules.Found | None:
    if renamed := _in_resnet(name):
        return {f"encoder.net.{renamed}": value}
    match = re.fullmatch(r"aspp\.(bn_)?(conv_\dx\d_\d)\.(\w+)", name)
    if match and match[2] == "conv_1x1_4":
        return {f"head.classifier.{match[3]}": value}
    if match is None or match[2] not in _PLACES:
        return None
    return {f"head.aspp.{_PLACES[match[2]]}.{1 if match[1] else 0}.{match[3]}": value}
