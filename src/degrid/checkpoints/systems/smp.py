"""segmentation_models.pytorch: DeepLabV3 and DeepLabV3Plus."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, Rule, System, Tensors, first_match
from degrid.checkpoints.systems.torchvision_imagenet import usual_resnet
from degrid.types import ConversionError

# The decoder beside ASPP: its names, our place, and by how much our number in it is larger than theirs. Our
# after_aspp and refine are depthwise convolution, 1x1 convolution, batch norm.
_DECODER = (
    (r"decoder\.aspp\.1\.([01])\.(weight)", "head.after_aspp", 0),
    (r"decoder\.aspp\.(2)\.(\w+)", "head.after_aspp", 0),
    (r"decoder\.block1\.([01])\.(\w+)", "head.reduce", 0),
    (r"decoder\.block2\.0\.([01])\.(weight)", "head.refine", 0),
    (r"decoder\.block2\.(1)\.(\w+)", "head.refine", 1),
)


class Smp(System):
    """The library's defaults: DeepLabV3 at output stride 8, DeepLabV3Plus at 16, both with the rates 12, 24, 36."""

    title = "segmentation_models.pytorch: DeepLabV3, DeepLabV3Plus"

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        return first_match(tensors, r"decoder\.aspp\.(0\.)?convs\.0\.0\.weight")

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`. Encoders other than ResNet-18 to 152 are refused."""
        plus = "decoder.aspp.0.convs.0.0.weight" in tensors
        encoder = usual_resnet(tensors, "encoder.")
        if encoder is None:
            raise ConversionError(
                "this model of segmentation_models.pytorch has an encoder that degrid cannot convert; it can convert "
                "those on ResNet-18, 34, 50, 101 and 152"
            )
        if not plus and "decoder.aspp.convs.1.0.0.weight" in tensors:
            raise ConversionError("a DeepLabV3 with separable ASPP cannot be converted; DeepLabV3Plus can")
        settings = {
            "network": "deeplabv3plus_smp" if plus else "deeplabv3_refined",
            "encoder": f"timm:{encoder}",
            "output_stride": 16 if plus else 8,
            "rates": (12, 24, 36),
            "dropout": 0.5,
            "uniform_rates": True,
            "resize": "align_corners",
            **rules.IMAGENET_INPUT,
        }
        note = (
            "the file does not say its output stride and rates; that library's defaults are assumed: "
            f"{settings['output_stride']} and 12,24,36 (change them with --set output_stride=... and "
            "--set rates=..., settings=...)"
        )
        return Plan(settings, notes=[note]).fill(tensors, rules.batch_counter, _rule(plus))


def _rule(plus: bool) -> Rule:
    aspp = "decoder.aspp.0." if plus else "decoder.aspp."

    def rule(name: str, value: np.ndarray) -> rules.Found | None:
        if name.startswith("encoder."):
            return {name.replace("encoder.", "encoder.net.", 1): value}
        if name.startswith("segmentation_head.0."):
            return {name.replace("segmentation_head.0", "head.classifier"): value}
        if name.startswith(aspp):
            return _aspp(name.removeprefix(aspp), value, separable=plus)
        if match := re.fullmatch(r"decoder\.(conv|bn)\.(\w+)", name):
            return {f"head.refine.{0 if match[1] == 'conv' else 1}.{match[2]}": value}
        for pattern, place, shift in _DECODER:
            if match := re.fullmatch(pattern, name):
                return {f"{place}.{int(match[1]) + shift}.{match[2]}": value}
        return None

    return rule


def _aspp(name: str, value: np.ndarray, separable: bool) -> rules.Found | None:
    match = re.fullmatch(r"convs\.([1-3])\.1\.(\w+)", name)
    if separable and match:  # batch norm comes third in our separable branch
        return {f"head.aspp.branches.{match[1]}.2.{match[2]}": value}
    return rules.torchvision_aspp(name, value)
