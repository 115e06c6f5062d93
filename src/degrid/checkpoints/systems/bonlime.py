"""bonlime/keras-deeplab-v3-plus: Google's DeepLab v3 and v3+ in Keras."""

from __future__ import annotations

import re

import numpy as np

from degrid.checkpoints.systems.google_deeplab import GoogleDeepLab
from degrid.checkpoints.systems.plan import Plan, System, Tensors

_LEAVES = {"kernel": "weights", "bias": "biases"}
_GOOGLE = GoogleDeepLab()


class Bonlime(System):
    """The same networks with other names, the first padding of Xception by TensorFlow's rule, and half-pixel resizing.

    Its code aligned corners until 2021.
    """

    title = "bonlime/keras-deeplab-v3-plus: DeepLab v3, v3+"
    marks = (r"(.*/)?concat_projection/kernel(:0)?",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        names = {_google_name(name): name for name in tensors}
        renamed: dict[str, np.ndarray] = {ours: tensors[name] for ours, name in names.items()}
        plan = _GOOGLE.plan(renamed).called(names)
        plan.model |= {"resize": "half_pixel", "head_resize": "half_pixel"}
        plan.model["encoder"] = plan.model["encoder"].replace("google:xception65", "bonlime:xception65")
        plan.notes.append(
            "resizing as in the project's code since 2021; a model of its older code, or its published weights, want "
            "corners aligned: --set resize=align_corners --set head_resize=align_corners (settings=...)"
        )
        return plan


def _google_name(name: str) -> str:
    """The name in research/deeplab of one in Keras, such as "aspp0_BN/gamma:0"."""
    *above, layer, leaf = ("/" + name.removesuffix(":0")).split("/")
    if {"optimizer_weights", "optimizer"} & {*above, layer}:
        return f"optimizer/{name}"
    batch_norm = "/BatchNorm" if layer.endswith("_BN") else ""
    layer, leaf = layer.removesuffix("_BN"), _LEAVES.get(leaf, leaf)
    if layer.endswith("depthwise") and leaf in ("weights", "depthwise_kernel"):  # in Keras 3, and before
        leaf = "depthwise_weights"
    if layer in ("logits_semantic", "custom_logits_semantic"):
        layer = "logits/semantic"
    elif layer == "feature_projection0" or layer.startswith("decoder_conv"):
        layer = f"decoder/{layer}"
    elif match := re.fullmatch(r"(Conv|expanded_conv(?:_\d+)?)_?(expand|depthwise|project|)", layer):
        layer = "MobilenetV2/" + "/".join(part for part in match.groups() if part)
    elif match := re.fullmatch(r"entry_flow_(conv1_[12])", layer):
        layer = f"xception_65/entry_flow/{match[1]}"
    elif match := re.fullmatch(r"(entry|exit)_flow_block(\d)_(\w+)", layer):
        layer = f"xception_65/{match[1]}_flow/block{match[2]}/unit_1/xception_module/{match[3]}"
    elif match := re.fullmatch(r"middle_flow_unit_(\d+)_(\w+)", layer):
        layer = f"xception_65/middle_flow/block1/unit_{match[1]}/xception_module/{match[2]}"
    return f"{layer}{batch_norm}/{leaf}"
