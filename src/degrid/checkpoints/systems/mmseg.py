"""mmsegmentation 0.x and 1.x: DeepLab v3 and v3+."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import ConfiguredSystem, Drop, Plan, Tensors, first_match
from degrid.types import ConversionError, LabelSpace, UserError, voc_palette
from degrid.weight_names import BASIC_RESNETS, BOTTLENECK_RESNETS, num_units

_HEAD = {
    "image_pool.1": "aspp.branches.4.project",
    "bottleneck": "aspp.project",
    "c1_bottleneck": "reduce",
    **{f"aspp_modules.{index}": f"aspp.branches.{index}" for index in range(4)},
    **{f"sep_bottleneck.{index}": f"refine.{index}" for index in range(2)},
}
_NAME = re.compile(r"decode_head\.([\w.]+?)(\.depthwise_conv|\.pointwise_conv)?\.(conv|bn)\.(\w+)")
_STEM = {"stem.7": "bn1", **{f"stem.{layer}": f"conv1.{layer}" for layer in (0, 1, 3, 4, 6)}}
_MOBILE = {"0.conv": "conv_pw", "0.bn": "bn1", "1.conv": "conv_dw", "1.bn": "bn2", "2.conv": "conv_pwl", "2.bn": "bn3"}
_FIRST_MOBILE = {"0.conv": "conv_dw", "0.bn": "bn1", "1.conv": "conv_pw", "1.bn": "bn2"}

_SPLIT = "backbone.layer1.0.conv2.conv.weight"  # a split-attention convolution
# By the units and the width of the first convolution, which is half of the stem's channels.
_RESNESTS = {
    (BOTTLENECK_RESNETS["50"], 32): "resnest50d",
    (BOTTLENECK_RESNETS["101"], 64): "resnest101e",
}


# The rates of the stages that degrid builds, by output stride.
_RESNET_RATES = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2), 32: (1, 1, 1, 1)}
_MOBILE_RATES = {8: (1, 1, 1, 2, 2, 4, 4), 16: (1, 1, 1, 1, 1, 2, 2), 32: (1,) * 7}


_DEFAULT_THRESHOLD = 0.3  # `BaseDecodeHead`
_SAID = "output stride, rates, multi_grid, resizing and normalisation are those of the configuration in the file"
_D8 = (
    "as in the models called d8; for d16-mg124 --set output_stride=16 --set rates=6,12,18 --set multi_grid=1,2,4; for "
    "769x769 --set resize=align_corners --set head_resize=align_corners"
)


class Mmseg(ConfiguredSystem):
    """The "v1c" ResNets and those named b and v1d, ResNeSt and MobileNetV2, as the configuration in the file says.

    Without a configuration its models "d8": output stride 8, the rates 12, 24, 36.
    """

    title = "mmsegmentation: DeepLab v3, v3+"
    marks = (r"decode_head\.aspp_modules\.0\.conv\.weight",)

    def plan_beside(self, tensors: Tensors, config: Mapping[str, Any]) -> Plan:
        """See `System`."""
        plus = "decode_head.c1_bottleneck.conv.weight" in tensors
        channels = len(tensors["decode_head.aspp_modules.0.conv.weight"])
        low_level = len(tensors["decode_head.c1_bottleneck.conv.weight"]) if plus else 48
        settings = {
            "network": "deeplabv3plus_mmseg" if plus else "deeplabv3_mmseg",
            "encoder": _encoder(tensors),
            "output_stride": 8,
            "rates": (12, 24, 36),
            "resize": "half_pixel",
            "head_resize": "half_pixel",
            "channels": channels,
            "low_level_channels": low_level,
            "separable": "decode_head.aspp_modules.1.depthwise_conv.conv.weight" in tensors,
            **rules.IMAGENET_INPUT,
        }
        own = configuration(config.get("meta"))
        said = _of_configuration(own, settings["encoder"] == "mmseg:mobilenet_v2") if section(own, "model") else {}
        if said:
            plan = Plan(settings | said, notes=[_SAID])
        else:
            plan = Plan(settings, assumed=("output_stride", "rates", "resize", "head_resize"), otherwise=_D8)
        if classifier := tensors.get("decode_head.conv_seg.weight", np.empty(0)).shape:
            plan.labels = classes(config.get("meta"), classifier[0])
            if classifier[0] == 1:  # its own configurations of one logit name two classes
                plan.labels = plan.labels or classes(config.get("meta"), 2)
                plan.notes += _threshold(section(own, "model", "decode_head"))
        return plan.fill(tensors, rules.batch_counter, partial(_rule, channels))


def _of_configuration(own: dict[str, Any], mobile: bool) -> dict[str, Any]:
    """The settings that a configuration of mmsegmentation states, or leaves to the defaults of its classes.

    Raises:
        ConversionError: a network that degrid cannot build.
    """
    backbone, head = section(own, "model", "backbone"), section(own, "model", "decode_head")
    known = _MOBILE_RATES if mobile else _RESNET_RATES
    strides = numbers(backbone.get("strides", (1, 2, 2, 2, 1, 2, 1) if mobile else (1, 2, 2, 2))) or ()
    dilations = numbers(backbone.get("dilations", (1,) * len(strides)))
    output_stride = prod(strides) * (2 if mobile else 4)
    style = backbone.get("style", "pytorch")
    if dilations != known.get(output_stride) or style != "pytorch":
        raise ConversionError(
            f"the configuration in the file has a backbone with the strides {strides}, the dilations {dilations} and "
            f"the style {style!r}; degrid can convert the style 'pytorch' with the dilations "
            f"{', '.join(f'{rates} at output stride {stride}' for stride, rates in known.items())}"
        )
    found: dict[str, Any] = {
        "output_stride": output_stride,
        "uniform_rates": not mobile and not backbone.get("contract_dilation", False),
        "multi_grid": numbers(backbone.get("multi_grid")),
        "rates": (numbers(head.get("dilations")) or (1, 6, 12, 18))[1:],
        "dropout": head.get("dropout_ratio", 0.1),
    }
    if head.get("align_corners", False):
        found |= rules.ALIGNED
    return found | _normalisation(own)


def _threshold(head: Mapping[str, Any]) -> list[str]:
    """What to say of the probability above which mmsegmentation takes the only class of a network; nothing of 0.5.

    Its own classes of heads take 0.3 where a configuration says none.
    """
    value = head.get("threshold")
    where = _DEFAULT_THRESHOLD if value is None else value
    if where == 0.5:  # the sign of the logit
        return []
    default = ", its default" if value is None else ""
    return [
        f"mmsegmentation takes the one class where its probability is above {where}{default}; here it is taken above "
        "0.5, so masks differ where the probability lies between"
    ]


def _normalisation(own: dict[str, Any]) -> dict[str, Any]:
    """The normalisation in a configuration: of 0.x in the pipeline, of 1.x in the model."""
    given = [own.get("img_norm_cfg"), own.get("data_preprocessor"), section(own, "model").get("data_preprocessor")]
    norm = next((each for each in given if isinstance(each, dict)), {})
    mean, std = (numbers(norm.get(name), float) for name in ("mean", "std"))
    if mean is None or std is None or not len(mean) == len(std) == 3:
        return {}
    return {"mean": mean, "std": std, "bgr": not norm.get("to_rgb", norm.get("bgr_to_rgb", False))}


def _encoder(tensors: Tensors) -> str:
    if "backbone.layer7.0.conv.0.conv.weight" in tensors:
        return "mmseg:mobilenet_v2"
    table = BOTTLENECK_RESNETS if "backbone.layer1.0.conv3.weight" in tensors else BASIC_RESNETS
    units = num_units(tensors, r"backbone\.layer([1-4])\.(\d+)\.")
    depth = next((depth for depth in ("18", "34", "50", "101", "152") if table.get(depth) == units), None)
    if (variant := (units, len(tensors.get("backbone.stem.0.weight", ())))) in _RESNESTS and _SPLIT in tensors:
        return f"mmseg:{_RESNESTS[variant]}"
    kernel = tensors.get("backbone.layer1.0.conv2.weight")
    if depth is None or kernel is None or kernel.shape[:2] != (64, 64):
        raise rules.no_encoder("mmsegmentation", "ResNet, ResNeSt and MobileNetV2")
    if "backbone.stem.0.weight" not in tensors:
        return f"mmseg:resnet{depth}"
    pools = first_match(tensors, r"backbone\.layer2\.0\.downsample\.2\.weight")
    return f"mmseg:resnet{depth}{'d' if pools else 'c'}"


def _rule(channels: int, name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if name.startswith("auxiliary_head."):
        return Drop("second head, used for the training loss only")
    if name.startswith("ema_"):  # of mmcv's hook, with _ in place of the dots
        return Drop("moving average of a weight")
    if name.startswith("backbone."):
        renamed = _backbone(name.removeprefix("backbone."))
        return {f"encoder.net.{renamed}": value} if renamed else None
    if name.startswith("decode_head.conv_seg."):
        return {name.replace("decode_head.conv_seg", "head.classifier"): value}
    match = _NAME.fullmatch(name)
    if match is None or match[1] not in _HEAD:
        return None
    if match[1] == "bottleneck" and match[3] == "conv":  # there image pooling comes first, here last
        value = rules.joined_in_order(value, channels)
    index = (3 if match[2] == ".pointwise_conv" else 0) + (match[3] == "bn")
    return {f"head.{_HEAD[match[1]]}.{index}.{match[4]}": value}


def _backbone(name: str) -> str | None:
    """timm's name of a tensor of the ResNets or of MobileNetV2."""
    layer, _, leaf = name.rpartition(".")
    if layer in _STEM:
        return f"{_STEM[layer]}.{leaf}"
    if layer in ("conv1.conv", "conv1.bn"):
        return f"{'conv_stem' if layer == 'conv1.conv' else 'bn1'}.{leaf}"
    if match := re.fullmatch(r"layer([1-7])\.(\d+)\.conv\.(\d\.(?:conv|bn))", layer):
        part = (_FIRST_MOBILE if match[1] == "1" else _MOBILE).get(match[3])
        return f"blocks.{int(match[1]) - 1}.{match[2]}.{part}.{leaf}" if part else None
    return name


_MAX_TEXT = 1 << 20  # characters; whole configurations have about 10,000


def configuration(meta: object) -> dict[str, Any]:
    """The assignments of the configuration in a checkpoint's `meta`; empty where there is none that can be read."""
    text = meta.get("config", meta.get("cfg")) if isinstance(meta, Mapping) else None
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        return {}
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=value):
                found[name] = _literal(value)
    return found


def classes(meta: object, count: int) -> LabelSpace | None:
    """The classes that a checkpoint's `meta` names; None where it names none, or another number of them."""
    if not isinstance(meta, Mapping):
        return None
    inner = meta.get("dataset_meta")  # since 1.0
    names, palette = meta.get("CLASSES"), meta.get("PALETTE")
    if isinstance(inner, Mapping):
        names, palette = inner.get("classes"), inner.get("palette")
    if not isinstance(names, list | tuple) or len(names) != count:
        return None
    colors: Any = voc_palette(count)
    if isinstance(palette, list | tuple) and len(palette) == count:
        colors = palette
    try:
        return LabelSpace(tuple(names), tuple(map(tuple, colors)))
    except (TypeError, UserError):
        return None


def section(settings: object, *keys: str) -> dict[str, Any]:
    """A dictionary in dictionaries; empty where there is none."""
    for key in keys:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings if isinstance(settings, dict) else {}


def numbers(value: object, kind: type[int] | type[float] = int) -> tuple[Any, ...] | None:
    """Whole numbers, or with `float` any; None where it is no list of them."""
    kinds = (int,) if kind is int else (int, float)
    if not isinstance(value, list | tuple) or not all(type(part) in kinds for part in value):
        return None
    return tuple(map(kind, value))


def _literal(node: ast.expr) -> Any:
    """The value of a literal: numbers, text, lists and dictionaries; None for code that would have to be run."""
    match node:
        case ast.Constant(value):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
        case ast.List(parts) | ast.Tuple(parts):
            return [_literal(part) for part in parts]
        case ast.Dict(keys, values):
            pairs = zip(keys, values, strict=True)
            return {key.value: _literal(value) for key, value in pairs if isinstance(key, ast.Constant)}
        case ast.Call(ast.Name("dict"), [], keywords):
            return {keyword.arg: _literal(keyword.value) for keyword in keywords if keyword.arg}
    return None
