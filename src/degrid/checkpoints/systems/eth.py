"""DeepLab v2 in TensorFlow 1 with the ResNet named as in Caffe, or with slim's."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Plan, System, Tensors


class Eth(System):
    """The encoder "deeplab" of Ziegler et al. (ETH) and of the programs that theirs descends from.

    Those are, latest first: Wang & Ji's code of KDD 2018 (divelab/dilated, KDD); Zhengyang Wang's DeepLab v2
    (zhengyang-wang/Deeplab-v2--ResNet-101--Tensorflow, ZW); and DrSleep/tensorflow-deeplab-resnet (DS).
    """

    title = "DeepLab v2 in TensorFlow (ETH, KDD, ZW, DS)"
    aliases = ("kdd", "zw", "ds")
    marks = ("res2a_branch2a/weights",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`. Early files have "/BatchNorm" between a layer and its variable."""
        depth, units = rules.bottleneck_resnet(tensors, r"res(\d)([a-z]\d*)_branch2a/weights")
        smoothed = [f"encoder.layer{stage}.{unit}.conv2" for stage in (3, 4) for unit in range(units[stage - 1])]
        plan = Plan(rules.tensorflow_v2_settings(tensors, depth))
        return plan.fill(tensors, rules.training_state, _rule, rules.shared_smoothing({"": smoothed}))


def _rule(name: str, value: np.ndarray) -> rules.Found | None:
    layer, _, leaf = name.replace("/BatchNorm/", "/").rpartition("/")
    places = rules.caffe_layer(layer)
    if places is None:
        return None
    return rules.layer_smoothing(places[0], leaf, value) or rules.tensorflow_leaf(leaf, value, *places)


class EthSlim(System):
    """The encoders "res50" and "res101" of the programs in `eth`; they start from slim's ImageNet weights."""

    title = "DeepLab v2 in TensorFlow with slim's ResNet (ETH, KDD, ZW)"
    marks = ("decoder/aspp/conv1/weights",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        depth, units = rules.bottleneck_resnet(tensors, r"resnet_v1_\d+/block(\d)/unit_(\d+)/")
        root = next(name.split("/")[0] for name in tensors if name.startswith("resnet_v1_"))
        smoothed = {
            f"{root}/block{stage}": [f"encoder.layer{stage}.{unit}.conv2" for unit in range(units[stage - 1])]
            for stage in (3, 4)
        }
        plan = Plan(rules.tensorflow_v2_settings(tensors, depth))
        return plan.fill(tensors, rules.training_state, _slim_rule, rules.shared_smoothing(smoothed))


def _slim_rule(name: str, value: np.ndarray) -> rules.Found | None:
    if match := re.fullmatch(r"decoder/aspp/conv(\d)/(weights|biases)", name):
        return rules.tensorflow_leaf(match[2], value, f"head.branches.{int(match[1]) - 1}", "")
    return rules.slim_v1(name, value)
