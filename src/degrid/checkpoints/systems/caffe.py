"""DeepLab v2 in Caffe."""

from __future__ import annotations

import re
from functools import partial

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, System, Tensors, first_match
from degrid.types import ConversionError


class Caffe(System):
    """The original DeepLab v2, single or multi-scale; batch norm is split into the layers BatchNorm and Scale."""

    title = "DeepLab v2 in Caffe"
    marks = ("res2a_branch2a/0",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`. The multi-scale network holds its weights once for each scale; they must be the same."""
        depth, _ = rules.bottleneck_resnet(tensors, r"res(\d)([a-z]\d*)_branch2a/0")
        multi_scale = first_match(tensors, r".*_res(075|05)(_c\d)?/.*")
        settings = {
            "network": "deeplabv2",
            "encoder": f"caffe:resnet{depth}",
            "output_stride": 8,
            **rules.CAFFE_INPUT,
            **(rules.MULTI_SCALE if multi_scale else {"resize": "align_corners"}),
        }
        return Plan(settings).fill(tensors, partial(_copies, tensors), partial(_blobs, tensors))


def _copies(tensors: Tensors, name: str, value: np.ndarray) -> Drop | None:
    if not re.search(r"_res(075|05)(_c\d)?/", name):
        return None
    single = re.sub(r"_res(075|05)", "", name)
    if single in tensors and not np.array_equal(value, tensors[single]):
        raise ConversionError(f"{name} differs from {single}: the scales of this network do not share their weights")
    return Drop("the same weights at another scale")


def _blobs(tensors: Tensors, name: str, value: np.ndarray) -> rules.Found | Drop | None:
    """BatchNorm's blobs are mean and variance times a factor, and the factor; Scale's are gamma and beta."""
    layer, _, blob = name.rpartition("/")
    places = rules.caffe_layer(layer)
    if places is None:
        return None
    conv, norm = places
    if layer.startswith("bn"):
        if blob == "2":
            return Drop("factor of the batch norm statistics, divided out")
        factor = float(np.ravel(tensors[f"{layer}/2"])[0]) if f"{layer}/2" in tensors else 1.0
        scale = np.float32(1 / factor if factor else 0.0)
        return {f"{norm}.{'running_mean' if blob == '0' else 'running_var'}": value.reshape(-1) * scale}
    leaf = "weight" if blob == "0" else "bias"
    if layer.startswith("scale"):
        return {f"{norm}.{leaf}": value.reshape(-1)}
    return {f"{conv}.{leaf}": value if leaf == "weight" else value.reshape(-1)}
