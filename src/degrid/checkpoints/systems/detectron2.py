"""detectron2: the project DeepLab, v3 and v3+."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import Drop, Plan, Rule, System, Tensors, first_match
from degrid.types import ConversionError

_EPSILON = 1e-5
_PIXELS = ("pixel_mean", "pixel_std")
_V3 = {"sem_seg_head.aspp": "aspp", "sem_seg_head.predictor": "classifier"}
_PLUS = {
    "sem_seg_head.decoder.res5.project_conv": "aspp",
    "sem_seg_head.decoder.res2.project_conv": "reduce.0",
    "sem_seg_head.decoder.res2.fuse_conv.0": "refine.0.0",
    "sem_seg_head.decoder.res2.fuse_conv.1": "refine.1.0",
    "sem_seg_head.decoder.res2.fuse_conv.depthwise": "refine.0",
    "sem_seg_head.decoder.res2.fuse_conv.pointwise": "refine.3",
    "sem_seg_head.predictor": "classifier",
}


class Detectron2(System):
    """R-103 with its deep stem, output stride 16, multi-grid 1, 2, 4; image pooling over crops of 512x1024."""

    title = "detectron2, project DeepLab: v3, v3+"
    marks = (r"sem_seg_head\.(aspp|decoder\.res5\.project_conv)\.convs\.0\.weight",)

    def plan(self, tensors: Tensors) -> Plan:
        """See `System`."""
        plus = "sem_seg_head.decoder.res5.project_conv.convs.0.weight" in tensors
        depth, _ = rules.bottleneck_resnet(tensors, r"backbone\.res(\d)\.(\d+)\.")
        if len(tensors.get("backbone.stem.conv3.weight", ())) != 128:
            raise ConversionError("DeepLab of detectron2 can be converted with its own deep stem of 128 channels only")
        separable = first_match(tensors, r"sem_seg_head\..*\.depthwise\.weight") is not None
        low_level = len(tensors["sem_seg_head.decoder.res2.project_conv.weight"]) if plus else 48
        settings = {
            "network": f"deeplabv3{'plus' if plus else ''}{'_detectron2_separable' if plus and separable else ''}",
            "separable": separable,
            "encoder": f"timm:resnet{depth}s",
            "output_stride": 16,
            "multi_grid": (1, 2, 4),
            "rates": (6, 12, 18),
            "uniform_rates": True,
            "pooling_size": (512, 1024),
            "low_level_channels": low_level,
            "channels": len(tensors[f"sem_seg_head.{'decoder.res5.project_conv' if plus else 'aspp'}.convs.0.weight"]),
            **_input(tensors),
        }
        plan = Plan(
            settings,
            assumed=("output_stride", "rates", "multi_grid", "pooling_size"),
            otherwise="as in the project's configurations, whose STRIDE_IN_1X1 is False (True is another network); "
            "pooling_size is the training crop, --set pooling_size=none pools over the whole image",
        )
        return plan.fill(tensors, rules.batch_counter, _rule(plus, low_level))


def _input(tensors: Tensors) -> dict[str, Any]:
    """The normalisation, which files from before March 2021 hold; images are in BGR order if the mean is."""
    found = [tuple(tensors[name].ravel().tolist()) for name in _PIXELS if name in tensors]
    if len(found) < len(_PIXELS):
        return rules.IMAGENET_INPUT
    mean, std = found
    return {"mean": mean, "std": std, "bgr": mean[0] < mean[-1]}


def _rule(plus: bool, low_level: int) -> Rule:
    places = _PLUS if plus else _V3

    def rule(name: str, value: np.ndarray) -> rules.Found | Drop | None:
        if name in _PIXELS:
            return Drop("normalisation of the input, which is in the settings")
        if name.startswith("backbone."):
            return _backbone(name.removeprefix("backbone."), value)
        prefix = next((prefix for prefix in places if name.startswith(f"{prefix}.")), None)
        if prefix is None:
            return None
        layer, inner = f"head.{places[prefix]}", name.removeprefix(f"{prefix}.")
        if places[prefix] != "aspp":
            # There the fine feature comes first, here last; in a depthwise convolution and its batch norm along axis 0.
            depthwise = places[prefix] == "refine.0"
            if depthwise or (inner == "weight" and places[prefix] in ("refine.0.0", "refine.3")):
                value = rules.joined_in_order(value, low_level, axis=0 if depthwise else 1)
            return {_leaf(layer, inner): value}
        if inner == "convs.4.1.bias":
            return _as_batch_norm(f"{layer}.branches.4.project.1", value)
        if match := re.fullmatch(r"convs\.([1-3])\.(depth|point)wise\.(.+)", inner):
            return {_leaf(f"{layer}.branches.{match[1]}.{0 if match[2] == 'depth' else 3}", match[3]): value}
        match = re.fullmatch(r"(?:convs\.([0-4])(?:\.1)?|project)\.(.+)", inner)
        if match is None:
            return None
        branch = {None: "project.0", "4": "branches.4.project.0"}.get(match[1], f"branches.{match[1]}.0")
        return {_leaf(f"{layer}.{branch}", match[2]): value}

    return rule


def _leaf(conv: str, inner: str) -> str:
    """Our name for a tensor of a convolution, or of its batch norm, which follows it."""
    if not inner.startswith("norm."):
        return f"{conv}.{inner}"
    before, _, index = conv.rpartition(".")
    return f"{before}.{int(index) + 1}.{inner.removeprefix('norm.')}"


def _as_batch_norm(norm: str, bias: np.ndarray) -> rules.Found:
    """A batch norm that only adds a bias: image pooling has none."""
    ones, zeros = np.ones_like(bias), np.zeros_like(bias)
    values = {"weight": ones, "bias": bias, "running_mean": zeros, "running_var": ones - np.float32(_EPSILON)}
    return {f"{norm}.{leaf}": value for leaf, value in values.items()}


def _backbone(name: str, value: np.ndarray) -> rules.Found | None:
    """A tensor of the ResNet under timm's name: stem.conv1 to 3 are conv1.0, 3 and 6, res2 to res5 layer1 to 4."""
    if match := re.fullmatch(r"stem\.conv([123])\.(.+)", name):
        layer = int(match[1]) - 1
        if layer == 2 and match[2].startswith("norm."):
            return {f"encoder.net.bn1.{match[2].removeprefix('norm.')}": value}
        return {f"encoder.net.{_leaf(f'conv1.{3 * layer}', match[2])}": value}
    match = re.fullmatch(r"res(\d)\.(\d+)\.(conv[123]|shortcut)\.(.+)", name)
    if match is None:
        return None
    unit = f"encoder.net.layer{int(match[1]) - 1}.{match[2]}"
    if match[3] == "shortcut":
        return {_leaf(f"{unit}.downsample.0", match[4]): value}
    norm = match[4].startswith("norm.")
    part = match[3].replace("conv", "bn") if norm else match[3]
    return {f"{unit}.{part}.{match[4].removeprefix('norm.')}": value}
