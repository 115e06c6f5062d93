"""Encoders whose strides and rates are their own."""

from __future__ import annotations

from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from degrid.resize import resize
from degrid.types import Preprocess, UserError


class OwnRates(nn.Module):
    """An encoder whose rates no setting changes; without ImageNet weights, unless a class takes `pretrained` itself.

    Args:
        output_stride: one of `strides`.
        pretrained: False.
        multi_grid, uniform_rates: not supported. legacy: has no effect.
        preprocess, in_channels: see `degrid.models.encoder.EncoderSettings`.
    Raises:
        UserError: a setting that it does not support.
    """

    strides: tuple[int, ...] = (8, 16)

    def __init__(
        self,
        name: str,
        output_stride: int,
        *,
        pretrained: bool | str = False,
        multi_grid: tuple[int, ...] | None = None,
        preprocess: Preprocess | None = None,
        uniform_rates: bool = False,
        legacy: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if output_stride not in self.strides or multi_grid or uniform_rates:
            raise UserError(f"{name} supports output stride {' or '.join(map(str, self.strides))}, with its own rates")
        if pretrained:
            raise UserError(
                f"there are no ImageNet weights for {name}: train from random weights (--set model.pretrained=false, "
                "pretrained=False), or from a converted model (--init FOLDER)"
            )
        self.preprocess = preprocess or Preprocess().of_channels(in_channels)

    def draw_weights(self) -> None:
        """Draw the weights of all convolutions, by what reads each (He et al., arXiv 1502.01852, "fan out")."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


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
        self.layer0 = _conv_norm(in_channels, 16, kernel=7)
        self.layer1 = _conv_norm(16, 16)
        self.layer2 = _conv_norm(16, 32, stride=2)
        self.layer3 = _stage(32, 64, 3, stride=2)
        self.layer4 = _stage(256, 128, 4, stride=2)
        self.layer5 = _stage(512, 256, 6, rate=2)
        self.layer6 = _stage(1024, 512, 3, rate=4)
        self.layer7 = _conv_norm(2048, 512, rate=2)
        self.layer8 = _conv_norm(512, 512)
        self.draw_weights()

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> the features at strides 4 and 8."""
        fine = self.layer3(self.layer2(self.layer1(self.layer0(image))))
        x = self.layer6(self.layer5(self.layer4(fine)))
        return [fine, self.layer8(self.layer7(x))]


def _conv_norm(in_channels: int, out: int, kernel: int = 3, stride: int = 1, rate: int = 1) -> nn.Sequential:
    conv = _conv(in_channels, out, kernel, rate, stride)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _stage(in_channels: int, width: int, units: int, stride: int = 1, rate: int = 1) -> nn.Sequential:
    out = 4 * width
    shortcut = nn.Sequential(nn.Conv2d(in_channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    first = Bottleneck(in_channels, width, stride, shortcut, dilation=rate)
    return nn.Sequential(first, *(Bottleneck(out, width, dilation=rate) for _ in range(units - 1)))


class PeerHRNet(OwnRates):
    """HRNetV2 of timm; features at stride 4: the first stage, and the last with all resolutions joined.

    The stem has no ReLU between its convolutions, since that project runs its layers in the order of their definition.

    Images are padded by zeros at the bottom and right to sides of a multiple of 32, which the network needs, and the
    features cropped.

    Args:
        name: "vainf:hrnetv2_32" or "vainf:hrnetv2_48", with the channels of the finest resolution.
        output_stride: 4.
        settings: see `OwnRates`.
    Source: arXiv 1908.07919 section 3.
    """

    strides = (4,)

    def __init__(self, name: str, output_stride: int = 4, *, in_channels: int = 3, **settings: Any) -> None:
        super().__init__(name, output_stride, in_channels=in_channels, **settings)
        width = int(name.rpartition("_")[2])
        self.net: Any = timm.create_model(
            f"hrnet_w{width}", features_only=True, feature_location="", in_chans=in_channels
        )
        self.channels, self.reductions = (256, 15 * width), (4, 4)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> two features at stride 4."""
        net, (height, width) = self.net, image.shape[-2:]
        x = F.pad(image, (0, -width % 32, 0, -height % 32))
        x = net.act2(net.bn2(net.conv2(net.bn1(net.conv1(x)))))
        fine: Tensor = net.layer1(x)
        maps: list[Tensor] = net.stage2([branch(fine) for branch in net.transition1])
        for transition, stage in ((net.transition2, net.stage3), (net.transition3, net.stage4)):
            maps = stage([*maps, transition[-1](maps[-1])])
        joined = torch.cat([resize(each, maps[0].shape[-2:]) for each in maps], dim=1)
        size = -(-height // 4), -(-width // 4)
        return [each[..., : size[0], : size[1]] for each in (fine, joined)]


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


def _conv(in_channels: int, out: int, kernel: int, rate: int, stride: int = 1) -> nn.Conv2d:
    rate = rate if kernel > 1 else 1
    return nn.Conv2d(in_channels, out, kernel, stride, rate * (kernel // 2), rate, bias=False)


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
