"""WideResNet-38, which one project puts below DeepLab v3+."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from degrid.models.own_rates import OwnRates

# Of each stage: its units, the channels of their convolutions, the stride of the first, the rate, and dropout.
_STAGES = (
    (3, (128, 128), 1, 1, 0.0),
    (3, (256, 256), 1, 1, 0.0),
    (6, (512, 512), 2, 1, 0.0),
    (3, (512, 1024), 1, 2, 0.0),
    (1, (512, 1024, 2048), 1, 4, 0.3),
    (1, (1024, 2048, 4096), 1, 4, 0.5),
)


class _Unit(nn.Module):
    """Batch norm and ReLU before each convolution: two 3x3, or 1x1, 3x3 and 1x1."""

    def __init__(self, in_channels: int, widths: tuple[int, ...], stride: int, rate: int, dropout: float) -> None:
        super().__init__()
        before, kernels = (in_channels, *widths[:-1]), (3, 3) if len(widths) == 2 else (1, 3, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in before)
        convs = [_conv(*sizes, rate) for sizes in zip(before, widths, kernels, strict=True)]
        convs[0].stride = (stride, stride)
        self.convs = nn.ModuleList(convs)
        self.dropout = nn.Dropout2d(dropout)
        same = stride == 1 and in_channels == widths[-1]
        self.shortcut = None if same else nn.Conv2d(in_channels, widths[-1], 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,H,W] -> [N,out,H/stride,W/stride]."""
        first, *norms = self.norms
        conv, *convs = self.convs
        y = F.relu(first(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = conv(y)
        for index, (norm, conv) in enumerate(zip(norms, convs, strict=True)):
            y = F.relu(norm(y))
            y = conv(self.dropout(y) if index == len(convs) - 1 else y)
        return cast(Tensor, y + shortcut)


def _conv(in_channels: int, out: int, kernel: int, rate: int) -> nn.Conv2d:
    rate = rate if kernel > 1 else 1
    return nn.Conv2d(in_channels, out, kernel, 1, rate * (kernel // 2), rate, bias=False)


class WideResNet38(OwnRates):
    """WideResNet-38 in the variant A2: pre-activation, and max pooling before the second and the third stage.

    Features: the second stage at stride 2, and the last at stride 8, the only one there is; before their batch norm.

    Args:
        name: "nvidia:wider_resnet38".
        output_stride: 8.
        settings: see `OwnRates`.
    Source: Wu et al. (arXiv 1611.10080) section 4.
    """

    strides = (8,)
    channels = (128, 4096)
    reductions = (2, 8)

    def __init__(self, name: str, output_stride: int = 8, *, in_channels: int = 3, **settings: Any) -> None:
        super().__init__(name, output_stride, in_channels=in_channels, **settings)
        self.stem = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(3, 2, 1)
        before, stages = 64, list[nn.Module]()
        for units, widths, stride, rate, dropout in _STAGES:
            blocks = []
            for unit in range(units):
                blocks.append(_Unit(before, widths, 1 if unit else stride, rate, dropout))
                before = widths[-1]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.draw_weights()

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> the features at strides 2 and 8."""
        first, second, *others = self.stages
        fine: Tensor = first(self.pool(self.stem(image)))
        x = second(self.pool(fine))
        for stage in others:
            x = stage(x)
        return [fine, x]
