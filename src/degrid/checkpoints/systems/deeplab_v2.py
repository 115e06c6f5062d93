"""DeepLab v2: the TensorFlow code of Wang & Ji and of Ziegler et al. with its ancestors, Caffe, and two in PyTorch."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from degrid.checkpoints.systems.plan import (
    Drop,
    Plan,
    Rule,
    Tensors,
    batch_counter,
    num_units,
    resnet_depth,
    tensorflow_leaf,
    training_state,
)
from degrid.types import ConversionError

CAFFE_MEAN = (104.008, 116.669, 122.675)
_MULTI_SCALE = {"resize": "align_corners", "scales": (0.75, 0.5)}
_UNIT = re.compile(r"(res|bn|scale)(\d)([a-z]\d*)_branch(1|2a|2b|2c)")
_SLIM_UNIT = re.compile(r"resnet_v1_\d+/block(\d)/unit_(\d+)/bottleneck_v1/(shortcut|conv1|conv2|conv3)/(.+)")
_PLACES = {
    "1": ("downsample.0", "downsample.1"),
    "2a": ("conv1", "bn1"),
    "2b": ("conv2", "bn2"),
    "2c": ("conv3", "bn3"),
}
_TORCH_UNIT = r"layer(\d)\.(\d+)\."


def unit_name(stage: str, letter: str) -> str:
    """Caffe's unit "4", "b12" -> ours, "layer3.12"."""
    index = int(letter[1:]) if len(letter) > 1 else "abcdefgh".index(letter)
    return f"layer{int(stage) - 1}.{index}"


def caffe_layer(layer: str) -> tuple[str, str] | None:
    """Our names of the convolution and batch norm that a layer of Caffe's ResNet belongs to."""
    if layer in ("conv1", "bn_conv1", "scale_conv1"):
        return "encoder.conv1", "encoder.bn1"
    if match := _UNIT.fullmatch(layer):
        conv, norm = _PLACES[match[4]]
        unit = f"encoder.{unit_name(match[2], match[3])}"
        return f"{unit}.{conv}", f"{unit}.{norm}"
    if match := re.fullmatch(r"fc1_(?:\w+_)?c(\d)", layer):
        return f"head.branches.{match[1]}", ""
    return None


def dilated_type(tensors: Tensors) -> dict[str, Any]:
    """Which smoothing a TensorFlow checkpoint was trained with, from the variables it adds: a SmoothingConfig."""
    names = [name for name in tensors if training_state(name, tensors[name]) is None]
    residuals = [tensors[name] for name in names if name.endswith("/fix_w")]
    trained_box = any(re.search(r"(^|/)w_avg(_\d+)?$", name) for name in names)
    gaussian = any(re.search(r"(^|/)w_gauss_value(_\d+)?$", name) for name in names)
    sigmas = [name for name in names if name.endswith("gauss_sigma")]
    sigma: dict[str, Any] = {"sigma": "shared" if len(sigmas) == 1 else "layer"} if sigmas else {}
    if "c_vector" in names:
        return {"operator": "aggregation", "options": sigma}
    if residuals:
        return {"operator": "gi" if residuals[0].ndim == 2 else "ssc"}
    if trained_box:
        return {"operator": "average"}
    return {"operator": "gaussian", "options": sigma} if gaussian else {"operator": "regular"}


def _smoothing_rule(convs: dict[str, list[str]]) -> Rule:
    """The variables of smoothing.

    Args:
        convs: by scope ("" for the whole network), our names of the smoothed convolutions in the order they were made.
    """
    everywhere = [conv for scope in convs.values() for conv in scope]

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | Drop | None:
        scope, _, leaf = name.rpartition("/")
        if leaf == "c_vector":
            return {f"{conv}.smoothing.mix": value for conv in everywhere}
        if leaf == "gauss_sigma" and scope == "":
            return {f"{conv}.smoothing.sigma": value for conv in everywhere}
        match = re.fullmatch(r"(w_avg|w_gauss_value)(?:_(\d+))?", leaf)
        if match is None or scope not in convs:
            return None
        if match[1] == "w_gauss_value":
            if np.any(value):
                raise ConversionError(f"{name} is not zero; the original code never trains it and adds it to a filter")
            return Drop("a constant zero that the original code stores")
        index = int(match[2] or 0)
        if index >= len(convs[scope]):
            return None
        return {f"{convs[scope][index]}.smoothing.weight": value.transpose(2, 3, 0, 1)}

    return rule


def _layer_smoothing(conv: str, leaf: str, value: np.ndarray) -> dict[str, np.ndarray] | None:
    if leaf == "fix_w":
        name, array = ("weight", value) if value.ndim == 2 else ("residual", value.reshape(value.shape[:2]))
        return {f"{conv}.smoothing.{name}": array}
    return {f"{conv}.smoothing.sigma": value} if leaf == "gauss_sigma" else None


def _tensorflow_model(encoder: str, tensors: Tensors) -> dict[str, Any]:
    return {
        "network": "deeplabv2",
        "encoder": encoder,
        "output_stride": 8,
        "legacy": True,
        "smoothing": dilated_type(tensors),
    }


def is_tensorflow(tensors: Tensors) -> bool:
    """Names of the "deeplab" encoder in TensorFlow."""
    return "res2a_branch2a/weights" in tensors


def tensorflow(tensors: Tensors) -> Plan:
    """ETH, KDD, ZW, DS with the Caffe-style ResNet (facts: section 6.1 of their variables' names)."""
    units = num_units(tensors, r"res(\d)([a-z]\d*)_branch2a/weights")
    depth = resnet_depth(units, "the file")
    model = _tensorflow_model(f"caffe:resnet{depth}", tensors)
    smoothed = [f"encoder.layer{stage}.{unit}.conv2" for stage in (3, 4) for unit in range(units[stage - 1])]

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | None:
        layer, _, leaf = name.replace("/BatchNorm/", "/").rpartition("/")
        places = caffe_layer(layer)
        if places is None:
            return None
        return _layer_smoothing(places[0], leaf, value) or tensorflow_leaf(leaf, value, *places)

    plan = Plan("DeepLab v2 in TensorFlow (ETH, KDD, ZW, DS)", "model", model)
    return plan.fill(tensors, training_state, rule, _smoothing_rule({"": smoothed}))


def is_tensorflow_slim(tensors: Tensors) -> bool:
    """Names of the "res50" and "res101" encoders with DeepLab v2's decoder."""
    return "decoder/aspp/conv1/weights" in tensors


def tensorflow_slim(tensors: Tensors) -> Plan:
    """ETH, KDD, ZW with the encoders res50 and res101, which have slim's names."""
    units = num_units(tensors, r"resnet_v1_\d+/block(\d)/unit_(\d+)/")
    root = next(name.split("/")[0] for name in tensors if name.startswith("resnet_v1_"))
    model = _tensorflow_model(f"caffe:resnet{resnet_depth(units, 'the file')}", tensors)
    smoothed = {
        f"{root}/block{stage}": [f"encoder.layer{stage}.{unit}.conv2" for unit in range(units[stage - 1])]
        for stage in (3, 4)
    }

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | None:
        if match := re.fullmatch(r"decoder/aspp/conv(\d)/(weights|biases)", name):
            return tensorflow_leaf(match[2], value, f"head.branches.{int(match[1]) - 1}", "")
        return slim_v1(name, value)

    plan = Plan("DeepLab v2 in TensorFlow with a slim ResNet (ETH, KDD, ZW)", "model", model)
    return plan.fill(tensors, training_state, rule, _smoothing_rule(smoothed))


def slim_v1(name: str, value: np.ndarray) -> dict[str, np.ndarray] | None:
    """A variable of slim's ResNet v1, with the prefix "encoder."."""
    name = name.replace("/BatchNorm/", "/")
    if match := re.fullmatch(r"resnet_v1_\d+/conv1/(\w+)", name):
        return tensorflow_leaf(match[1], value, "encoder.conv1", "encoder.bn1")
    if match := _SLIM_UNIT.fullmatch(name):
        unit = f"encoder.layer{match[1]}.{int(match[2]) - 1}"
        conv = "downsample.0" if match[3] == "shortcut" else match[3]
        norm = "downsample.1" if match[3] == "shortcut" else match[3].replace("conv", "bn")
        smoothing = _layer_smoothing(f"{unit}.{conv}", match[4], value)
        return smoothing or tensorflow_leaf(match[4], value, f"{unit}.{conv}", f"{unit}.{norm}")
    return None


def is_caffe(tensors: Tensors) -> bool:
    """Names of Caffe's blobs."""
    return "res2a_branch2a/0" in tensors


def caffe(tensors: Tensors) -> Plan:
    """Caffe's DeepLab v2, single or multi-scale; batch norm is split into BatchNorm and Scale layers.

    BatchNorm's blobs are mean and variance times a factor, and the factor; Scale's are gamma and beta.
    """
    units = num_units(tensors, r"res(\d)([a-z]\d*)_branch2a/0")
    copies = [name for name in tensors if re.search(r"_res(075|05)(_c\d)?/", name)]
    model: dict[str, Any] = {
        "network": "deeplabv2",
        "encoder": f"caffe:resnet{resnet_depth(units, 'the file')}",
        "output_stride": 8,
        "mean": CAFFE_MEAN,
        "std": (1.0, 1.0, 1.0),
        "bgr": True,
        **(_MULTI_SCALE if copies else {"resize": "align_corners"}),
    }

    def shared(name: str, value: np.ndarray) -> Drop | None:
        if name not in copies:
            return None
        single = re.sub(r"_res(075|05)", "", name)
        if single in tensors and not np.array_equal(value, tensors[single]):
            raise ConversionError(
                f"{name} differs from {single}: the scales of this network do not share their weights"
            )
        return Drop("the same weights at another scale")

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | Drop | None:
        layer, _, blob = name.rpartition("/")
        places = caffe_layer(layer)
        if places is None:
            return None
        conv, norm = places
        if layer.startswith("bn"):
            if blob == "2":
                return Drop("factor of the batch norm statistics, divided out")
            factor = float(np.ravel(tensors[f"{layer}/2"])[0]) if f"{layer}/2" in tensors else 1.0
            scale = 1 / factor if factor else 0.0
            return {f"{norm}.{'running_mean' if blob == '0' else 'running_var'}": value.reshape(-1) * np.float32(scale)}
        leaf = "weight" if blob == "0" else "bias"
        if layer.startswith("scale"):
            return {f"{norm}.{leaf}": value.reshape(-1)}
        return {f"{conv}.{leaf}": value if leaf == "weight" else value.reshape(-1)}

    return Plan("DeepLab v2 in Caffe", "model", model).fill(tensors, shared, rule)


def is_isht7(tensors: Tensors) -> bool:
    """Names of the multi-scale network in early PyTorch."""
    return "Scale.conv1.weight" in tensors


def isht7(tensors: Tensors) -> Plan:
    """IS: multi-scale DeepLab v2 in PyTorch 0.1 to 0.3."""
    depth = resnet_depth(num_units(tensors, r"Scale\." + _TORCH_UNIT), "the file")

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | None:
        if match := re.fullmatch(r"Scale\.layer5\.conv2d_list\.(\d)\.(weight|bias)", name):
            return {f"head.branches.{match[1]}.{match[2]}": value}
        if re.match(r"Scale\.(conv1|bn1|layer[1-4])\.", name):
            return {name.replace("Scale.", "encoder.", 1): value}
        return None

    plan = Plan("multi-scale DeepLab v2 in PyTorch (IS)", "model", _pytorch_model(depth))
    return plan.fill(tensors, batch_counter, rule)


def is_kazuto1011(tensors: Tensors) -> bool:
    """Names of kazuto1011/deeplab-pytorch, either revision, with or without its multi-scale wrapper."""
    return any(name.endswith("layer2.block1.reduce.conv.weight") for name in tensors)


def kazuto1011(tensors: Tensors) -> Plan:
    """DeepLab v2 of kazuto1011/deeplab-pytorch: layer2 to layer5 are the four stages."""
    wrapped = any(name.startswith(("base.", "scale.")) for name in tensors)
    units = num_units(tensors, r"(?:base\.|scale\.)?layer(\d)\.block(\d+)\.reduce\.conv\.weight")
    model = _pytorch_model(resnet_depth(units, "the file"))
    model |= {"resize": "half_pixel", "scales": (0.75, 0.5) if wrapped else ()}
    parts = {"reduce": "1", "conv3x3": "2", "increase": "3"}

    def rule(name: str, value: np.ndarray) -> dict[str, np.ndarray] | None:
        name = re.sub(r"^(base|scale)\.", "", name)
        if match := re.fullmatch(r"layer1\.conv1\.(conv|bn)\.(.+)", name):
            return {f"encoder.{match[1]}1.{match[2]}": value}
        if match := re.fullmatch(r"aspp\.(?:stages\.)?c(\d)\.(weight|bias)", name):
            return {f"head.branches.{match[1]}.{match[2]}": value}
        match = re.fullmatch(r"layer(\d)\.block(\d+)\.(\w+)\.(conv|bn)\.(.+)", name)
        if match is None:
            return None
        unit = f"encoder.layer{int(match[1]) - 1}.{int(match[2]) - 1}"
        if match[3] in parts:
            return {f"{unit}.{match[4]}{parts[match[3]]}.{match[5]}": value}
        if match[3] in ("shortcut", "proj"):
            return {f"{unit}.downsample.{0 if match[4] == 'conv' else 1}.{match[5]}": value}
        return None

    return Plan("DeepLab v2 of kazuto1011/deeplab-pytorch", "model", model).fill(tensors, batch_counter, rule)


def _pytorch_model(depth: str) -> dict[str, Any]:
    return {
        "network": "deeplabv2",
        "encoder": f"caffe:resnet{depth}",
        "output_stride": 8,
        "mean": CAFFE_MEAN,
        "std": (1.0, 1.0, 1.0),
        "bgr": True,
        **_MULTI_SCALE,
    }
