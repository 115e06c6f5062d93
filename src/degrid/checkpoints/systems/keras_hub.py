"""keras-hub: DeepLab v3 and v3+, whose files number the layers of a kind and drop their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import ConfiguredSystem, Drop, Plan, Rule, Tensors
from degrid.types import ConversionError
from degrid.weight_names import BASIC_RESNETS, BOTTLENECK_RESNETS

_WHOLE = "layers/deep_lab_v3_backbone/"  # before the names of a segmenter's backbone
_CLASSIFIER = "classifier"
_NORM = ("weight", "bias", "running_mean", "running_var")
_LAYER = r"layers/(conv2d|batch_normalization)(?:_(\d+))?/vars/(\d)"
_BRANCH = r"layers/spatial_pyramid_pooling/(?:aspp_parallel_channels/sequential(?:_(\d+))?|(projection))/"
_EPSILON = 1e-3  # of the head, Keras's default; its encoders have ours


class KerasHub(ConfiguredSystem):
    """Layers are numbered in the order in which Keras sorts them: by their distance from the outputs.

    The shortcut of a unit is as far from them as its last convolution, and comes before it.
    """

    title = "keras-hub: DeepLab v3, v3+"
    marks = (rf"({_WHOLE})?layers/spatial_pyramid_pooling/.*/conv2d/vars/0",)

    def plan_beside(self, tensors: Tensors, config: Mapping[str, Any]) -> Plan:
        """See `System`; the settings are those of a .keras archive, or beside the weights of a preset's folder."""
        segmenter = config.get("config", {})
        backbone = segmenter.get("backbone", config).get("config", {})
        _check(backbone)
        names = _without_root(tensors)
        values = {name: tensors[old] for name, old in names.items()}
        if _CLASSIFIER not in values:
            raise ConversionError(
                "this is the backbone of a network of keras-hub without its classifier, which keras-hub keeps in "
                "task.weights.h5: put that file beside model.weights.h5, or save the whole network"
            )
        encoder = _encoder(values)
        plus = "layers/conv2d_1/vars/0" in values
        settings = {
            "network": "deeplabv3plus_keras_hub" if plus else "deeplabv3_keras_hub",
            "encoder": encoder.name,
            "output_stride": 32,
            "rates": tuple(backbone.get("dilation_rates", (6, 12, 18))),
            "channels": values["layers/spatial_pyramid_pooling/projection/layers/conv2d/vars/0"].shape[-1],
            "resize": "half_pixel",
            "head_resize": "half_pixel",
            **_input(segmenter.get("preprocessor")),
        }
        if plus:
            settings["low_level_channels"] = values["layers/conv2d/vars/0"].shape[-1]
        plan = Plan(
            settings,
            assumed=(
                *(() if "dilation_rates" in backbone else ("rates",)),
                *(() if segmenter.get("preprocessor") else ("mean", "std")),
            ),
            otherwise="keras-hub's example and ImageNet's values; a .keras archive or a preset's folder says them",
        ).fill(values, _beside, _rule(values, encoder, plus))
        return rules.with_epsilon(plan.called(names), _EPSILON, 1e-5, "head.")


class _Encoder(NamedTuple):
    """An encoder, and the names that its convolutions and batch norms have here, in the order of their numbers."""

    name: str
    convs: tuple[str, ...]
    norms: tuple[str, ...]


def _check(backbone: Mapping[str, Any]) -> None:
    """Make sure that the network is one that keras-hub's weights alone show.

    Raises:
        ConversionError: another encoder, or features of other strides.
    """
    encoder = backbone.get("image_encoder", {})
    if encoder.get("class_name", "ResNetBackbone") != "ResNetBackbone":
        raise rules.no_encoder("keras-hub", f"its ResNets, and not {encoder['class_name']}")
    size = backbone.get("upsampling_size", 8)
    size = size if isinstance(size, int) else tuple(size)
    rules.only(
        {**backbone, "upsampling_size": 8 if size == (8, 8) else size},
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
    )
    if backbone.get("low_level_feature_key") is not None:
        rules.only(backbone, low_level_feature_key="P2")
    rules.only(encoder.get("config", {}), stackwise_num_strides=[1, 2, 2, 2])


def _without_root(tensors: Tensors) -> dict[str, str]:
    """The file's names by those in the backbone, whether it holds only that or the whole network; _CLASSIFIER."""
    whole = any(name.startswith(_WHOLE) for name in tensors)
    classifier = "layers/conv2d/vars/0" if whole else "task/layers/conv2d/vars/0"
    return {_CLASSIFIER if name == classifier else name.removeprefix(_WHOLE): name for name in tensors}


def _input(preprocessor: Mapping[str, Any] | None) -> dict[str, Any]:
    """Its normalisation is x * scale + offset; here it is (x - mean) / std."""
    if not preprocessor:
        return rules.IMAGENET_INPUT
    converter = (preprocessor["config"].get("image_converter") or {}).get("config", {})
    scale, offset = (
        np.broadcast_to(converter[key] if converter.get(key) is not None else usual, 3).astype(float)
        for key, usual in (("scale", 1), ("offset", 0))
    )
    return {"mean": tuple((-offset / scale).tolist()), "std": tuple((1 / scale).tolist()), "bgr": False}


def _encoder(values: Tensors) -> _Encoder:
    """The ResNet whose layers a file has.

    Raises:
        ConversionError: it is none that degrid has.
    """
    prefix = "layers/functional/layers"
    count = {
        kind: len({match[0] for name in values if (match := re.match(rf"{prefix}/{kind}(?:_\d+)?/", name))})
        for kind in ("conv2d", "batch_normalization")
    }
    stem = values.get(f"{prefix}/conv2d/vars/0", np.empty(0)).shape[:1]
    deep = stem == (3,)
    first = values.get(f"{prefix}/conv2d_{3 if deep else 1}/vars/0", np.empty(0)).shape[:1]
    before = count["batch_normalization"] < count["conv2d"]  # pre-activation: batch norms of units, not of convolutions
    table = BOTTLENECK_RESNETS if first == (1,) else BASIC_RESNETS
    for depth in ("18", "34", "50", "101", "152"):
        if depth in table and not (deep and before):
            found = _resnet(depth, table[depth], first == (1,), deep, before)
            if (len(found.convs), len(found.norms)) == (count["conv2d"], count["batch_normalization"]):
                return found
    raise rules.no_encoder("keras-hub", "its ResNets 18, 34, 50, 101 and 152, with pre-activation or not, or vd")


def _resnet(depth: str, units: Sequence[int], bottleneck: bool, deep: bool, before: bool) -> _Encoder:
    """The network that keras-hub's settings describe.

    Args:
        deep: the stem has three convolutions, and shortcuts pool. before: pre-activation.
    """
    last = 3 if bottleneck else 2
    convs, norms = _stem(deep, before)
    for stage, number in enumerate(units):
        for index in range(number):
            shortcut = index == 0 and (bottleneck or deep or stage > 0)
            if before:
                unit = f"stages_{stage}.blocks.{index}."
                convs += _ordered(f"{unit}conv", last, f"{unit}downsample.conv" if shortcut else None)
                norms += _ordered(f"{unit}norm", last, None)
            else:
                unit = f"layer{stage + 1}.{index}."
                convs += _ordered(f"{unit}conv", last, f"{unit}downsample.{int(deep)}" if shortcut else None)
                norms += _ordered(f"{unit}bn", last, f"{unit}downsample.{deep + 1}" if shortcut else None)
    project = "paddleseg" if deep and not bottleneck else "timm"
    name = f"resnetv2_{depth}" if before else f"resnet{depth}{'d' if deep else ''}"
    return _Encoder(f"{project}:{name}", tuple(convs), tuple(norms))


def _stem(deep: bool, before: bool) -> tuple[list[str], list[str]]:
    """Its convolutions and batch norms."""
    if deep:
        return ["conv1.0", "conv1.3", "conv1.6"], ["conv1.1", "conv1.4", "bn1"]
    return (["stem_conv"], []) if before else (["conv1"], ["bn1"])


def _ordered(layer: str, last: int, shortcut: str | None) -> list[str]:
    """The numbered layers of a unit: that of the shortcut stands before the last."""
    names = [f"{layer}{number}" for number in range(1, last + 1)]
    return names if shortcut is None else [*names[:-1], shortcut, names[-1]]


def _beside(name: str, value: np.ndarray) -> Drop | None:
    """The entries of a file other than the network's weights."""
    if name.startswith("image_encoder/"):
        return Drop("batch norm after the encoder's last stage, which the network does not use")
    if "seed_generator" in name:
        return Drop("state of dropout's random numbers")
    return rules.training_state(name.removeprefix("task/"), value)


def _rule(values: Tensors, encoder: _Encoder, plus: bool) -> Rule:
    branches = {match[1] or "0" for name in values if (match := re.match(_BRANCH, name)) and not match[2]}
    pooling = len(branches) - 1
    head = ("head.reduce", "head.refine") if plus else ("head.refine",)
    head_layers = {
        "conv2d": [f"{part}.0" for part in head],
        "batch_normalization": [f"{part}.1" for part in head],
    }
    encoder_layers = {"conv2d": encoder.convs, "batch_normalization": encoder.norms}

    def rule(name: str, value: np.ndarray) -> rules.Found | None:
        if name == _CLASSIFIER:
            return {
                "head.classifier.weight": value.transpose(3, 2, 0, 1),
                "head.classifier.bias": np.zeros(value.shape[-1], np.float32),
            }
        if match := re.fullmatch(_BRANCH + _LAYER, name):
            number = int(match[1] or 0)
            place = "project" if match[2] else f"branches.{number}{'.project' if number == pooling else ''}"
            return _leaf(match[3], f"head.aspp.{place}.{int(match[3] != 'conv2d')}", match[5], value)
        match = re.fullmatch(rf"(layers/functional/)?{_LAYER}", name)
        if match is None:
            return None
        layers = (encoder_layers if match[1] else head_layers)[match[2]]
        number = int(match[3] or 0)
        if number >= len(layers):
            return None
        return _leaf(match[2], f"{'encoder.net.' if match[1] else ''}{layers[number]}", match[4], value)

    return rule


def _leaf(kind: str, place: str, number: str, value: np.ndarray) -> rules.Found | None:
    """A variable of a layer."""
    if kind == "conv2d":
        return {f"{place}.weight": value.transpose(3, 2, 0, 1)} if number == "0" else None
    return {f"{place}.{_NORM[int(number)]}": value} if int(number) < len(_NORM) else None
