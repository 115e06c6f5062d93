"""At which strides the layers of a network work, measured by running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers.blur_pool import BlurPool2d
from torch import Tensor, nn

from degrid.contracts import unchanged

SIDES = (128, 192)
"""Height and width of the image on which networks are measured: different multiples of 64."""


@dataclass(frozen=True)
class Layer:
    """A convolution, a pooling or another layer with a stride, in one of its calls.

    Attributes:
        name: dotted, in the network.
        before, after: image size over the size of its input and of its output, the nearest power of 2.
        unit: image size over the size of the output of the unit that it is in: larger than `after` where the unit
            lowers the resolution later.
    """

    name: str
    before: int
    after: int
    unit: int


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
    return is_window(module) and isinstance(getattr(module, "weight", None), Tensor)


def is_window(module: nn.Module) -> bool:
    """A layer that moves a window over a map: a convolution, a pooling, or one of another library with such settings.

    Other modules of a user may have attributes of the same names, with any values.
    """
    if isinstance(module, BlurPool2d):
        return True
    sizes = (getattr(module, name, None) for name in ("kernel_size", "stride"))
    padding = getattr(module, "padding", None)
    padded = isinstance(padding, str) or _is_whole(padding)
    return padded and all(map(_is_whole, sizes)) and _is_whole(getattr(module, "dilation", 1))


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number, or a sequence of some."""
    return isinstance(value, int) or (isinstance(value, tuple | list) and all(isinstance(each, int) for each in value))


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
    layers: list[Layer] = []

    def noting(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            maps = [each for each in (*inputs[:1], output) if isinstance(each, Tensor) and each.ndim == 4]
            if len(maps) == 2 and maps[0].shape[-2:].numel() > 1:
                before, after = map(stride_of, maps)
                layers.append(Layer(name, before, after, after))

        return note

    device = next(net.parameters()).device
    with ExitStack() as stack, torch.no_grad(), unchanged(net):
        for name, module in net.named_modules():
            if is_window(module) and not any(module.children()):
                stack.callback(module.register_forward_hook(noting(name)).remove)
        output = net(torch.zeros(1, in_channels, *SIDES, device=device))
    features = tuple(stride_of(feature) for feature in maps_of(output))
    return Strides(tuple(_with_units(net, layers)), features)


def _with_units(net: nn.Module, layers: list[Layer]) -> list[Layer]:
    """The layers with the strides of their units.

    The unit of a layer that lowers the resolution is the largest part of the network around it, other than a sequence
    of parts, that works at the two resolutions before and after it.
    """
    found = dict.fromkeys((layer.name for layer in layers), 1)
    for strided in layers:
        if strided.after <= strided.before:
            continue
        parts = strided.name.split(".")
        for length in range(1, len(parts)):
            path = ".".join(parts[:length])
            inside = [layer for layer in layers if layer.name.startswith(f"{path}.")]
            sequence = isinstance(net.get_submodule(path), nn.Sequential | nn.ModuleList | nn.ModuleDict)
            if not sequence and all(strided.before <= each.before and each.after <= strided.after for each in inside):
                found |= {each.name: max(found[each.name], strided.after) for each in inside}
                break
    return [replace(layer, unit=max(layer.after, found[layer.name])) for layer in layers]


def maps_of(output: Any, sides: tuple[int, int] = SIDES) -> list[Tensor]:
    """The feature maps [N,C,h,w] in what a network returns for an image with those sides.

    Networks whose features are all [N,h,w,C] are known by the sides.
    """
    features = tensors_of(output)
    if all(feature.ndim == 4 for feature in features):
        last = all(_of_image(feature.shape[1:3], sides) for feature in features)
        if last and not all(_of_image(feature.shape[2:], sides) for feature in features):
            return [feature.movedim(-1, 1) for feature in features]
    return features


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors in what a network returns."""
    if isinstance(output, Tensor):
        return [output]
    values: Iterable[Any] = output.values() if isinstance(output, Mapping) else output
    return [tensor for value in values for tensor in tensors_of(value)]


def stride_of(feature: Tensor) -> int:
    """The stride of a feature map of an image with sides SIDES; sizes are rounded, and some networks lose a border."""
    ratio = math.sqrt(SIDES[0] * SIDES[1] / max(1, feature.shape[-2:].numel()))
    return 1 << max(0, round(math.log2(ratio)))


def _of_image(size: tuple[int, ...], sides: tuple[int, int]) -> bool:
    """Whether a size is that of an image over a stride, rounded down or up."""
    return any(
        all(length in (side // stride, -(-side // stride)) for length, side in zip(size, sides, strict=True))
        for stride in (1, 2, 4, 8, 16, 32, 64)
    )
