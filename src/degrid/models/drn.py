"""DRN-D-54, the dilated residual network that one project puts below DeepLab v3+."""

from __future__ import annotations

from typing import Any

from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from degrid.models.own_rates import OwnRates


class Drn(OwnRates):
    """DRN-D-54: a stem at stride 1, four stages of bottlenecks, and two convolutions that undo their gridding.

    Features: the first stage of bottlenecks at stride 4, and the last at stride 8, the only one there is.

    Args:
        name: "jfzhang95:drn_d_54".
        output_stride: 8.
        settings: see `OwnRates`.
    Source: Yu et al. (arXiv 1705.09914) section 4.
    """

    strides = (8,)
    channels = (256, 512)
    reductions = (4, 8)

    def __init__(self, name: str, output_stride: int = 8, *, in_channels: int = 3, **settings: Any) -> None:
        super().__init__(name, output_stride, in_channels=in_channels, **settings)
        self.layer0 = _conv(in_channels, 16, kernel=7)
        self.layer1 = _conv(16, 16)
        self.layer2 = _conv(16, 32, stride=2)
        self.layer3 = _stage(32, 64, 3, stride=2)
        self.layer4 = _stage(256, 128, 4, stride=2)
        self.layer5 = _stage(512, 256, 6, rate=2)
        self.layer6 = _stage(1024, 512, 3, rate=4)
        self.layer7 = _conv(2048, 512, rate=2)
        self.layer8 = _conv(512, 512)
        self.draw_weights()

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> the features at strides 4 and 8."""
        fine = self.layer3(self.layer2(self.layer1(self.layer0(image))))
        x = self.layer6(self.layer5(self.layer4(fine)))
        return [fine, self.layer8(self.layer7(x))]


def _conv(in_channels: int, out: int, kernel: int = 3, stride: int = 1, rate: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out, kernel, stride, rate * (kernel // 2), rate, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _stage(in_channels: int, width: int, units: int, stride: int = 1, rate: int = 1) -> nn.Sequential:
    out = 4 * width
    shortcut = nn.Sequential(nn.Conv2d(in_channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    first = Bottleneck(in_channels, width, stride, shortcut, dilation=rate)
    return nn.Sequential(first, *(Bottleneck(out, width, dilation=rate) for _ in range(units - 1)))
