"""segmentation_models.pytorch: DeepLabV3 and DeepLabV3Plus."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, Rule, System, Tensors, first_match
from degrid.checkpoints.systems.smp_encoders import Rename, encoder_of, is_universal
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
_STEM = (
    r"encoder\.(model\.)?(_conv_stem|conv_stem|(layer0\.)?conv1(\.0)?|features\.(0\.0|conv1_1\.conv)|stem[._](0|conv1?)|"
    r"stage0\.rbr_scale\.conv)\.weight"
)
_BEFORE_0_4 = (("decoder.0.", "decoder.aspp."), ("decoder.1.", "decoder.conv."), ("decoder.2.", "decoder.bn."))


class Smp(System):
    """Output stride, rates and encoder are those of the library's config.json, where it lies beside the weights.

    Otherwise its defaults: DeepLabV3 at output stride 8, DeepLabV3Plus at 16, both with the rates 12, 24, 36.
    """

    title = "segmentation_models.pytorch: DeepLabV3, DeepLabV3Plus"
    marks = (r"decoder\.(aspp\.(0\.)?|0\.)convs\.0\.0\.weight",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        return self.plan_beside(tensors, {})

    def plan_beside(self, tensors: Tensors, config: Mapping[str, Any]) -> Plan:
        """See `System`. DeepLabV3 had other names up to version 0.3.4."""
        new = {_renamed(name): name for name in tensors}
        values = {name: tensors[old] for name, old in new.items()}
        plus = "decoder.aspp.0.convs.0.0.weight" in values
        aspp = "decoder.aspp.0." if plus else "decoder.aspp."
        separable = f"{aspp}convs.1.0.1.weight" in values
        if config.get("encoder_depth", 5) != 5:
            raise ConversionError(
                "a model of segmentation_models.pytorch with encoder_depth below 5 cannot be converted"
            )
        encoder, rename = encoder_of(values, config)
        stem = first_match(values, _STEM)
        bands = config.get("in_channels", 3 if stem is None else values[stem].shape[1])
        network = {
            (True, True): "deeplabv3plus_smp",
            (True, False): "deeplabv3plus_smp_dense",
            (False, True): "deeplabv3_smp_separable",
            (False, False): "deeplabv3_refined",
        }[plus, separable]
        settings = {
            "network": network,
            "encoder": encoder,
            "output_stride": config.get("encoder_output_stride", 16 if plus else 8),
            "rates": tuple(config.get("decoder_atrous_rates", (12, 24, 36))),
            "channels": len(values[f"{aspp}convs.0.0.weight"]),
            "dropout": config.get("decoder_aspp_dropout", 0.5),
            "uniform_rates": not is_universal(values),
            "resize": "align_corners",
            **rules.IMAGENET_INPUT,
            **({} if bands == 3 else {"in_channels": bands}),
        }
        plan = Plan(
            settings,
            assumed=() if "encoder_output_stride" in config else ("output_stride", "rates"),
            otherwise="the library's defaults; change them with --set, or keep its config.json beside the file",
        )
        return plan.fill(values, rules.batch_counter, _rule(aspp, separable, rename)).called(new)


def _renamed(name: str) -> str:
    """The present name of a tensor that version 0.3.4 named."""
    return next((new + name[len(old) :] for old, new in _BEFORE_0_4 if name.startswith(old)), name)


def _rule(aspp: str, separable: bool, rename: Rename) -> Rule:
    def rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
        if re.match(r"encoder\.(_conv_head|_bn1|conv_head|bn2)\.|classification_head\.", name):
            return Drop("for classification, not connected to the logits")
        if name.startswith("encoder."):
            renamed = rename(name.removeprefix("encoder."))
            return {renamed: value} if renamed else None
        if name.startswith("segmentation_head.0."):
            return {name.replace("segmentation_head.0", "head.classifier"): value}
        if name.startswith(aspp):
            return rules.torchvision_aspp(name.removeprefix(aspp), value, separable) or _decoder(name, value)
        return _decoder(name, value)

    return rule


def _decoder(name: str, value: np.ndarray) -> rules.Found | None:
    if match := re.fullmatch(r"decoder\.(conv|bn)\.(\w+)", name):
        return {f"head.refine.{0 if match[1] == 'conv' else 1}.{match[2]}": value}
    for pattern, place, shift in _DECODER:
        if match := re.fullmatch(pattern, name):
            return {f"{place}.{int(match[1]) + shift}.{match[2]}": value}
    return None
