"""Smoothed convolutions with what they have learned as constants, in layers that any runtime has."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fix_smoothing(model: nn.Module) -> int:
    """Replace every smoothed convolution by plain layers with constant filters, in place; gives their number.

    Known by what an operator offers: one that is an identity becomes the plain dilated convolution; one with a `kernel`
    a depthwise convolution before it; one with a `mixing` a convolution per block of outputs after it. Any other stays
    as it is, and has to be traceable itself. The numbers are the same up to rounding.
    """
    fixed: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        operator = getattr(module, "smoothing", None)
        if isinstance(module, nn.Conv2d) and isinstance(operator, nn.Module):
            layer = _fixed(module, operator)
            if layer is not None:
                fixed.append((name, layer))
    for name, layer in fixed:
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent).add_module(leaf, layer)
    return len(fixed)


def _fixed(conv: nn.Conv2d, operator: Any) -> nn.Module | None:
    with torch.no_grad():
        if operator.is_identity() if hasattr(operator, "is_identity") else False:
            return _plain(conv, operator.rate)
        if hasattr(operator, "kernel"):
            kernel = operator.kernel()
            plain = _plain(conv, operator.rate)
            return plain if kernel is None else nn.Sequential(_filter(conv, kernel), plain)
        if hasattr(operator, "mixing"):
            return MixedBlocks(_plain(conv, operator.rate), operator.mixing().detach(), operator.rate)
    return None


def _plain(conv: nn.Conv2d, rate: int) -> nn.Conv2d:
    """The layer's kernel at a rate: size-keeping, zeros outside, with its bias."""
    height, width = conv.kernel_size
    padding = (rate * (height // 2), rate * (width // 2))
    made = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (height, width),
        padding=padding,
        dilation=rate,
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    made.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
    if conv.bias is not None:
        made.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    return made


def _filter(conv: nn.Conv2d, kernel: Tensor) -> nn.Conv2d:
    """A filter [k,k] or [C,1,k,k] on every channel of the layer's input."""
    channels, size = conv.in_channels, kernel.shape[-1]
    made = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False)
    weight = kernel.detach().to(conv.weight.dtype).expand(channels, 1, size, size)
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return made


class MixedBlocks(nn.Module):
    """A dilated convolution whose outputs are mixed within each block of r x r, as group interaction does.

    The mixing is a convolution of side and stride r from each channel to its r^2 places, and those places put back into
    space: no division of sizes into groups, which tracers fix to the size that they see.

    Args:
        conv: with its bias, which is added after the mixing.
        mixing: [r^2, r^2]: how much of place j (row) of a block goes into place i (column).
        rate: r, pixels.
    """

    def __init__(self, conv: nn.Conv2d, mixing: Tensor, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.bias = conv.bias
        self.conv = conv
        self.conv.bias = None
        channels = conv.out_channels
        self.mix = nn.Conv2d(channels, channels * rate**2, rate, stride=rate, groups=channels, bias=False)
        weight = mixing.T.reshape(rate**2, 1, rate, rate).repeat(channels, 1, 1, 1).to(conv.weight.dtype)
        self.mix.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W]."""
        height, width = x.shape[-2:]
        # Always by r - 1: the blocks are then as many as cover the image, without a choice that depends on its size.
        y = self.conv(F.pad(x, (0, self.rate - 1, 0, self.rate - 1)))
        y = F.pixel_shuffle(self.mix(y), self.rate).narrow(2, 0, height).narrow(3, 0, width)
        return y if self.bias is None else y + self.bias[:, None, None]
