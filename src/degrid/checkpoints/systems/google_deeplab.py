"""tensorflow/models, research/deeplab: DeepLab v3 and v3+ in TensorFlow 1; and the network of transformers from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.google_mobilenet_v3 import STEM, encoder_of, is_lite, leaf_of, lite_plan, split
from degrid.checkpoints.systems.plan import ConfiguredSystem, Drop, Plan, Rule, Tensors, first_match
from degrid.types import ConversionError
from degrid.weight_names import mobilenet_v2_name

_EPSILON = 1e-3
_MEAN_ALONE = {"mean": (123.15, 115.9, 103.06), "std": (1.0, 1.0, 1.0), "bgr": False}
_UNIT = re.compile(r"(xception_\d+)/(entry|middle|exit)_flow/block(\d)/unit_(\d+)/xception_module/(.+)")
# Ours are in the order 1x1, the rates, image pooling.
_HEAD = {
    "aspp0": "head.aspp.branches.0",
    "concat_projection": "head.aspp.project",
    "logits/semantic": "head.classifier",
}
_DENSE = "decoder/decoder_conv0/decoder_conv0_{}"  # without separable convolutions
_UNSAID = (
    "no checkpoint says whether its program ran with --image_pyramid, --image_pooling_crop_size or "
    "--use_bounded_activation; none is assumed; the maximum over a pyramid of 0.5, 0.75 and 1 is "
    "--set scales=0.5,0.75 (settings=...); {}"
)
_BOUNDED = re.compile("(image_pooling|aspp0)/Relu6")
_UNBOUNDED = "degrid has no bounded activations in {}, where they change more than the ReLUs of the head"
_WIDTHS = {112: "035", 160: "050", 240: "075", 320: "100", 448: "140"}
_MOBILE = {"expand": 0, "depthwise": 1, "project": 2}


class GoogleDeepLab(ConfiguredSystem):
    """Corners are aligned, inside the head as well. Checkpoints and frozen graphs have the same names."""

    title = "tensorflow/models research/deeplab: DeepLab v3, v3+"
    marks = (
        "logits/semantic/weights",
        r"(MobilenetV[23]/Conv|xception_\d+/entry_flow/conv1_1|resnet_v1_\d+/conv1(_1)?)/weights",
    )

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        return STEM if is_lite(tensors) else super().recognise(tensors)

    def plan_beside(self, tensors: Tensors, config: Mapping[str, Any]) -> Plan:
        """See `System`. The output stride is that of the project's own export, 8 where there are no rates.

        A frozen graph has its activations, by which bounded ones are seen.
        """
        lite, bounded = is_lite(tensors), any(_BOUNDED.fullmatch(name) for name in config.get("Relu6", ()))
        if bounded and (lite or first_match(tensors, r"xception_\d+/.*")):
            raise ConversionError(_UNBOUNDED.format("Lite R-ASPP" if lite else "Xception"))
        if lite:
            return lite_plan(tensors)
        _check(tensors)
        encoder, rule = _encoder(tensors)
        settings = _settings(tensors, encoder, bounded)
        plan = rules.of_either_stride(settings, *(["multi_grid"] if "resnet" in encoder else []))
        if encoder.endswith("_beta"):
            plan.otherwise += "; its instructions have --set multi_grid=1,2,4 for resnet_v1_*_beta"
        if not bounded:
            bounds = f"bounded activations are --set network={settings['network']}_bounded"
            plan.notes.append(_UNSAID.format(_UNBOUNDED.format("Xception") if "xception" in encoder else bounds))
        head = _head(len(settings["rates"]) + 1)
        return plan.fill(tensors, rules.training_state, rules.moving_average, rule, head)


def _settings(tensors: Tensors, encoder: str, bounded: bool) -> dict[str, Any]:
    branches = [name for name in tensors if re.fullmatch(r"aspp\d(_pointwise)?/weights", name)]
    plus = "decoder/feature_projection0/weights" in tensors
    resnet = "resnet" in encoder
    return {
        "network": f"deeplabv3{'plus' if plus else ''}{'_bounded' if bounded else ''}",
        "encoder": encoder,
        "output_stride": 16 if len(branches) > 1 or "mobilenet" not in encoder else 8,
        "rates": (6, 12, 18)[: len(branches) - 1],
        "channels": tensors["concat_projection/weights"].shape[-1],
        "separable": first_match(tensors, r"(aspp1|decoder/decoder_conv0)_depthwise/.*") is not None,
        **rules.ALIGNED,
        **({"multi_grid": None} if resnet else {}),
        **(_MEAN_ALONE if resnet and not encoder.endswith("_beta") else rules.CENTRED_INPUT),
    }


def _encoder(tensors: Tensors) -> tuple[str, Rule]:
    """Our name of the encoder, and where its variables go."""
    if "MobilenetV2/Conv/weights" in tensors:
        return _mobile(tensors), _mobile_rule
    if STEM in tensors:
        return encoder_of(tensors)
    if resnet := first_match(tensors, r"resnet_v1_\d+/conv1(_1)?/weights"):
        return _resnet(resnet), _resnet_rule
    return f"google:{_xception(tensors)}", _xception_rule(tensors)


def _check(tensors: Tensors) -> None:
    """Make sure that the head is one that degrid has.

    Raises:
        ConversionError: it is another.
    """
    start = "this model of research/deeplab has"
    if first_match(tensors, "meta_architecture/.*"):
        raise ConversionError(f"{start} a dense prediction cell instead of ASPP, which degrid does not have")
    if "aspp0/weights" not in tensors or "image_pooling/weights" not in tensors:
        raise ConversionError(f"{start} no image pooling or no ASPP; degrid converts those that have both")
    if "decoder/feature_projection0/weights" not in tensors:
        return
    if "decoder/feature_projection0_1/weights" in tensors:
        raise ConversionError(
            f"{start} a decoder of several steps; degrid converts those with --decoder_output_stride=4"
        )
    if not first_match(tensors, rf"decoder/decoder_conv1(_pointwise)?/weights|{_DENSE.format(2)}/weights"):
        raise ConversionError(f"{start} another decoder than the paper's two 3x3")
    separable = {f"{part}_depthwise/depthwise_weights" in tensors for part in ("aspp1", "decoder/decoder_conv0")}
    if len(separable) > 1 and first_match(tensors, r"aspp1(_pointwise)?/weights"):
        raise ConversionError(
            f"{start} separable convolutions in ASPP or in the decoder alone; degrid converts those with them in both "
            "or in neither"
        )


def mobile_encoder(last: int) -> str:
    """Our name of Google's MobileNetV2 by the channels of its last block.

    Raises:
        ConversionError: a width that degrid does not have.
    """
    if last not in _WIDTHS:
        raise ConversionError(f"a MobileNetV2 that ends in {last} channels; degrid has those of {list(_WIDTHS)}")
    return f"google:mobilenetv2_{_WIDTHS[last]}"


def _xception(tensors: Tensors) -> str:
    root = next(name.split("/")[0] for name in tensors if name.startswith("xception_"))
    if root not in ("xception_41", "xception_65", "xception_71"):
        raise ConversionError(f"{root} of research/deeplab cannot be converted; xception_41, 65 and 71 can")
    return root.replace("_", "")


def _mobile(tensors: Tensors) -> str:
    """Our name of the MobileNetV2; other widths than 1 are multiples of 8 in Keras, and here of 1."""
    pattern = r"MobilenetV2/(Conv|expanded_conv(_\d+)?/project)/weights"
    widths = {name: value.shape[-1] for name, value in tensors.items() if re.fullmatch(pattern, name)}
    encoder = mobile_encoder(widths.get("MobilenetV2/expanded_conv_16/project/weights", 0))
    whole = all(width % 8 == 0 for width in widths.values())
    return encoder if whole else encoder.replace("mobilenetv2_", "mobilenetv2_dm")


def _resnet(stem: str) -> str:
    """Our name of the ResNet whose first convolution has this name."""
    depth = stem.split("/")[0].rpartition("_")[2]
    if depth not in ("50", "101"):
        raise ConversionError(f"resnet_v1_{depth} of research/deeplab cannot be converted; resnet_v1_50 and 101 can")
    return f"google:resnet_v1_{depth}{'_beta' if 'conv1_1' in stem else ''}"


def _resnet_rule(name: str, value: np.ndarray) -> rules.Found | None:
    layer, leaf = split(name)
    match = re.fullmatch(r"resnet_v1_\d+/conv1_([123])", layer)
    if match is None:
        return rules.slim_v1(name, value)
    index = 3 * int(match[1]) - 3
    norm = "bn1" if match[1] == "3" else f"conv1.{index + 1}"
    return leaf_of(leaf, value, f"encoder.conv1.{index}", f"encoder.{norm}")


def _mobile_rule(name: str, value: np.ndarray) -> rules.Found | None:
    layer, leaf = split(name)
    if layer == "MobilenetV2/Conv":
        return leaf_of(leaf, value, "encoder.net.conv_stem", "encoder.net.bn1")
    match = re.fullmatch(r"MobilenetV2/expanded_conv(?:_(\d+))?/(expand|depthwise|project)", layer)
    if match is None:
        return None
    conv, norm = mobile_block(int(match[1] or 0), _MOBILE[match[2]])
    return leaf_of(leaf, value, conv, norm)


def mobile_block(index: int, part: int) -> tuple[str, str]:
    """Our names of a convolution in MobileNetV2 and of its batch norm.

    Args:
        index: of the block, from 0.
        part: 0 for the expansion, 1 for the depthwise convolution, 2 for the projection.
    """
    part -= index == 0  # the first block has no expansion
    last = part == (2 if index else 1)
    conv = f"features.{index + 1}.conv.{part}" + ("" if last else ".0")
    norm = f"features.{index + 1}.conv.{part + 1}" if last else f"features.{index + 1}.conv.{part}.1"
    names = [mobilenet_v2_name(f"{layer}.weight") or "" for layer in (conv, norm)]
    return f"encoder.net.{names[0].removesuffix('.weight')}", f"encoder.net.{names[1].removesuffix('.weight')}"


def _xception_rule(tensors: Tensors) -> Rule:
    """timm counts all units in one sequence."""
    flows = ("entry", "middle", "exit")
    units = {(flows.index(m[2]), int(m[3]), int(m[4])) for name in tensors if (m := _UNIT.fullmatch(name))}
    places = {unit: index for index, unit in enumerate(sorted(units))}

    def rule(name: str, value: np.ndarray) -> rules.Found | None:
        layer, leaf = split(name)
        if match := re.fullmatch(r"xception_\d+/entry_flow/conv1_([12])", layer):
            stem = f"encoder.net.stem_{int(match[1]) - 1}"
            return leaf_of(leaf, value, f"{stem}.conv", f"{stem}.bn")
        match = _UNIT.fullmatch(layer)
        if match is None:
            return None
        unit = f"encoder.net.blocks_{places[flows.index(match[2]), int(match[3]), int(match[4])]}"
        if match[5] == "shortcut":
            return leaf_of(leaf, value, f"{unit}.shortcut.conv", f"{unit}.shortcut.bn")
        part = re.fullmatch(r"separable_conv([123])_(depth|point)wise", match[5])
        if part is None:
            return None
        conv, kind = f"{unit}.stack.conv{part[1]}", "dw" if part[2] == "depth" else "pw"
        return leaf_of(leaf, value, f"{conv}.conv_{kind}", f"{conv}.bn_{kind}")

    return rule


def _head(branches: int) -> Rule:
    pooling = f"head.aspp.branches.{branches}.project"

    def rule(name: str, value: np.ndarray) -> rules.Found | None:
        layer, leaf = split(name)
        if layer == "image_pooling":
            return leaf_of(leaf, value, f"{pooling}.0", f"{pooling}.1")
        if layer == "concat_projection" and leaf == "weights":
            value = rules.joined_in_order(value, value.shape[-1], axis=2)
        if layer in _HEAD:
            place = _HEAD[layer]
            return leaf_of(leaf, value, place if layer.startswith("logits") else f"{place}.0", f"{place}.1")
        if layer == "decoder/feature_projection0":
            return leaf_of(leaf, value, "head.reduce.0", "head.reduce.1")
        if dense := re.fullmatch(_DENSE.format("([12])"), layer):
            place = f"head.refine.{int(dense[1]) - 1}"
            return leaf_of(leaf, value, f"{place}.0", f"{place}.1")
        match = re.fullmatch(r"(aspp|decoder/decoder_conv)(\d)(_depthwise|_pointwise)?", layer)
        if match is None:
            return None
        place = "head.aspp.branches" if match[1] == "aspp" else "head.refine"
        first = 3 if match[3] == "_pointwise" else 0  # after the depthwise convolution, its batch norm and its ReLU
        return leaf_of(leaf, value, f"{place}.{match[2]}.{first}", f"{place}.{match[2]}.{first + 1}")

    return rule


class TransformersMobileNetV2(ConfiguredSystem):
    """The same network in PyTorch: ASPP is image pooling and a 1x1 branch, without rates."""

    title = "transformers: MobileNetV2ForSemanticSegmentation"
    marks = (r"segmentation_head\.conv_aspp\.convolution\.weight", r"mobilenet_v2\.conv_stem\..*")

    def plan_beside(self, tensors: Tensors, config: Mapping[str, Any]) -> Plan:
        """See `System`."""
        rules.only(config, hidden_act="relu6", first_layer_is_expansion=True, expand_ratio=6, depth_divisible_by=8)
        encoder = mobile_encoder(len(tensors["mobilenet_v2.layer.15.reduce_1x1.convolution.weight"]))
        google = config.get("tf_padding", True)
        bands = tensors["mobilenet_v2.conv_stem.first_conv.convolution.weight"].shape[1]
        settings = {
            "network": "deeplabv3",
            "encoder": encoder if google else encoder.replace("google:", "timm:"),
            "output_stride": config.get("output_stride", 8),
            "rates": (),
            "resize": "half_pixel",
            **rules.CENTRED_INPUT,
            **({} if bands == 3 else {"in_channels": bands}),
        }
        plan = Plan(settings).fill(tensors, rules.batch_counter, _transformers_rule)
        return rules.with_epsilon(plan, config.get("layer_norm_eps", _EPSILON), _EPSILON if google else 1e-5)


def _transformers_rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
    match = re.fullmatch(r"(.+)\.(convolution|normalization)\.(\w+)", name)
    if match is None:
        return None
    layer, norm = match[1], match[2] == "normalization"
    heads = {"conv_aspp": "branches.0", "conv_pool": "branches.1.project", "conv_projection": "project"}
    if layer == "mobilenet_v2.conv_1x1":
        return Drop("for classification, not connected to the logits")
    if layer == "segmentation_head.classifier":
        return {f"head.classifier.{match[3]}": value}
    if layer.startswith("segmentation_head.") and layer.partition(".")[2] in heads:
        if layer.endswith("conv_projection") and not norm:
            value = rules.joined_in_order(value, len(value))
        return {f"head.aspp.{heads[layer.partition('.')[2]]}.{int(norm)}.{match[3]}": value}
    if layer == "mobilenet_v2.conv_stem.first_conv":
        return {f"encoder.net.{'bn1' if norm else 'conv_stem'}.{match[3]}": value}
    block = re.fullmatch(r"mobilenet_v2\.(?:conv_stem|layer\.(\d+))\.(expand_1x1|conv_3x3|reduce_1x1)", layer)
    if block is None:
        return None
    index = 0 if block[1] is None else int(block[1]) + 1
    place = mobile_block(index, ("expand_1x1", "conv_3x3", "reduce_1x1").index(block[2]))[norm]
    return {f"{place}.{match[3]}": value}
