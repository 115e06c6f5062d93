"""segmentation_models.pytorch: DeepLabV3 and DeepLabV3Plus, and which of its encoders they have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import ConfiguredSystem, Drop, Plan, Tensors, first_match
from degrid.checkpoints.systems.torchvision import usual_resnet
from degrid.types import ConversionError
from degrid.weight_names import BASIC_RESNETS, BOTTLENECK_RESNETS, mobilenet_v2_name, num_units

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


class Smp(ConfiguredSystem):
    """Output stride, rates and encoder are those of the library's config.json, where it lies beside the weights.

    Otherwise its defaults: DeepLabV3 at output stride 8, DeepLabV3Plus at 16, both with the rates 12, 24, 36.
    """

    title = "segmentation_models.pytorch: DeepLabV3, DeepLabV3Plus"
    marks = (r"decoder\.(aspp\.(0\.)?|0\.)convs\.0\.0\.weight",)

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
        return plan.fill(values, rules.batch_counter, partial(_rule, aspp, separable, rename)).called(new)


def _renamed(name: str) -> str:
    """The present name of a tensor that version 0.3.4 named."""
    return next((new + name[len(old) :] for old, new in _BEFORE_0_4 if name.startswith(old)), name)


def _rule(aspp: str, separable: bool, rename: Rename, name: str, value: np.ndarray) -> rules.Found | Drop | None:
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


def _decoder(name: str, value: np.ndarray) -> rules.Found | None:
    if match := re.fullmatch(r"decoder\.(conv|bn)\.(\w+)", name):
        return {f"head.refine.{0 if match[1] == 'conv' else 1}.{match[2]}": value}
    for pattern, place, shift in _DECODER:
        if match := re.fullmatch(pattern, name):
            return {f"{place}.{int(match[1]) + shift}.{match[2]}": value}
    return None


Rename = Callable[[str], "str | None"]
"""From a tensor's name in the library's encoder to our name of it; None for one without a place."""

UNSAID = "smp:tu-?"
"""The encoder, where the file does not say which network of timm it is."""

_IN_RESNETS = re.compile(r"encoder\.model\.(layer[1-4]\.\d+\.)?(conv[123]|bn[123]|downsample\.[01])\.\w+")
# Parts of a block of EfficientNet: with an expansion before the depthwise convolution, and without.
_EFFICIENT = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_EFFICIENT_FIRST = {**_EFFICIENT, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
# MobileOne's parts of a block here and in timm.
_MOBILE_ONE_PARTS = {
    "rbr_conv": "conv_kxk",
    "rbr_scale": "conv_scale",
    "rbr_skip": "identity",
    "se.reduce": "attn.fc1",
    "se.expand": "attn.fc2",
}
_MOBILE_ONE = {(48, 128): "s0", (96, 192): "s1", (96, 256): "s2", (128, 320): "s3", (192, 448): "s4"}
_DPN_STEM = "features.conv1_1.conv.weight"
_DPN = {(10, 12): "68", (64, 20): "92", (96, 20): "98", (128, 20): "107", (128, 28): "131"}
# By the number of blocks and the width of the first convolution: the variant, and the blocks of its stages.
_VARIANTS = {
    (16, 32): ("b0", (1, 2, 2, 3, 3, 4, 1)),
    (23, 32): ("b1", (2, 3, 3, 4, 4, 5, 2)),
    (23, 32, 1408): ("b2", (2, 3, 3, 4, 4, 5, 2)),
    (26, 40): ("b3", (2, 3, 3, 5, 5, 6, 2)),
    (32, 48): ("b4", (2, 4, 4, 6, 6, 8, 2)),
    (39, 48): ("b5", (3, 5, 5, 7, 7, 9, 3)),
    (45, 56): ("b6", (3, 6, 6, 8, 8, 11, 3)),
    (55, 64): ("b7", (4, 7, 7, 10, 10, 13, 4)),
    (61, 72): ("b8", (4, 8, 8, 11, 11, 15, 4)),
    (88, 136): ("l2", (6, 11, 11, 16, 16, 22, 6)),
}
# Those without squeeze and excitation, by the number of blocks and the width of the last.
_LITE = {(16, 320): "lite0", (21, 320): "lite1", (21, 352): "lite2", (24, 384): "lite3", (30, 448): "lite4"}


def is_universal(tensors: Tensors) -> bool:
    """Whether timm's networks are used as they are ("tu-"), with its rule for the first unit of a stage."""
    return first_match(tensors, r"encoder\.model\..*") is not None


def encoder_of(tensors: Tensors, config: Mapping[str, Any]) -> tuple[str, Rename]:
    """Our name of the encoder, and how its tensors are renamed.

    Raises:
        ConversionError: an encoder that degrid does not have.
    """
    named = str(config.get("encoder_name", ""))
    if is_universal(tensors):
        usual = all(_IN_RESNETS.fullmatch(name) for name in tensors if name.startswith("encoder."))
        known = named.removeprefix("tu-") or (usual and usual_resnet(tensors, "encoder.model."))
        return f"smp:tu-{known}" if known else UNSAID, lambda name: f"encoder.net.{name.removeprefix('model.')}"
    for known_by, find in _FAMILIES.items():
        if f"encoder.{known_by}" in tensors and (found := find(tensors)):
            return found
    if resnet := usual_resnet(tensors, "encoder."):
        return f"timm:{resnet}", _same
    if "encoder.patch_embed1.proj.weight" in tensors:
        named = f"{named or 'mit_b0 to b5'}: Mix Vision Transformer, whose attention degrid does not have"
    raise ConversionError(
        f"this model of segmentation_models.pytorch has an encoder ({named or 'not named in the file'}) that degrid "
        "cannot convert; it can convert those on ResNet, ResNeXt, SE-ResNet, SE-ResNeXt, SENet, SK-Net, DPN, "
        "MobileNetV2, MobileOne, EfficientNet and timm's (tu-)"
    )


def _same(name: str) -> str:
    return f"encoder.net.{name}"


def _senet(tensors: Tensors) -> tuple[str, Rename] | None:
    """A squeeze-and-excitation network of Cadene's."""
    units = num_units(tensors, r"encoder\.layer([1-4])\.(\d+)\.")
    depth = next((depth for depth, known in BOTTLENECK_RESNETS.items() if known == units), None)
    width, inner = tensors["encoder.layer1.0.conv2.weight"].shape[:2]
    if "encoder.layer0.conv3.weight" in tensors:
        return "timm:legacy_senet154", _same
    grouped = {4: f"timm:legacy_seresnext{depth}_32x4d", 64: f"timm:legacy_seresnet{depth}"}
    found = grouped.get(inner) if depth in ("50", "101", "152") and width in (64, 128) else None
    return (found, _same) if found else None


def _sk_net(tensors: Tensors) -> tuple[str, Rename] | None:
    """A selective-kernel network, whose first path reads half of the channels."""
    units = num_units(tensors, r"encoder\.layer([1-4])\.(\d+)\.")
    depth = next((depth for depth, known in BASIC_RESNETS.items() if known == units), None)
    return None if depth is None else (f"smp:skresnet{depth}", _same)


def _sk_next(tensors: Tensors) -> tuple[str, Rename] | None:
    units = num_units(tensors, r"encoder\.layer([1-4])\.(\d+)\.")
    return ("smp:skresnext50_32x4d", _same) if units == BOTTLENECK_RESNETS["50"] else None


def _dual_path(tensors: Tensors) -> tuple[str, Rename] | None:
    """A dual path network, by the width of its first convolution and the blocks of its third stage."""
    blocks = len({match[1] for name in tensors if (match := re.match(r"encoder\.features\.conv4_(\d+)\.", name))})
    variant = _DPN.get((len(tensors[f"encoder.{_DPN_STEM}"]), blocks))
    if variant == "68" and "encoder.features.conv2_1.c1x1_c1.weight" in tensors:
        variant = "68b"
    # timm puts an underscore for the first dot.
    return (f"smp:dpn{variant}", lambda name: f"encoder.net.{name.replace('.', '_', 1)}") if variant else None


def _mobile_one(tensors: Tensors) -> tuple[str, Rename] | None:
    """A MobileOne with the branches of its training, by the channels of its first two stages."""
    first, second = (len(tensors.get(f"encoder.stage{stage}.1.rbr_conv.0.conv.weight", ())) for stage in (1, 2))
    variant = _MOBILE_ONE.get((first, second))

    def rename(name: str) -> str:
        stage, _, rest = name.removeprefix("stage").partition(".")
        for theirs, ours in _MOBILE_ONE_PARTS.items():
            rest = rest.replace(theirs, ours)
        return f"encoder.net.{'stem' if stage == '0' else f'stages_{int(stage) - 1}'}.{rest}"

    return (f"timm:mobileone_{variant}", rename) if variant else None


def _mobile_name(name: str) -> str | None:
    if match := re.fullmatch(r"features\.18\.([01])\.(\w+)", name):
        return f"encoder.last.{match[1]}.{match[2]}"
    renamed = mobilenet_v2_name(name)
    return renamed and f"encoder.net.{renamed}"


def _efficient_net(tensors: Tensors) -> tuple[str, Rename] | None:
    """Our name of an EfficientNet of efficientnet_pytorch, and how its tensors are renamed."""
    found = _variant(tensors, "_", r"_blocks\.(\d+)")
    if found is None:
        return None
    variant, stages = found
    places = [(stage, unit) for stage, units in enumerate(stages) for unit in range(units)]

    def rename(name: str) -> str | None:
        layer, _, leaf = name.rpartition(".")
        if layer in ("_conv_stem", "_bn0"):
            return f"encoder.net.{'conv_stem' if layer == '_conv_stem' else 'bn1'}.{leaf}"
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer)
        if match is None or int(match[1]) >= len(places):
            return None
        stage, unit = places[int(match[1])]
        part = (_EFFICIENT if stage else _EFFICIENT_FIRST).get(match[2])
        return part and f"encoder.net.blocks.{stage}.{unit}.{part}.{leaf}"

    return f"smp:efficientnet-{variant}", rename


def _variant(tensors: Tensors, mark: str, block: str) -> tuple[str, tuple[int, ...]] | None:
    """Which EfficientNet it is, and the units of its stages.

    Args:
        tensors: the file's.
        mark: what the library puts before the names of layers.
        block: a regular expression of a block's name, whose group distinguishes it from the others.
    """
    blocks = {match[1] for name in tensors if (match := re.match(rf"encoder\.{block}\.", name))}
    stem, head = (f"encoder.{mark}conv_{part}.weight" for part in ("stem", "head"))
    if stem not in tensors or head not in tensors:
        return None
    count, width = len(blocks), len(tensors[stem])
    if not mark and first_match(tensors, r"encoder\.blocks\..*\.se\..*") is None:
        lite = _LITE.get((count, len(tensors.get("encoder.blocks.6.0.conv_pwl.weight", ()))))
        return None if lite is None else (lite, ())
    return _VARIANTS.get((count, width, len(tensors[head]))) or _VARIANTS.get((count, width))


def _timm_efficient_net(tensors: Tensors) -> tuple[str, Rename] | None:
    found = _variant(tensors, "", r"blocks\.(\d+\.\d+)")
    return found and (f"timm:efficientnet_{found[0]}", _same)


_FAMILIES: dict[str, Callable[[Tensors], tuple[str, Rename] | None]] = {
    "layer0.conv1.weight": _senet,
    "layer1.0.conv1.paths.0.conv.weight": _sk_net,
    "layer1.0.conv2.paths.0.conv.weight": _sk_next,
    _DPN_STEM: _dual_path,
    "stage0.rbr_scale.conv.weight": _mobile_one,
    "features.18.0.weight": lambda tensors: ("smp:mobilenet_v2", _mobile_name),
    "_conv_stem.weight": _efficient_net,
    "conv_stem.weight": _timm_efficient_net,
}
"""Functions that find a family's variant, by the name of a tensor that all its variants have."""
