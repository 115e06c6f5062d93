"""A network in numbers: parameters, multiply-adds, dilated convolutions."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from degrid.contracts import DressedConv, bands_of, copied
from degrid.dispatch import DispatchMode
from degrid.lookup import some
from degrid.models.encoder import Encoder
from degrid.models.segmenter import Segmenter


@dataclass(frozen=True)
class ConvInfo:
    """A dilated convolution; smoothing is the name of its operator, or None."""

    name: str
    kernel: tuple[int, ...]
    rate: tuple[int, ...]
    in_channels: int
    out_channels: int
    groups: int
    smoothing: str | None


@dataclass(frozen=True)
class ModelInfo:
    """A network in numbers.

    Attributes:
        network: its name, or the class of its head.
        encoder: its name, or its class.
        output_stride: image size over the size of the encoder's last feature.
        logit_stride: image size over the size of the logits.
        feature_channels: of each of the encoder's features, fine to coarse.
        feature_strides: image size over the size of each feature.
        parameters: number of parameters of the encoder, the head and the smoothing operators, which count in neither,
            and in total.
        size: height and width of the image that `multiply_adds` refers to.
        multiply_adds: of convolutions and matrix products, for one image.
    """

    network: str
    encoder: str
    classes: tuple[str, ...]
    output_stride: int
    logit_stride: int
    feature_channels: tuple[int, ...]
    feature_strides: tuple[int, ...]
    parameters: dict[str, int]
    size: tuple[int, int]
    multiply_adds: int
    dilated: tuple[ConvInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    def __str__(self) -> str:
        strides = ", ".join(f"{c} at /{s}" for c, s in zip(self.feature_channels, self.feature_strides, strict=True))
        parts = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        smoothed = sum(conv.smoothing is not None for conv in self.dilated)
        lines = [
            f"network        {self.network} on {self.encoder}",
            f"classes        {len(self.classes)}: {some(self.classes, 8)}",
            f"features       {strides}",
            f"output stride  {self.output_stride}; logits at /{self.logit_stride}",
            f"parameters     {parts}",
            f"multiply-adds  {self.multiply_adds / 1e9:.2f} G at {self.size[0]}x{self.size[1]}",
            f"dilated        {len(self.dilated)} convolutions, {smoothed} of them smoothed",
        ]
        width = max((len(conv.name) for conv in self.dilated), default=0)
        for conv in self.dilated:
            shape = f"{conv.kernel[0]}x{conv.kernel[1]}  {conv.in_channels} -> {conv.out_channels}"
            groups = f"  groups {conv.groups}" if conv.groups > 1 else ""
            rate = str(conv.rate[0]) if conv.rate[0] == conv.rate[1] else f"{conv.rate[0]}x{conv.rate[1]}"
            lines.append(f"  {conv.name:<{width}}  rate {rate:<3} {shape}{groups}  {conv.smoothing or 'regular'}")
        return "\n".join(lines)


def describe(model: Segmenter, size: tuple[int, int] = (512, 512)) -> ModelInfo:
    """Count a network's parameters, its multiply-adds for a height and width, and list its dilated convolutions."""
    config, encoder = model.config, cast(Encoder, model.encoder)
    return ModelInfo(
        network=type(model.head).__name__ if config is None else config.network,
        encoder=type(encoder).__name__ if config is None else config.encoder,
        classes=model.labels.names,
        output_stride=model.output_stride,
        logit_stride=model.logit_stride,
        feature_channels=encoder.channels,
        feature_strides=encoder.reductions,
        parameters=_parameters(model),
        size=size,
        multiply_adds=_multiply_adds(model, size),
        dilated=tuple(_dilated(model)),
    )


def _parameters(model: Segmenter) -> dict[str, int]:
    smoothed = [module for module in model.modules() if isinstance(module, DressedConv)]
    smoothing = {parameter for conv in smoothed for parameter in conv.operator_parameters()}
    head = set(model.head.parameters()) - smoothing
    encoder = set(model.parameters()) - head - smoothing
    parts = {"encoder": encoder, "head": head, "smoothing": smoothing}
    counts = {part: sum(parameter.numel() for parameter in members) for part, members in parts.items()}
    return {**counts, "total": sum(counts.values())}


def _dilated(model: nn.Module) -> list[ConvInfo]:
    return [
        ConvInfo(name, conv.kernel_size, conv.dilation, conv.in_channels, conv.out_channels, conv.groups, operator)
        for name, conv in model.named_modules()
        if isinstance(conv, nn.Conv2d) and max(conv.dilation) > 1 and max(conv.kernel_size) > 1
        for operator in [conv.operator_name if isinstance(conv, DressedConv) else None]
    ]


_LARGE = 1024 * 2048
"""Pixels of an image from which on feature maps may exceed the memory."""


def _multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Counted on a copy that computes next to nothing: its convolutions give zeros.

    Feature maps have no memory where they are large, or where layers do what only PyTorch's own operations show. That
    takes the meta device, for which PyTorch imports its compiler.
    """
    opaque = any(isinstance(module, DressedConv) for module in model.modules())
    device = "meta" if opaque or size[0] * size[1] > _LARGE else "cpu"
    hollow, count = copied(model).to(device).eval(), _Count()
    with count, torch.no_grad():
        hollow(torch.zeros(1, bands_of(model).count, *size, device=device))
    return count.operations // 2


class _Count(DispatchMode):
    """Adds up the multiplications and additions of convolutions, which it leaves out, and of matrix products."""

    operations: int = 0

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # imported here because it is slow

        super().__init__()
        self.formulas = flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, keywords = func.overloadpacket, kwargs or {}
        if packet is torch.ops.aten.convolution and not args[6]:
            result = _empty_convolution(*args[:6])
        else:
            result = func(*args, **keywords)
        if packet in self.formulas:
            self.operations += int(self.formulas[packet](*args, **keywords, out_val=result))
        return result


def _empty_convolution(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """Zeros in the shape of a convolution's output."""
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    sides = ((side + 2 * pad - rate * (taps - 1) - 1) // step + 1 for side, taps, step, pad, rate in axes)
    return x.new_zeros(x.shape[0], weight.shape[0], *sides)
