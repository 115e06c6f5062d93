"""transformers: DeepLab v3 on MobileViT and MobileViTV2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from degrid.checkpoints.systems import rules
from degrid.checkpoints.systems.plan import ConfiguredSystem, Drop, Plan, Tensors
from degrid.types import ConversionError

_SIZES = {  # by the width of the first transformer
    "mobilevit": {144: "s", 96: "xs", 64: "xxs"},
    "mobilevitv2": {128 * width // 100: f"{width:03}" for width in range(50, 201, 25)},
}
_PARTS = {
    "expand_1x1": "conv1_1x1",
    "conv_3x3": "conv2_kxk",
    "reduce_1x1": "conv3_1x1",
    "conv_projection": "conv_proj",
    "fusion": "conv_fusion",
    "conv_kxk": "conv_kxk",
}
_TRANSFORMER = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.qkv_proj.convolution": "attn.qkv_proj",
    "attention.out_proj.convolution": "attn.out_proj",
    "ffn.conv1.convolution": "mlp.fc1",
    "ffn.conv2.convolution": "mlp.fc2",
}


class TransformersMobileViT(ConfiguredSystem):
    """Its images are blue, green, red, divided by 255."""

    title = "transformers: MobileViTForSemanticSegmentation, MobileViTV2ForSemanticSegmentation"
    marks = (
        r"segmentation_head\.aspp\.convs\.0\.convolution\.weight",
        r"mobilevit(v2)?\.conv_stem\.convolution\.weight",
    )

    def plan_beside(self, tensors: Tensors, config: Mapping[str, Any]) -> Plan:
        """See `System`."""
        rules.only(
            config,
            hidden_act="swish" if config.get("hidden_act") == "swish" else "silu",  # two names of one function
            layer_norm_eps=1e-5,
            num_attention_heads=4,
            patch_size=2,
            conv_kernel_size=3,
            qkv_bias=True,
            mlp_ratio=2,
            ffn_multiplier=2,
        )
        kind = "mobilevit" if "mobilevit.encoder.layer.2.layernorm.weight" in tensors else "mobilevitv2"
        width, sizes = len(tensors[f"{kind}.encoder.layer.2.layernorm.weight"]), _SIZES[kind]
        if width not in sizes:
            raise ConversionError(f"a {kind} whose first transformer has {width} channels; known: {list(sizes)}")
        stem = tensors.get(f"{kind}.conv_stem.convolution.weight")  # or the file is reported as incomplete
        bands = 3 if stem is None else stem.shape[1]
        settings = {
            "network": "deeplabv3",
            "encoder": f"transformers:{kind}_{sizes[width]}",
            "output_stride": config.get("output_stride", 16),
            "rates": tuple(config.get("atrous_rates", (6, 12, 18))),
            "channels": len(tensors["segmentation_head.aspp.convs.0.convolution.weight"]),
            "mean": (0.0, 0.0, 0.0),
            "std": (255.0, 255.0, 255.0),
            "bgr": True,
            **({} if bands == 3 else {"in_channels": bands}),
        }
        plan = Plan(settings) if "output_stride" in config else rules.of_either_stride(settings)
        return plan.fill(tensors, rules.batch_counter, partial(_rule, tensors))


def _rule(tensors: Tensors, name: str, value: np.ndarray) -> rules.Found | Drop | None:
    if match := re.fullmatch(r"(.+\.transformer\.layer\.\d+\.attention\.attention)\.(query|key|value)\.(\w+)", name):
        if match[2] != "query":
            return Drop("joined with its query")
        parts = [tensors[f"{match[1]}.{part}.{match[3]}"] for part in ("query", "key", "value")]
        return {f"{_block(match[1])}.attn.qkv.{match[3]}": np.concatenate(parts)}
    if name.startswith("segmentation_head."):
        return _head(name, value)
    layer, _, leaf = name.rpartition(".")
    if match := re.fullmatch(r"(.+\.transformer\.layer\.\d+)\.([a-z_.12]+)", layer):
        return {f"{_block(match[1])}.{_TRANSFORMER[match[2]]}.{leaf}": value} if match[2] in _TRANSFORMER else None
    if match := re.fullmatch(r"mobilevit(?:v2)?\.encoder\.layer\.(\d)\.(layernorm|conv_1x1\.convolution)", layer):
        return {f"encoder.net.stages_{match[1]}.1.{'norm' if match[2] == 'layernorm' else 'conv_1x1'}.{leaf}": value}
    return _conv(layer, leaf, value)


def _block(name: str) -> str:
    """Our name of a block of a transformer."""
    stage, unit = re.findall(r"layer\.(\d+)", name)[:2]
    return f"encoder.net.stages_{stage}.1.transformer.{unit}"


def _conv(layer: str, leaf: str, value: np.ndarray) -> rules.Found | None:
    """A convolution of the encoder with its batch norm."""
    layer, _, kind = layer.rpartition(".")
    ours = {"convolution": "conv", "normalization": "bn"}.get(kind)
    if layer in ("mobilevit.conv_stem", "mobilevitv2.conv_stem") and ours:
        return {f"encoder.net.stem.{ours}.{leaf}": value}
    places = r"mobilevit(?:v2)?\.encoder\.layer\.(\d)\.(?:layer\.(\d+)\.|(downsampling_layer)\.)?(\w+)"
    match = re.fullmatch(places, layer)
    if match is None or ours is None or match[4] not in _PARTS:
        return None
    unit = match[2] or ("0" if match[3] else "1")
    return {f"encoder.net.stages_{match[1]}.{unit}.{_PARTS[match[4]]}.{ours}.{leaf}": value}


def _head(name: str, value: np.ndarray) -> rules.Found | None:
    if match := re.fullmatch(r"segmentation_head\.classifier\.convolution\.(\w+)", name):
        return {f"head.classifier.{match[1]}": value}
    places = r"segmentation_head\.aspp\.(?:convs\.(\d)|(project))(?:\.(conv_1x1))?\.(convolution|normalization)\.(\w+)"
    match = re.fullmatch(places, name)
    if match is None:
        return None
    place = "project" if match[2] else f"branches.{match[1]}{'.project' if match[3] else ''}"
    return {f"head.aspp.{place}.{int(match[4] == 'normalization')}.{match[5]}": value}
