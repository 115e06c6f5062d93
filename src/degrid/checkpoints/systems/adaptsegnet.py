"""AdaptSegNet, ADVENT and their descendants: DeepLab v2 in PyTorch, with a second classifier in training."""

from __future__ import annotations

import re
from functools import partial

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, System, Tensors

_LAYERS = ("layer6", "layer5")  # the classifiers, last one first
_START = 0.01  # standard deviation of the weights before training
_NEAR = 0.01  # how close a branch of 19 classes on 2048 channels, 350,000 values, then is to it


class AdaptSegNet(System):
    """Caffe's ResNet-101 under torchvision's names, corners aligned.

    AdaptSegNet's loop over the four branches of a classifier returns after the second, so that the others never count
    and are never trained; ADVENT mended it, with the same names.
    """

    title = "AdaptSegNet, ADVENT: DeepLab v2"
    aliases = ("advent",)

    def recognise(self, tensors: Tensors) -> str | None:
        """See `System`."""
        names = (f"{layer}.conv2d_list.0.weight" for layer in _LAYERS)
        return next((name for name in names if name in tensors), None) if "layer4.0.conv3.weight" in tensors else None

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        depth, _ = rules.bottleneck_resnet(tensors, r"layer([1-4])\.(\d+)\.")
        last = next(layer for layer in _LAYERS if f"{layer}.conv2d_list.0.weight" in tensors)
        early = all(_is_untrained(tensors, f"{last}.conv2d_list.{branch}") for branch in (2, 3))
        settings = {
            "network": "deeplabv2",
            "encoder": f"caffe:resnet{depth}",
            "output_stride": 8,
            "rates": (6, 12) if early else (6, 12, 18, 24),
            "resize": "align_corners",
            **rules.PRECISE_CAFFE_INPUT,
        }
        note = (
            "the branches of the rates 18 and 24 are as they were before training, so the code that wrote this file "
            "leaves them out, and so does the result"
            if early
            else "all four branches are summed; code that returns after the second, as AdaptSegNet's, leaves two of "
            "them untrained, and these are not"
        )
        return Plan(settings, notes=[note]).fill(tensors, rules.batch_counter, partial(_rule, last, early))


def _is_untrained(tensors: Tensors, branch: str) -> bool:
    """Whether a branch still has its initial values: normally distributed weights, and PyTorch's biases."""
    weight, bias = tensors.get(f"{branch}.weight"), tensors.get(f"{branch}.bias")
    if weight is None or bias is None:
        return False
    largest = weight[0].size ** -0.5
    spread = float(np.std(weight, dtype=np.float64))
    return bool(abs(spread / _START - 1) < _NEAR and np.abs(bias).max() <= largest)


def _rule(last: str, early: bool, name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if match := re.fullmatch(r"(layer[56])\.conv2d_list\.(\d)\.(weight|bias)", name):
        if match[1] != last:
            return Drop("second classifier, used for the training loss only")
        if early and int(match[2]) > 1:
            return Drop("untrained branch, which is not connected to the logits")
        return {f"head.branches.{match[2]}.{match[3]}": value}
    return {f"encoder.{name}": value} if re.match(r"(conv1|bn1|layer[1-4])\.", name) else None
