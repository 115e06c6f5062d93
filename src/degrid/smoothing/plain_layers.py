"""Layers that every runtime has, to export smoothed convolutions with what they learned as constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid.contracts import DressedConv, Rate, same_geometry
from degrid.smoothing.filters import axes

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
"""The layer for maps of this many axes."""


def plain_conv(conv: Any, rate: Rate) -> Any:
    """A layer's kernel at a dilation rate: size-keeping, zeros outside, with its bias.

    Of a smoothed layer that convolves in a way of its own, that layer without smoothing.
    """
    own = conv.without_operator() if isinstance(conv, DressedConv) else None
    if own is not None:
        return own
    stride, padding, dilation, groups = same_geometry(conv, rate)
    return constant_conv(conv.weight, conv.bias, stride, padding, dilation, groups)


def constant_conv(weight: Tensor, bias: Tensor | None, *geometry: Any) -> Any:
    """A convolution with these values as constants; geometry: stride, padding, dilation and groups."""
    stride, padding, dilation, groups = geometry
    sizes, channels = weight.shape[2:], (weight.shape[1] * groups, weight.shape[0])
    kind = CONVOLUTIONS[len(sizes)]
    made = kind(*channels, tuple(sizes), tuple(stride), tuple(padding), tuple(dilation), groups, bias is not None)
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def filter_conv(conv: Any, kernel: Tensor) -> Any:
    """A depthwise convolution of a layer's input with a filter [k,k], or one filter per channel [C,1,k,k]."""
    channels, sides = conv.in_channels, kernel.shape[-len(conv.kernel_size) :]
    weight = kernel.detach().to(conv.weight.dtype).expand(channels, 1, *sides).contiguous()
    ones = [1] * len(sides)
    return constant_conv(weight, None, ones, [side // 2 for side in sides], ones, channels)


class Filtered(nn.Sequential):
    """A filter, then a convolution, which may take more than the map."""

    def forward(self, input: Tensor, *more: Any, **named: Any) -> Any:
        """[N,C,H,W] -> what the convolution gives."""
        return self[1](self[0](input), *more, **named)


class Inside(nn.Module):
    """A map without the rim that a network has padded it with.

    Args:
        rim: its width along each axis, pixels.
    """

    def __init__(self, rim: tuple[int, ...]) -> None:
        super().__init__()
        self.rim = rim

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,H-2*rim,W-2*rim]."""
        return without_rim(x, self.rim)


def without_rim(x: Tensor, rim: tuple[int, ...]) -> Tensor:
    """[N,C,H,W] -> [N,C,H-2*rim,W-2*rim]."""
    return cut(x, rim, [side - 2 * each for side, each in zip(x.shape[-len(rim) :], rim, strict=True)])


def cut(x: Tensor, first: Sequence[int], size: Sequence[int]) -> Tensor:
    """The part [...,h,w] of a map that begins at `first`; a view. Further up, the axes stay as they are."""
    for axis, (start, side) in enumerate(zip(first, size, strict=True)):
        x = x.narrow(axis - len(size), start, side)
    return x


class MixedBlocks(nn.Module):
    """A dilated convolution whose outputs are mixed within each block of r x r, as group interaction does.

    The mixing is a convolution of side and stride r from each channel to r^2 channels, one per position in the block; a
    transposed convolution, or a pixel shuffle for square blocks, then puts these into their positions. Nothing is
    reshaped to a size that depends on the image, which a tracer would record as a constant.

    Args:
        conv: with its bias, which is added after the mixing.
        mixing: [r^2, r^2]: how much of position j (row) of a block goes into position i (column).
        rate: r, pixels; or one for each axis.
    """

    def __init__(self, conv: Any, mixing: Tensor, rate: Rate) -> None:
        super().__init__()
        self.rates = axes(rate)
        self.bias = conv.bias
        self.conv = conv
        self.conv.bias = None
        channels, positions = conv.out_channels, math.prod(self.rates)
        ones = [1] * len(self.rates)
        weight = mixing.T.reshape(positions, 1, *self.rates).repeat(channels, 1, *ones).to(conv.weight.dtype)
        self.mix = constant_conv(weight, None, self.rates, [0 for _ in ones], ones, channels)
        self.square = len(self.rates) == 2 and self.rates[0] == self.rates[1]
        if not self.square:
            kind: Any = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(self.rates)]
            sizes = channels * positions, channels, self.rates, self.rates
            self.place = kind(*sizes, groups=channels, bias=False)
            each = torch.eye(positions).reshape(positions, 1, *self.rates).repeat(channels, 1, *ones)
            self.place.weight = nn.Parameter(each.to(weight), requires_grad=False)

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W]; what else is given goes to the convolution."""
        # Always by r - 1: enough blocks to cover an image of any size, without a decision that depends on the size.
        padded = F.pad(x, [after for r in reversed(self.rates) for after in (0, r - 1)])
        y = self.mix(self.conv(padded, *more, **named))
        y = F.pixel_shuffle(y, self.rates[0]) if self.square else self.place(y)
        y = cut(y, [0] * len(self.rates), x.shape[2:])
        return y if self.bias is None else y + self.bias.reshape(-1, *[1] * len(self.rates))
