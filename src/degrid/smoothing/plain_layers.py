"""Layers that every runtime has, to export smoothed convolutions with what they learned as constants."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def plain_conv(conv: nn.Conv2d, rate: int) -> nn.Conv2d:
    """A layer's kernel at a dilation rate: size-keeping, zeros outside, with its bias."""
    sizes, padding = conv.kernel_size, [rate * (size // 2) for size in conv.kernel_size]
    channels, bias = (conv.in_channels, conv.out_channels), conv.bias is not None
    made = nn.Conv2d(*channels, sizes, padding=padding, dilation=rate, groups=conv.groups, bias=bias)  # type: ignore[arg-type]
    made.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
    if conv.bias is not None:
        made.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    return made


def filter_conv(conv: nn.Conv2d, kernel: Tensor) -> nn.Conv2d:
    """A depthwise convolution of a layer's input with a filter [k,k], or one filter per channel [C,1,k,k]."""
    channels, size = conv.in_channels, kernel.shape[-1]
    made = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False)
    weight = kernel.detach().to(conv.weight.dtype).expand(channels, 1, size, size)
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return made


class MixedBlocks(nn.Module):
    """A dilated convolution whose outputs are mixed within each block of r x r, as group interaction does.

    The mixing is a convolution of side and stride r from each channel to r^2 channels, one per position in the block; a
    pixel shuffle then puts these into their positions. Nothing is reshaped to a size that depends on the image, which a
    tracer would record as a constant.

    Args:
        conv: with its bias, which is added after the mixing.
        mixing: [r^2, r^2]: how much of position j (row) of a block goes into position i (column).
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
        # Always by r - 1: enough blocks to cover an image of any size, without a decision that depends on the size.
        y = self.conv(F.pad(x, (0, self.rate - 1, 0, self.rate - 1)))
        y = F.pixel_shuffle(self.mix(y), self.rate).narrow(2, 0, height).narrow(3, 0, width)
        return y if self.bias is None else y + self.bias[:, None, None]
