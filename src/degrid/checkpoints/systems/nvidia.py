"""NVIDIA/semantic-segmentation: DeepLab v3+ on WideResNet-38, ResNet and SE-ResNeXt."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors, first_match
from degrid.types import ConversionError
from degrid.weight_names import BOTTLENECK_RESNETS, num_units

_PLACES = {
    **{f"aspp.features.{index}.{part}": f"head.aspp.branches.{index}.{part}" for index in range(4) for part in (0, 1)},
    "aspp.img_conv.0": "head.aspp.branches.4.project.0",
    "aspp.img_conv.1": "head.aspp.branches.4.project.1",
    "bot_aspp": "head.aspp.project.0",
    "bot_fine": "head.reduce.0",
    "final.0": "head.refine.0.0",
    "final.1": "head.refine.0.1",
    "final.3": "head.refine.1.0",
    "final.4": "head.refine.1.1",
}
_TRUNK = r"(?:backbone\.)?mod"


class Nvidia(System):
    """DeepWV3Plus and DeepV3Plus, whose corners are aligned; DeepV3PlusW38 and R50 of the later code, whose are not."""

    title = "NVIDIA/semantic-segmentation: DeepWV3Plus, DeepV3Plus, DeepV3PlusW38, DeepV3PlusR50"
    marks = (r"bot_fine\.weight", r"aspp\.img_conv\.0\.weight")

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`. Other trunks are refused, and decoders that read a coarser feature."""
        trunk = first_match(tensors, rf"{_TRUNK}7\.block1\.convs\.conv3\.weight")
        resnet = None if trunk else _resnet(tensors)
        if not trunk and not resnet:
            raise ConversionError(
                "this is DeepV3Plus of NVIDIA/semantic-segmentation on a trunk that degrid does not have; it can "
                "convert those on WideResNet-38, and on ResNet and SE-ResNeXt with the skip m1"
            )
        resize = "half_pixel" if first_match(tensors, r"backbone\..*") else "align_corners"
        settings = {
            "network": "deeplabv3plus_nvidia_resnet" if resnet else "deeplabv3plus_nvidia",
            "encoder": resnet or "nvidia:wider_resnet38",
            "uniform_rates": resnet is not None,
            "low_level_channels": len(tensors["bot_fine.weight"]),
            "output_stride": 8,
            "rates": (12, 24, 36),
            "head_resize": resize,
            "resize": resize,
            **rules.IMAGENET_INPUT,
        }
        # Its SE-ResNeXt has no strides in the last two stages: D16 there is a network of stride 8 with half the rates.
        fixed = ("output_stride",) if "seresnext" in str(resnet) else ()
        return Plan(settings, fixed=fixed).fill(tensors, rules.batch_counter, _resnet_rule if resnet else _rule, _rule)


def _resnet(tensors: Tensors) -> str | None:
    """Our name of a ResNet or SE-ResNeXt whose first stage the decoder reads."""
    units = num_units(tensors, r"(?:backbone\.)?layer([1-4])\.(\d+)\.")
    depth = next((depth for depth in ("50", "101") if BOTTLENECK_RESNETS[depth] == units), None)
    if depth is None or tensors["bot_fine.weight"].shape[1] != 256:
        return None
    return f"timm:legacy_seresnext{depth}_32x4d" if "layer0.conv1.weight" in tensors else f"timm:resnet{depth}"


def _resnet_rule(name: str, value: np.ndarray) -> rules.Found | None:
    name = name.removeprefix("backbone.")
    if match := re.fullmatch(r"layer0\.([01])\.(\w+)", name):
        return {f"encoder.net.{'bn1' if match[1] == '1' else 'conv1'}.{match[2]}": value}
    return {f"encoder.net.{name}": value} if re.match(r"layer[0-4]\.", name) else None


def _rule(name: str, value: np.ndarray) -> rules.Found | None:
    if name == "final.6.weight":
        return {"head.classifier.weight": value, "head.classifier.bias": np.zeros(len(value), np.float32)}
    if name == "bot_aspp.weight":  # there image pooling comes first, here last
        value = rules.joined_in_order(value, value.shape[1] // 5)
    if name == "final.0.weight":
        value = rules.joined_in_order(value, value.shape[1] - len(value))
    if re.fullmatch(rf"{_TRUNK}1\.conv1\.weight", name):
        return {"encoder.stem.weight": value}
    match = re.fullmatch(
        rf"{_TRUNK}([2-7])\.block(\d)\.(?:convs\.)?(?:(bn|conv)([123])(?:\.0)?|proj_conv)\.(\w+)", name
    )
    if match is None:
        return rules.placed(_PLACES, name, value)
    part = f"{match[3]}s.{int(match[4]) - 1}".replace("bns", "norms") if match[3] else "shortcut"
    return {f"encoder.stages.{int(match[1]) - 2}.{int(match[2]) - 1}.{part}.{match[5]}": value}
