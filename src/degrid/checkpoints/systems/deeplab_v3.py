"""DeepLab v3: two TensorFlow re-implementations, torchvision, segmentation_models.pytorch, and a small one for VOC."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from degrid.checkpoints.systems.deeplab_v2 import slim_v1
from degrid.checkpoints.systems.imagenet import resnet_of, slim_v2
from degrid.checkpoints.systems.plan import (
    Drop,
    Plan,
    Tensors,
    batch_counter,
    num_units,
    resnet_depth,
    tensorflow_leaf,
    training_state,
)
from degrid.types import ConversionError
from degrid.weight_names import mobilenet_v2_name

IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375), "bgr": False}
MINUS_ONE_TO_ONE = {"mean": (127.5, 127.5, 127.5), "std": (127.5, 127.5, 127.5), "bgr": False}
# ASPP's branches in our order: 1x1, the rates, image pooling.
_ND_ASPP = {"aspp/1x1conv": 0, "aspp/rate6": 1, "aspp/rate12": 2, "aspp/rate18": 3}
_ST_ASPP = {"conv_1x1_0": 0, "conv_3x3_1": 1, "conv_3x3_2": 2, "conv_3x3_3": 3}


def is_nd(tensors: Tensors) -> bool:
    """Names of ND's head."""
    return any(re.fullmatch(r"resnet_v1_\d+/aspp/1x1conv/weights", name) for name in tensors)


def nd(tensors: Tensors) -> Plan:
    """NanqingD/DeepLabV3-Tensorflow: slim ResNet v1 at output stride 16, multi-grid 1, 2, 4."""
    depth = resnet_depth(num_units(tensors, r"resnet_v1_\d+/block([1-4])/unit_(\d+)/"), "the file")
    model: dict[str, Any] = {
        "network": "deeplabv3",
        "encoder": f"slim:resnet_v1_{depth}",
        "output_stride": 16,
        "multi_grid": (1, 2, 4),
        "rates": (6, 12, 18),
        "mean": (104.00698793, 116.66876762, 122.67891434),
        "std": (1.0, 1.0, 1.0),
        "bgr": True,
        "legacy": True,
    }

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | None:
        match = re.fullmatch(r"resnet_v1_\d+/(aspp/\w+|img_pool/1x1conv|fusion/1x1conv|logits/Conv)/(.+)", name)
        if match is None:
            return slim_v1(name, value)
        part, leaf = match[1], match[2].removeprefix("BatchNorm/")
        if part == "logits/Conv":
            return tensorflow_leaf(leaf, value, "head.classifier", "")
        if part == "fusion/1x1conv":
            where = "head.aspp.project"
        elif part == "img_pool/1x1conv":
            where = "head.aspp.branches.4.project"
        elif part in _ND_ASPP:
            where = f"head.aspp.branches.{_ND_ASPP[part]}"
        else:
            return None
        return tensorflow_leaf(leaf, value, f"{where}.0", f"{where}.1")

    return Plan("DeepLab v3 of NanqingD/DeepLabV3-Tensorflow (ND)", "model", model).fill(tensors, training_state, rule)


def is_st(tensors: Tensors) -> bool:
    """Names of ST's head."""
    return any(name.startswith("DeepLab_v3/ASPP_layer/") for name in tensors)


def st(tensors: Tensors) -> Plan:
    """sthalles/deeplab_v3: slim ResNet v2, features taken before the last batch norm, a head without ReLU.

    The output stride is not in the file: 16, that system's default.
    """
    depth = resnet_depth(num_units(tensors, r"resnet_v2_\d+/block([1-4])/unit_(\d+)/"), "the file")
    model: dict[str, Any] = {
        "network": "deeplabv3_linear",
        "encoder": f"slim:resnet_v2_{depth}",
        "output_stride": 16,
        "multi_grid": (1, 2, 4),
        "rates": (6, 12, 18),
        "legacy": True,
    }

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | Drop | None:
        if re.match(r"resnet_v2_\d+/(postnorm|logits)/", name):
            return Drop("built by the original code and not connected to its output")
        if name.startswith("DeepLab_v3/logits/"):
            return tensorflow_leaf(name.rpartition("/")[2], value, "head.classifier", "")
        match = re.fullmatch(r"DeepLab_v3/ASPP_layer/(\w+)/(.+)", name)
        if match is None:
            return slim_v2(name, value)
        part, leaf = match[1], match[2].removeprefix("BatchNorm/")
        if part == "image_level_conv_1x1":
            where = "head.aspp.branches.4.project"
        elif part in _ST_ASPP:
            where = f"head.aspp.branches.{_ST_ASPP[part]}"
        elif part == "conv_1x1_output":
            where = "head.aspp.project"
            if leaf == "weights":  # there image pooling comes first, here last
                width = value.shape[-1]
                value = np.concatenate([value[:, :, width:], value[:, :, :width]], axis=2)
        else:
            return None
        return tensorflow_leaf(leaf, value, f"{where}.0", f"{where}.1")

    plan = Plan("DeepLab v3 of sthalles/deeplab_v3 (ST)", "model", model)
    plan.notes.append("the file does not say its output stride; 16 is assumed (change it with --set output_stride=8)")
    return plan.fill(tensors, training_state, rule)


def is_torchvision(tensors: Tensors) -> bool:
    """Names of torchvision's deeplabv3_*."""
    return "classifier.0.convs.0.0.weight" in tensors


def torchvision(tensors: Tensors) -> Plan:
    """torchvision's deeplabv3_resnet50, deeplabv3_resnet101 and deeplabv3_mobilenet_v3_large."""
    mobile = "backbone.0.0.weight" in tensors
    if mobile:
        encoder = "torchvision:mobilenet_v3_large"
    else:
        depth = resnet_depth(num_units(tensors, r"backbone\.layer([1-4])\.(\d+)\."), "the file")
        encoder = f"timm:resnet{depth}"
    model: dict[str, Any] = {
        "network": "deeplabv3_refined",
        "encoder": encoder,
        "output_stride": 16 if mobile else 8,
        "rates": (12, 24, 36),
        "dropout": 0.5,
        **IMAGENET,
    }

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | Drop | None:
        if name.startswith("aux_classifier."):
            return Drop("second head, used for the training loss only")
        if name.startswith("backbone."):
            return {name.replace("backbone.", "encoder.net.", 1): value}
        places = {"1": "head.refine.0", "2": "head.refine.1", "4": "head.classifier"}
        match = re.fullmatch(r"classifier\.(\d)\.(.+)", name)
        if match and match[1] == "0":
            return _aspp(match[2], value)
        return {f"{places[match[1]]}.{match[2]}": value} if match and match[1] in places else None

    return Plan("torchvision's DeepLab v3", "model", model).fill(tensors, batch_counter, rule)


def _aspp(name: str, value: np.ndarray) -> dict[str, np.ndarray] | None:
    """A tensor of torchvision's ASPP; segmentation_models.pytorch has the same names."""
    if match := re.fullmatch(r"project\.([01])\.(\w+)", name):
        return {f"head.aspp.project.{match[1]}.{match[2]}": value}
    if match := re.fullmatch(r"convs\.4\.([12])\.(\w+)", name):  # 0 is the pooling
        return {f"head.aspp.branches.4.project.{int(match[1]) - 1}.{match[2]}": value}
    if match := re.fullmatch(r"convs\.([1-3])\.0\.([01])\.weight", name):  # a separable branch in two halves
        return {f"head.aspp.branches.{match[1]}.{match[2]}.weight": value}
    if match := re.fullmatch(r"convs\.([0-3])\.([01])\.(\w+)", name):
        return {f"head.aspp.branches.{match[1]}.{match[2]}.{match[3]}": value}
    return None


def is_smp(tensors: Tensors) -> bool:
    """Names of segmentation_models.pytorch's DeepLabV3 or DeepLabV3Plus."""
    return "decoder.aspp.convs.0.0.weight" in tensors or "decoder.aspp.0.convs.0.0.weight" in tensors


def smp(tensors: Tensors) -> Plan:
    """segmentation_models.pytorch: DeepLabV3 at output stride 8, DeepLabV3Plus at 16, rates 12, 24, 36: its defaults.

    Raises:
        ConversionError: an encoder other than ResNet-18 to 152.
    """
    plus = "decoder.aspp.0.convs.0.0.weight" in tensors
    encoder = resnet_of(tensors, "encoder.")
    if encoder is None:
        raise ConversionError(
            "this model of segmentation_models.pytorch has an encoder that degrid cannot convert; it can convert "
            "those on ResNet-18, 34, 50, 101 and 152"
        )
    separable = plus or "decoder.aspp.convs.1.0.0.weight" in tensors
    if separable and not plus:
        raise ConversionError("a DeepLabV3 with separable ASPP cannot be converted; DeepLabV3Plus can")
    model: dict[str, Any] = {
        "network": "deeplabv3plus_smp" if plus else "deeplabv3_refined",
        "encoder": f"timm:{encoder}",
        "output_stride": 16 if plus else 8,
        "rates": (12, 24, 36),
        "dropout": 0.5,
        "uniform_rates": True,
        "resize": "align_corners",
        **IMAGENET,
    }
    # Our after_aspp and refine: depthwise, 1x1, batch norm.
    places = {
        r"decoder\.aspp\.1\.([01])\.(weight)": ("head.after_aspp", 0),
        r"decoder\.aspp\.(2)\.(\w+)": ("head.after_aspp", 0),
        r"decoder\.block1\.([01])\.(\w+)": ("head.reduce", 0),
        r"decoder\.block2\.0\.([01])\.(weight)": ("head.refine", 0),
        r"decoder\.block2\.(1)\.(\w+)": ("head.refine", 1),
    }

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | None:
        if name.startswith("encoder."):
            return {name.replace("encoder.", "encoder.net.", 1): value}
        if name.startswith("segmentation_head.0."):
            return {name.replace("segmentation_head.0", "head.classifier"): value}
        inside = "decoder.aspp.0." if plus else "decoder.aspp."
        if name.startswith(inside):
            return _smp_aspp(name.removeprefix(inside), value, separable)
        if match := re.fullmatch(r"decoder\.(conv|bn)\.(\w+)", name):
            return {f"head.refine.{0 if match[1] == 'conv' else 1}.{match[2]}": value}
        for pattern, (place, shift) in places.items():
            if match := re.fullmatch(pattern, name):
                return {f"{place}.{int(match[1]) + shift}.{match[2]}": value}
        return None

    plan = Plan("DeepLab of segmentation_models.pytorch", "model", model)
    plan.notes.append(
        "the file does not say its output stride and rates; that library's defaults are assumed: "
        f"{model['output_stride']} and 12,24,36 (change them with --set output_stride=.. and --set rates=..)"
    )
    return plan.fill(tensors, batch_counter, rule)


def _smp_aspp(name: str, value: np.ndarray, separable: bool) -> dict[str, np.ndarray] | None:
    match = re.fullmatch(r"convs\.([1-3])\.1\.(\w+)", name)
    if separable and match:  # batch norm comes third in our separable branch
        return {f"head.aspp.branches.{match[1]}.2.{match[2]}": value}
    return _aspp(name, value)


def is_mobilenet_v2_voc(tensors: Tensors) -> bool:
    """Names of the small DeepLab v3 on MobileNetV2."""
    return "head.aspp0.0.weight" in tensors and "features.0.0.weight" in tensors


def mobilenet_v2_voc(tensors: Tensors) -> Plan:
    """TensorFlow's mobilenetv2_dm08/10 DeepLab in torchvision names: image pooling and a 1x1 branch, no rates."""
    model: dict[str, Any] = {
        "network": "deeplabv3",
        "encoder": "timm:mobilenetv2_100",
        "output_stride": 8,
        "rates": (),
        "resize": "align_corners",
        **MINUS_ONE_TO_ONE,
    }
    parts = {"aspp0": "branches.0", "image_pooling": "branches.1.project", "concat_projection": "project"}

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | None:
        if name.startswith("head.logits."):
            return {name.replace("logits", "classifier"): value}
        if match := re.fullmatch(r"head\.(aspp0|image_pooling|concat_projection)\.([01])\.(\w+)", name):
            if match[1] == "concat_projection" and match[2] == "0":  # there image pooling comes first, here last
                half = value.shape[1] // 2
                value = np.concatenate([value[:, half:], value[:, :half]], axis=1)
            return {f"head.aspp.{parts[match[1]]}.{match[2]}.{match[3]}": value}
        renamed = mobilenet_v2_name(name)
        return {f"encoder.net.{renamed}": value} if renamed else None

    return Plan("DeepLab v3 on MobileNetV2 (TensorFlow's, torchvision names)", "model", model).fill(
        tensors, batch_counter, rule
    )
