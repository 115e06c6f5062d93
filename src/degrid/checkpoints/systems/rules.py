"""Rules that several systems share: leaves of TensorFlow, training state, and the names of ResNets and of ASPP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from degrid.checkpoints.systems.plan import Drop, Plan, Rule, Tensors, first_match
from degrid.types import MSC_SCALES, ConversionError
from degrid.weight_names import BOTTLENECK_RESNETS, is_counter, num_units

Found = dict[str, np.ndarray]
"""Values by our names."""

CAFFE_INPUT = {"mean": (104.008, 116.669, 122.675), "std": (1.0, 1.0, 1.0), "bgr": True}
IMAGENET_INPUT = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375), "bgr": False}
CENTRED_INPUT = {"mean": (127.5, 127.5, 127.5), "std": (127.5, 127.5, 127.5), "bgr": False}
PRECISE_CAFFE_INPUT = {**CAFFE_INPUT, "mean": (104.00698793, 116.66876762, 122.67891434)}
ALIGNED = {"resize": "align_corners", "head_resize": "align_corners"}
MULTI_SCALE = {"resize": "align_corners", "scales": MSC_SCALES}

# --- every system


def batch_counter(name: str, value: np.ndarray) -> Drop | None:
    """PyTorch's count of batches: evaluation does not use it, and a new training counts from zero."""
    return Drop("batch counter") if is_counter(name) else None


def bottleneck_resnet(tensors: Tensors, pattern: str) -> tuple[str, tuple[int, ...]]:
    """The depth of a ResNet of bottlenecks, as in the encoders' names, and its units per stage.

    Args:
        tensors: the file's.
        pattern: of the units' names; its two groups are the stage and the unit.
    Raises:
        ConversionError: no known ResNet has these units.
    """
    units = num_units(tensors, pattern)
    for depth, known in BOTTLENECK_RESNETS.items():
        if known == units:
            return depth, units
    known_units = ", ".join(map(str, BOTTLENECK_RESNETS.values()))
    raise ConversionError(f"the file has {units} units in its stages, which is no known ResNet: {known_units}")


def placed(places: Mapping[str, str], name: str, value: np.ndarray) -> Found | None:
    """A tensor whose layer has a place: our name of the layer by the file's, and the same leaf ("weight")."""
    layer, _, leaf = name.rpartition(".")
    return {f"{places[layer]}.{leaf}": value} if layer in places else None


def aspp_places(branch: str, parts: tuple[str, str], first: int = 1) -> dict[str, str]:
    """Our names of the layers in ASPP's four convolutions.

    Args:
        branch: the file's name of a branch, with {} for its number. parts: of its convolution and its batch norm.
        first: number of the first branch.
    """
    return {
        f"{branch.format(index + first)}{part}": f"head.aspp.branches.{index}.{place}"
        for index in range(4)
        for place, part in enumerate(parts)
    }


def no_encoder(project: str, able: str) -> ConversionError:
    """The error that a project's model has an encoder that cannot be converted; `able`: those that can."""
    return ConversionError(
        f"this model of {project} has an encoder that degrid cannot convert; it can convert those on {able}"
    )


def joined_in_order(value: np.ndarray, *widths: int, axis: int = 1) -> np.ndarray:
    """The weights [out,in,h,w] of a convolution whose input joins other parts in another order.

    Args:
        widths: channels of the file's parts, in the file's order, without the last; it comes first here.
        axis: of the input's channels; 0 for a depthwise convolution.
    """
    first, last = np.split(value, [sum(widths)], axis=axis)
    return np.concatenate([last, first], axis=axis)


def fold_biases(plan: Plan) -> Plan:
    """Biases of convolutions before batch norm, which these networks do not have, subtracted from its running mean.

    They are known by their place: one before that of a batch norm in a sequence. Returns the plan itself.
    """
    for name in list(plan.tensors):
        match = re.fullmatch(r"(.+)\.(\d+)\.bias", name)
        if match is None or f"{match[1]}.{match[2]}.running_mean" in plan.tensors:
            continue
        mean = f"{match[1]}.{int(match[2]) + 1}.running_mean"
        if mean in plan.tensors:
            plan.tensors[mean] = plan.tensors[mean] - plan.tensors.pop(name)
            plan.dropped[plan.origins.pop(name)] = "bias before batch norm, subtracted from its running mean"
    return plan


def only(config: Mapping[str, Any], **known: object) -> None:
    """Make sure that settings beside a file are those that degrid has; what they do not say is as usual.

    Raises:
        ConversionError: one is another.
    """
    for name, value in known.items():
        if config.get(name, value) != value:
            raise ConversionError(
                f"its config.json says that {name} is {config[name]!r:.100}; degrid can convert networks where it is "
                f"{value!r}"
            )


def with_epsilon(plan: Plan, theirs: float, ours: float, part: str = "encoder.") -> Plan:
    """Keep the batch norm epsilon of the file's encoder: what it has more than ours is added to the variances.

    Args:
        part: what our names begin with, for another part of the network.

    Returns the plan itself.
    """
    if theirs != ours:
        plan.tensors |= {
            name: value + np.float32(theirs - ours)
            for name, value in plan.tensors.items()
            if name.startswith(part) and name.endswith(".running_var")
        }
    return plan


def of_either_stride(settings: dict[str, Any], *others: str) -> Plan:
    """A plan for a file that does not say its output stride, its rates, and the settings `others`."""
    stride, rates = (8, "12,24,36") if settings["output_stride"] == 16 else (16, "6,12,18")
    other = f"{stride} --set rates={rates}" if settings["rates"] else str(stride)  # some have a 1x1 branch alone
    return Plan(
        settings,
        assumed=("output_stride", *(["rates"] if settings["rates"] else []), *others),
        otherwise=f"for a network of the other stride --set output_stride={other}",
    )


# --- TensorFlow

_SLOTS = re.compile(
    r"(.*/)?(Momentum|Adam|Adam_1|RMSProp|RMSProp_1|beta1_power|beta2_power)|optimizer_vars/.*|(.*/)?optimizer/.*"
)


def training_state(name: str, value: np.ndarray) -> Drop | None:
    """What only the continuation of a training would need."""
    if name.endswith("global_step"):
        return Drop("step counter")
    return Drop("optimiser state") if _SLOTS.fullmatch(name) else None


def moving_average(name: str, value: np.ndarray) -> Drop | None:
    """The averages of weights that research/deeplab's trainer may keep beside them."""
    return Drop("moving average of a weight") if name.endswith("/ExponentialMovingAverage") else None


def tensorflow_leaf(leaf: str, value: np.ndarray, conv: str, norm: str) -> Found | None:
    """A variable of a convolution or of its batch norm.

    Args:
        leaf: the last part of the variable's name.
        value: its value; the weights of a convolution are [height, width, in, out].
        conv: our name of the convolution.
        norm: our name of the batch norm.
    """
    leaves = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    if leaf in leaves:
        return {f"{norm}.{leaves[leaf]}": value}
    if leaf == "weights" and value.ndim == 4:
        return {f"{conv}.weight": value.transpose(3, 2, 0, 1)}
    return {f"{conv}.bias": value} if leaf == "biases" else None


def tensorflow_v2_settings(tensors: Tensors, depth: str) -> dict[str, Any]:
    """The settings of a DeepLab v2 in TensorFlow."""
    return {
        "network": "deeplabv2",
        "encoder": f"caffe:resnet{depth}",
        "output_stride": 8,
        "legacy": True,
        "smoothing": dilated_type(tensors),
    }


def dilated_type(tensors: Tensors) -> dict[str, Any]:
    """Which smoothing a TensorFlow checkpoint was trained with, from the variables it adds: a SmoothingConfig."""
    variables = {name: value for name, value in tensors.items() if training_state(name, value) is None}
    sigmas = [name for name in variables if name.endswith("gauss_sigma")]
    sigma = {"options": {"sigma": "shared" if len(sigmas) == 1 else "layer"} if sigmas else {}}
    if "c_vector" in variables:
        return {"operator": "aggregation", **sigma}
    if residual := first_match(variables, r".*/fix_w"):
        return {"operator": "gi" if variables[residual].ndim == 2 else "ssc"}
    if first_match(variables, r"(.*/)?w_avg(_\d+)?"):
        return {"operator": "average"}
    gaussian = first_match(variables, r"(.*/)?w_gauss_value(_\d+)?")
    return {"operator": "gaussian", **sigma} if gaussian else {"operator": "regular"}


def layer_smoothing(conv: str, leaf: str, value: np.ndarray) -> Found | None:
    """A variable of smoothing that a layer has for itself; `conv` is our name of the layer."""
    if leaf == "fix_w":
        name, array = ("weight", value) if value.ndim == 2 else ("residual", value.reshape(value.shape[:2]))
        return {f"{conv}.smoothing.{name}": array}
    return {f"{conv}.smoothing.sigma": value} if leaf == "gauss_sigma" else None


def shared_smoothing(convs: dict[str, list[str]]) -> Rule:
    """A rule for the variables of smoothing that lie outside the layers.

    Args:
        convs: by scope ("" for the whole network) our names of the smoothed convolutions, in the order in which the
            original code makes them.
    """
    everywhere = [conv for scope in convs.values() for conv in scope]

    def rule(name: str, value: np.ndarray) -> Found | Drop | None:
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


# --- ResNets: Caffe, slim

_CAFFE_UNIT = re.compile(r"(res|bn|scale)(\d)([a-z]\d*)_branch(1|2a|2b|2c)")
_CAFFE_PARTS = {
    "1": ("downsample.0", "downsample.1"),
    "2a": ("conv1", "bn1"),
    "2b": ("conv2", "bn2"),
    "2c": ("conv3", "bn3"),
}
_SLIM_UNIT = r"resnet_{0}_\d+/block(\d)/unit_(\d+)/bottleneck_{0}/(preact|shortcut|conv1|conv2|conv3)/(.+)"


def caffe_layer(layer: str) -> tuple[str, str] | None:
    """Our names of the convolution and the batch norm that a layer of Caffe's DeepLab v2 belongs to.

    Caffe counts the units of a stage as a, b, c or as a, b1, b2.
    """
    if layer in ("conv1", "bn_conv1", "scale_conv1"):
        return "encoder.conv1", "encoder.bn1"
    if match := _CAFFE_UNIT.fullmatch(layer):
        stage, letter = int(match[2]) - 1, match[3]
        index = int(letter[1:]) if len(letter) > 1 else ord(letter) - ord("a")
        conv, norm = _CAFFE_PARTS[match[4]]
        return f"encoder.layer{stage}.{index}.{conv}", f"encoder.layer{stage}.{index}.{norm}"
    if match := re.fullmatch(r"fc1_(?:\w+_)?c(\d)", layer):
        return f"head.branches.{match[1]}", ""
    return None


def slim_v1(name: str, value: np.ndarray) -> Found | None:
    """A variable of the ResNet v1 in TensorFlow's slim."""
    name = name.replace("/BatchNorm/", "/")
    if match := re.fullmatch(r"resnet_v1_\d+/conv1/(\w+)", name):
        return tensorflow_leaf(match[1], value, "encoder.conv1", "encoder.bn1")
    if match := re.fullmatch(_SLIM_UNIT.format("v1"), name):
        unit = f"encoder.layer{match[1]}.{int(match[2]) - 1}"
        conv = "downsample.0" if match[3] == "shortcut" else match[3]
        norm = "downsample.1" if match[3] == "shortcut" else match[3].replace("conv", "bn")
        smoothing = layer_smoothing(f"{unit}.{conv}", match[4], value)
        return smoothing or tensorflow_leaf(match[4], value, f"{unit}.{conv}", f"{unit}.{norm}")
    return None


def slim_v2(name: str, value: np.ndarray) -> Found | None:
    """A variable of the ResNet v2 (pre-activation) in TensorFlow's slim."""
    name = name.replace("/BatchNorm/", "/")
    if match := re.fullmatch(r"resnet_v2_\d+/conv1/(\w+)", name):
        return tensorflow_leaf(match[1], value, "encoder.conv1", "")
    if match := re.fullmatch(r"resnet_v2_\d+/postnorm/(\w+)", name):
        return tensorflow_leaf(match[1], value, "", "encoder.norm.0")
    if match := re.fullmatch(_SLIM_UNIT.format("v2"), name):
        unit = f"encoder.layer{match[1]}.{int(match[2]) - 1}"
        conv = "downsample" if match[3] == "shortcut" else match[3]
        return tensorflow_leaf(match[4], value, f"{unit}.{conv}", f"{unit}.{match[3].replace('conv', 'bn')}")
    return None


# --- ASPP: torchvision, segmentation_models.pytorch


def torchvision_aspp(name: str, value: np.ndarray, separable: bool = False) -> Found | None:
    """A tensor of torchvision's ASPP, its name without the module's; segmentation_models.pytorch has the same names.

    Args:
        separable: the 3x3 branches are a depthwise and a 1x1 convolution, and batch norm.
    """
    if match := re.fullmatch(r"project\.([01])\.(\w+)", name):
        return {f"head.aspp.project.{match[1]}.{match[2]}": value}
    if match := re.fullmatch(r"convs\.4\.([12])\.(\w+)", name):  # 0 is the pooling
        return {f"head.aspp.branches.4.project.{int(match[1]) - 1}.{match[2]}": value}
    if match := re.fullmatch(r"convs\.([1-3])\.0\.([01])\.weight", name):  # the two halves of a separable branch
        return {f"head.aspp.branches.{match[1]}.{match[2]}.weight": value}
    if separable and (match := re.fullmatch(r"convs\.([1-3])\.1\.(\w+)", name)):
        return {f"head.aspp.branches.{match[1]}.2.{match[2]}": value}
    if match := re.fullmatch(r"convs\.([0-3])\.([01])\.(\w+)", name):
        return {f"head.aspp.branches.{match[1]}.{match[2]}.{match[3]}": value}
    return None
