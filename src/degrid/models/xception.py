"""Xception as projects that re-implement DeepLab build it: five networks, none of which is the one in timm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from degrid.models.own_rates import OwnRates


@dataclass(frozen=True)
class _Variant:
    """What the five differ in.

    Attributes:
        padding: of the two convolutions of the stem.
        units: separable convolutions in a block of the entry flow; with two, a pooling lowers the resolution.
        middle: blocks between the entry and the exit.
        norm: batch norm between the halves of a separable convolution.
        first_relu: whether the block of that number begins with a ReLU, for the first two; all others do.
        relu_shortcut: which shortcuts see the input after that ReLU, which the original computes in place: "all",
            "identity" (those without a convolution) or "none".
        exit: channels of the last separable convolutions. exit_relu: also between their halves.
        block_relu: whether the first block and the last are followed by a ReLU, which the second block sees.
        low_level: the block whose output, or that of its second unit, is the feature at stride 4.
        last_rate: whether the last unit of the last block is dilated like the others.
        bare: whether the second unit of the last block lacks the batch norm at its end.
    """

    padding: int
    units: int
    middle: int
    norm: bool
    first_relu: tuple[bool, bool]
    relu_shortcut: str
    exit: tuple[int, ...]
    exit_relu: bool
    block_relu: bool
    low_level: int
    last_rate: bool = True
    bare: bool = False


XCEPTIONS = {
    "jfzhang95:xception": _Variant(1, 3, 16, True, (False, False), "all", (1536, 1536, 2048), False, True, 0, False),
    "tramac:xception": _Variant(1, 3, 16, True, (False, False), "all", (1536, 1536, 2048), False, True, 0, bare=True),
    "gluoncv:xception": _Variant(1, 3, 16, True, (False, False), "none", (1536, 1536, 2048), False, True, 0),
    "bubbliiiing:xception": _Variant(1, 3, 16, True, (True, True), "identity", (1536, 1536, 2048), True, False, 1),
    "vainf:xception": _Variant(0, 2, 8, False, (False, True), "none", (1536, 2048), False, False, 0),
}
"""The variants by the names of the encoders."""


class _Separable(nn.Module):
    """Depthwise 3x3, batch norm or none, 1x1, batch norm or none; ReLU after each norm if `relu`."""

    def __init__(
        self, in_channels: int, out: int, stride: int, rate: int, norm: bool, relu: bool = False, last: bool = True
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, rate, rate, in_channels, bias=False)
        self.norm = nn.BatchNorm2d(in_channels) if norm else nn.Identity()
        self.pointwise = nn.Conv2d(in_channels, out, 1, bias=False)
        self.norm_out = nn.BatchNorm2d(out) if last else nn.Identity()
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,H,W] -> [N,out,H/stride,W/stride]."""
        x = self.relu(self.norm(self.depthwise(x)))
        return cast(Tensor, self.relu(self.norm_out(self.pointwise(x))))


class _Block(nn.Module):
    """Separable convolutions with a ReLU before each, and a shortcut."""

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, ...],
        stride: int,
        rates: tuple[int, ...],
        norm: bool,
        first_relu: bool,
        relu_shortcut: str,
    ) -> None:
        super().__init__()
        pools = len(widths) == 2 and stride > 1
        strides = [1] * (len(widths) - 1) + [1 if pools else stride]
        sizes = zip((in_channels, *widths), widths, strides, rates, strict=False)
        self.units = nn.ModuleList(_Separable(*size, norm) for size in sizes)
        self.pool = nn.MaxPool2d(3, stride, 1) if pools else nn.Identity()
        same = in_channels == widths[-1] and stride == 1
        conv = nn.Conv2d(in_channels, widths[-1], 1, stride, bias=False)
        self.shortcut = nn.Identity() if same else nn.Sequential(conv, nn.BatchNorm2d(widths[-1]))
        self.first_relu = first_relu
        self.relu_shortcut = first_relu and (relu_shortcut == "all" or (relu_shortcut == "identity" and same))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N,in,H,W] -> the output [N,out,H/stride,W/stride], and that of the second unit."""
        y = F.relu(x) if self.first_relu else x
        shortcut, second = y if self.relu_shortcut else x, y
        for index, unit in enumerate(self.units):
            y = unit(F.relu(y) if index else y)
            second = y if index == 1 else second
        return self.pool(y) + self.shortcut(shortcut), second


class PeerXception(OwnRates):
    """Xception with the parameters of one of `XCEPTIONS`.

    Features: at stride 4 what the project's decoder takes, and the last.

    Args:
        name: a row of XCEPTIONS.
        output_stride: 8 or 16.
        settings: see `OwnRates`.
    """

    def __init__(self, name: str, output_stride: int = 16, *, in_channels: int = 3, **settings: Any) -> None:
        super().__init__(name, output_stride, in_channels=in_channels, **settings)
        self.variant = of = XCEPTIONS[name]
        self.conv1 = nn.Conv2d(in_channels, 32, 3, 2, of.padding, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, 1, of.padding, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.ModuleList(
            _Block(*size, of.norm, True if index > 1 else of.first_relu[index], of.relu_shortcut)
            for index, size in enumerate(_sizes(of, output_stride))
        )
        if of.bare:
            cast(_Block, self.blocks[-1]).units[1].norm_out = nn.Identity()
        rate = (16 if name.startswith("bubbliiiing") else 32) // output_stride
        ends = zip((1024, *of.exit), of.exit, strict=False)
        self.exit = nn.ModuleList(_Separable(*end, 1, rate, of.norm, of.exit_relu) for end in ends)
        if not of.norm:  # vainf: padded by 1 whatever the rate, and taken before the last batch norm
            self.exit[-1].norm_out = nn.Identity()
            for unit in self.exit:
                cast(_Separable, unit).depthwise.padding = (1, 1)
        self.channels, self.reductions = ((128, 256)[of.low_level], 2048), (4, output_stride)
        self.draw_weights()

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> the feature at stride 4 and the last."""
        of = self.variant
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.relu(self.bn2(self.conv2(x)))
        fine = x
        for index, block in enumerate(self.blocks):
            x, second = block(x)
            if of.block_relu and index in (0, len(self.blocks) - 1):
                x = F.relu(x)
            if index == of.low_level:
                fine = second if index else x
        for index, unit in enumerate(self.exit):
            x = unit(x)
            if not of.exit_relu and (of.norm or index == 0):
                x = F.relu(x)
        return [fine, x]


def _sizes(of: _Variant, output_stride: int) -> list[tuple[int, tuple[int, ...], int, tuple[int, ...]]]:
    """Input channels of each block, those of its units, stride, and the units' rates."""
    fine = 16 // output_stride  # the stride that the third block loses
    vainf = of.units == 2
    entry = [
        (before, (width,) * of.units, stride, (rate,) * of.units)
        for before, width, stride, rate in (
            (64, 128, 2, 1),
            (128, 256, 2, 1),
            (256, 728, 2 // fine, fine if vainf else 1),
        )
    ]
    middle = [(728, (728,) * 3, 1, (fine,) * 3)] * of.middle
    widths = (728, 1024, 1024)[: of.units]
    rates = (2 * fine,) * 2 if vainf else (fine, fine, fine if of.last_rate else 1)
    return [*entry, *middle, (728, widths, 1, rates)]
