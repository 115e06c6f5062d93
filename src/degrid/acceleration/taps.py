"""Dilated convolutions as sums of shifted 1x1 convolutions, where the library's own convolution is slow.

Two cases on CPUs: an output of few channels, such as DeepLab v2's 21 logits, which do not fill the wide vector units;
and bfloat16 at large rates on the 2048 channels of a ResNet where the processor has matrix units (AMX), since oneDNN
leaves its fast path there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid.acceleration.fold import has_hooks
from degrid.acceleration.training import taps_inside
from degrid.kernels.support import has_matrix_units

NARROW = 32
"""Largest number of output channels that counts as few."""
_WIDTH = 16


class TapConv2d(nn.Module):
    """A size-keeping convolution, each of whose taps is a 1x1 convolution.

    With few output channels all taps are one 1x1 convolution to k * k * K channels, whose parts are added up at their
    places; the input is read once. Otherwise each tap reads only the pixels from which it reaches into the image:
    at rate 36 on 65 pixels less than half of them.

    Args:
        conv: the convolution it computes: any odd kernel, rate and bias; stride 1, one group, zeros "same" padding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.kernel_size, self.rate, self.out_channels = conv.kernel_size, conv.dilation[0], conv.out_channels
        taps = conv.weight.detach().permute(2, 3, 0, 1).flatten(0, 1)  # [k*k, K, C]
        if conv.out_channels <= NARROW:
            stacked = taps.flatten(0, 1)
            taps = F.pad(stacked, (0, 0, 0, -len(stacked) % _WIDTH))[None]
        layout = torch.channels_last
        self.taps = nn.ParameterList(
            nn.Parameter(tap[:, :, None, None].contiguous(memory_format=layout), requires_grad=False) for tap in taps
        )
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,K,H,W], channels_last; added up in float32, which it stays where the outputs are few."""
        height, width = x.shape[-2:]
        total = x.new_zeros(len(x), height, width, self.out_channels, dtype=torch.float32).permute(0, 3, 1, 2)
        if self.bias is not None:
            total += self.bias[:, None, None]
        stacked = F.conv2d(x, self.taps[0]) if self.out_channels <= NARROW else None
        for i, j, part, place in taps_inside(x.shape, self.rate, self.kernel_size):
            index = i * self.kernel_size[1] + j
            if stacked is None:
                found = F.conv2d(x[part], self.taps[index])
            else:
                first = index * self.out_channels
                found = stacked[:, first : first + self.out_channels][part]
            total[place] += found
        return total if stacked is not None else total.to(found.dtype)


def use_taps(model: nn.Module, dtype: torch.dtype) -> int:
    """Replace, in place, the convolutions of an inference copy that are faster as taps; returns their number.

    Args:
        dtype: what the convolutions run in, float32 or bfloat16.
    """
    found = [(name, module) for name, module in model.named_modules() if _wins(module, dtype)]
    for name, conv in found:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, TapConv2d(conv))
    return len(found)


def reach_onednn(model: nn.Module) -> int:
    """Let the 1x1 convolutions of an inference copy run in oneDNN on one thread, too, in place; returns their number.

    On one thread PyTorch gives batches below 16 to another library, which takes up to twice as long, but only where
    nothing is dilated. A single tap has no rate, so that one of 2 changes nothing else.
    """
    found = [each for each in model.modules() if type(each) is nn.Conv2d and _is_single_tap(each)]
    for conv in found:
        conv.dilation = (2, 2)
    return len(found)


def _is_single_tap(conv: nn.Conv2d) -> bool:
    return (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((1, 1), (1, 1), (0, 0), (1, 1))


def _wins(module: nn.Module, dtype: torch.dtype) -> bool:
    """Measured on 2 cores: ratios of 1.4 and more with AMX; in bfloat16 without it 0.87."""
    if type(module) is not nn.Conv2d or module.kernel_size == (1, 1) or not _can_be_taps(module) or has_hooks(module):
        return False
    narrow = module.out_channels <= NARROW and module.in_channels >= 256
    slow = dtype == torch.bfloat16 and module.in_channels >= 2048 and module.dilation[0] >= 4
    return narrow or (slow and has_matrix_units())


def _can_be_taps(conv: nn.Conv2d) -> bool:
    """Whether `TapConv2d` can stand for it."""
    same = tuple(rate * (size // 2) for rate, size in zip(conv.dilation, conv.kernel_size, strict=True))
    keeps_size = conv.padding == same and conv.padding_mode == "zeros" and all(size % 2 for size in conv.kernel_size)
    return keeps_size and conv.dilation[0] == conv.dilation[1] and conv.stride == (1, 1) and conv.groups == 1
