"""At which strides the layers of a network work, measured by running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from degrid.contracts import evaluating

SIDES = (128, 192)
"""Height and width of the image that networks are measured on: multiples of 64, and not alike."""


@dataclass(frozen=True)
class Layer:
    """A layer without children that takes a feature map, in one of its calls.

    Attributes:
        name: dotted, in the network.
        before, after: image size over the size of its input and of its output, the nearest power of 2.
        stage: the number of features that were complete before it ran.
    """

    name: str
    before: int
    after: int
    stage: int


@dataclass(frozen=True)
class Strides:
    """What `measure_strides` found.

    Attributes:
        layers: in the order in which they ran.
        features: image size over feature size, the nearest power of 2, of each feature.
    """

    layers: tuple[Layer, ...]
    features: tuple[int, ...]


def pair(value: Any) -> tuple[int, ...]:
    """A number twice; a sequence as a tuple."""
    return (value, value) if isinstance(value, int) else tuple(value)


def is_conv(module: nn.Module) -> bool:
    """A convolution over maps, also one that does not derive from nn.Conv2d, such as timm's CondConv2d."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return isinstance(module, nn.Conv2d)
    return all(hasattr(module, key) for key in ("kernel_size", "stride", "padding", "dilation", "weight"))


def is_wide(module: nn.Module) -> bool:
    """A convolution over maps with a kernel wider than 1."""
    return is_conv(module) and max(pair(module.kernel_size)) > 1


def measure_strides(net: nn.Module, in_channels: int = 3) -> Strides:
    """Run a network on an image of zeros, on the device of its parameters, and note where each layer works.

    Args:
        net: from images [N,C,H,W] to a feature map, or a list or dictionary of them.
    Raises:
        Whatever the network raises.
    """
    calls: list[tuple[str, Tensor | None, Tensor]] = []

    def noting(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                given = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
                calls.append((name, given, output))

        return note

    leaves = {name for name, module in net.named_modules() if not any(module.children())}
    device = next(net.parameters()).device
    with ExitStack() as stack, torch.no_grad(), evaluating(net):
        for name, module in net.named_modules():
            stack.callback(module.register_forward_hook(noting(name)).remove)
        features = tensors_of(net(torch.zeros(1, in_channels, *SIDES, device=device)))
    complete = [_completed(feature, calls) for feature in features]
    layers = [
        Layer(name, stride_of(given), stride_of(output), sum(index < place for index in complete))
        for place, (name, given, output) in enumerate(calls)
        if name in leaves and given is not None and given.ndim == output.ndim == 4 and given.shape[-2:].numel() > 1
    ]
    return Strides(tuple(layers), tuple(stride_of(as_map(feature)) for feature in features))


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors in what a network returns."""
    if isinstance(output, Tensor):
        return [output]
    values: Iterable[Any] = output.values() if isinstance(output, Mapping) else output
    return [tensor for value in values for tensor in tensors_of(value)]


def as_map(feature: Tensor, sides: tuple[int, int] = SIDES) -> Tensor:
    """A feature as [N,C,h,w], where it may also be [N,h,w,C], of an image with those sides."""
    if feature.ndim == 4 and _of_image(feature.shape[1:3], sides) and not _of_image(feature.shape[2:], sides):
        return feature.permute(0, 3, 1, 2)
    return feature


def stride_of(feature: Tensor) -> int:
    """The stride of a feature map of an image with sides SIDES; sizes are rounded, and some networks lose a border."""
    return _nearest(math.sqrt(SIDES[0] * SIDES[1] / max(1, feature.shape[-2:].numel())))


def _nearest(ratio: float) -> int:
    return 1 << max(0, round(math.log2(ratio)))


def _of_image(size: tuple[int, ...], sides: tuple[int, int]) -> bool:
    """Whether a size is that of an image over a stride, rounded down or up."""
    return any(
        all(length in (side // stride, -(-side // stride)) for length, side in zip(size, sides, strict=True))
        for stride in (1, 2, 4, 8, 16, 32, 64)
    )


def _completed(feature: Tensor, calls: list[tuple[str, Tensor | None, Tensor]]) -> int:
    """The first call that returned a feature, or the one before the first that took it; else after all of them."""
    returned = (index for index, (_, _, output) in enumerate(calls) if output is feature)
    taken = (index - 1 for index, (_, given, _) in enumerate(calls) if given is feature)
    return next(returned, next(taken, len(calls)))
