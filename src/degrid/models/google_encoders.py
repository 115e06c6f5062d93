"""Encoders as Google's TensorFlow code computes them, where timm's differ."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.conv_bn_act import ConvNormAct
from timm.layers.helpers import make_divisible
from timm.models.xception_aligned import SeparableConv2d
from torch import Tensor, nn

from degrid.models.library_encoders import TimmEncoder
from degrid.models.resnet import Bottleneck, ResNet
from degrid.models.strides import pair

_FEATURES = (0, 1, 2, 4, 6)  # the stages of MobileNetV2 before each loss of resolution, and the last


class GoogleMobileNetV2(TimmEncoder):
    """MobileNetV2 with TensorFlow's padding and batch norm epsilon.

    Its feature at stride 4, which the decoder reads, is that of the second depthwise convolution there.

    Args:
        name: "google:mobilenetv2_100", or with the width 035, 050, 075 or 140; "google:mobilenetv2_dm050" and so on
            have the channels of research/deeplab, which are multiples of 1 and not of 8.
        settings: see `TimmEncoder`.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name.removeprefix("google:").replace("_dm", "_"), **settings)
        if "_dm" in name:
            self.channels = _set_widths(self.net, int(name[-3:]) / 100)
        self.channels = (self.channels[0], self.net.blocks[1][1].conv_dw.out_channels, *self.channels[2:])
        modules: list[Any] = list(self.net.modules())
        for module in modules:
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-3
            elif isinstance(module, nn.Conv2d) and pair(module.stride) != (1, 1):
                module.__class__, module.padding = Conv2dSame, (0, 0)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> features, fine to coarse."""
        x, features = self.net.bn1(self.net.conv_stem(image)), list[Tensor]()
        for index, stage in enumerate(self.net.blocks):
            if index == 1:
                first, second = stage
                x = first(x)
                features.append(second.bn2(second.conv_dw(second.bn1(second.conv_pw(x)))))
                x = x + second.bn3(second.conv_pwl(features[-1]))
                continue
            x = stage(x)
            if index in _FEATURES:
                features.append(x)
        return features


def _set_widths(net: Any, factor: float) -> tuple[int, ...]:
    """Give MobileNetV2 its channels times a factor, rounded to whole numbers, and its expansions to multiples of 8.

    Returns the channels of its features.
    """
    width, ends = int(32 * factor + 0.5), []
    _resize(net.conv_stem, net.bn1, net.conv_stem.in_channels, width)
    for base, stage in zip((16, 24, 32, 64, 96, 160, 320), net.blocks, strict=True):
        out = int(base * factor + 0.5)
        for block in stage:
            if not hasattr(block, "conv_pwl"):  # the first, without expansion
                _resize(block.conv_dw, block.bn1, width, width)
                _resize(block.conv_pw, block.bn2, width, out)
            else:
                wide = make_divisible(6 * width)  # type: ignore[no-untyped-call]
                _resize(block.conv_pw, block.bn1, width, wide)
                _resize(block.conv_dw, block.bn2, wide, wide)
                _resize(block.conv_pwl, block.bn3, wide, out)
            width = out
        ends.append(out)
    return tuple(ends[stage] for stage in _FEATURES)


class GoogleMobileNetV3(TimmEncoder):
    """MobileNetV3 of research/deeplab, whose last stage has half the channels.

    The features that heads may read at strides 4, 8 and 16 are those of the last depthwise convolutions there, before
    squeeze and excitation.

    Args:
        name: "google:mobilenetv3_large" or "google:mobilenetv3_small".
        settings: see `TimmEncoder`.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        large = name.endswith("large")
        super().__init__(f"tf_{name.removeprefix('google:')}_100", **settings)
        *stages, (last,) = self.net.blocks
        out = last.conv.in_channels // 2
        for index, block in enumerate(stages[-1]):
            wide = block.conv_pw.out_channels // 2
            _resize(block.conv_pw, block.bn1, block.conv_pw.in_channels if index == 0 else out, wide)
            _resize(block.conv_dw, block.bn2, wide, wide)
            _resize(block.conv_pwl, block.bn3, wide, out)
            _set_gate(block.se, wide)
            block.has_skip = pair(block.conv_dw.stride) == (1, 1) and block.conv_pw.in_channels == out
        _resize(last.conv, last.bn1, out, last.conv.out_channels // 2)
        self.taps = ((1, 1), (2, 2), (4, 1)) if large else ((0, 0), (1, 1), (3, 1))
        tapped = (self.net.blocks[stage][unit].conv_dw.out_channels for stage, unit in self.taps)
        self.channels = (self.net.conv_stem.out_channels, *tapped, last.conv.out_channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> features, fine to coarse."""
        x = self.net.act1(self.net.bn1(self.net.conv_stem(image)))
        features = [x]
        for index, stage in enumerate(self.net.blocks):
            for unit, block in enumerate(stage):
                if (index, unit) not in self.taps:
                    x = block(x)
                    continue
                before, wide = x, hasattr(block, "conv_pwl")  # the other kind of block has no expansion
                deep = block.bn2(block.conv_dw(block.bn1(block.conv_pw(x)))) if wide else block.bn1(block.conv_dw(x))
                features.append(deep)
                x = block.se(deep)
                x = block.bn3(block.conv_pwl(x)) if wide else block.bn2(block.conv_pw(x))
                x = x + before if block.has_skip else x
        return [*features, x]


def _set_gate(gate: Any, channels: int) -> None:
    """Change the channels of squeeze and excitation; its inner layer has a quarter, rounded to a multiple of 8."""
    between = make_divisible(channels / 4)  # type: ignore[no-untyped-call]
    gate.conv_reduce = nn.Conv2d(channels, between, 1)
    gate.conv_expand = nn.Conv2d(between, channels, 1)


def _resize(conv: Any, norm: Any, before: int, out: int) -> None:
    """A different number of channels, with random weights."""
    conv.groups = out if conv.groups > 1 else 1
    conv.in_channels, conv.out_channels, norm.num_features = before, out, out
    conv.weight = nn.Parameter(conv.weight.new_empty(out, before // conv.groups, *conv.kernel_size))
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    norm.weight, norm.bias = nn.Parameter(norm.weight.new_ones(out)), nn.Parameter(norm.bias.new_zeros(out))
    norm.running_mean, norm.running_var = norm.running_mean.new_zeros(out), norm.running_var.new_ones(out)


class _ReluFirst(SeparableConv2d):
    """A separable convolution with the ReLU that timm applies before it."""

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,H,W] -> [N,out,h,w]."""
        y: Tensor = super().forward(F.relu(x))  # type: ignore[no-untyped-call]
        return y


class GoogleXception(TimmEncoder):
    """Xception whose feature at stride 4, which the decoder reads, is that before the ReLU.

    Args:
        name: "google:xception41", 65 or 71; "bonlime:xception65" pads the first convolution by TensorFlow's rule.
        settings: see `TimmEncoder`.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name.partition(":")[2], **settings)
        if name.startswith("bonlime:"):
            stem: Any = self.net.stem_0.conv
            stem.__class__, stem.padding = Conv2dSame, (0, 0)
        if name == "google:xception71" and self.net.blocks_4.shortcut is None:  # at output stride 8
            width = self.net.blocks_4.in_channels
            self.net.blocks_4.shortcut = ConvNormAct(width, width, 1, apply_act=False)
            self.net.blocks_4.shortcut.bn.eps = self.net.blocks_3.shortcut.bn.eps
        tap = self.net.feature_info.module_name(1).replace("blocks.", "blocks_").rpartition(".")
        stack: Any = self.net.get_submodule(tap[0])
        getattr(stack, tap[2]).__class__ = nn.Identity  # in place, as timm takes the feature from this module
        stack.conv3.__class__ = _ReluFirst


class GoogleResNet(ResNet):
    """slim's ResNet v1 with TensorFlow's pooling, whose feature at stride 4 is the second unit's before its sum.

    Args:
        name: "google:resnet_v1_50" or 101; "google:resnet_v1_50_beta" or 101 has three 3x3 convolutions in the place of
            the first.
        in_channels: of the images.
        settings: the others of `ResNet`.
    """

    def __init__(self, name: str, *, in_channels: int = 3, **settings: Any) -> None:
        deep = name.endswith("_beta")
        plain = name.replace("google:", "slim:").removesuffix("_beta")
        super().__init__(plain, in_channels=in_channels, **{**settings, "legacy": True})
        if deep:
            widths, layers = (64, 64, 128), list[nn.Module]()
            for before, width, stride in zip((in_channels, *widths), widths, (2, 1, 1), strict=False):
                layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
            self.conv1 = nn.Sequential(*layers[:-2])
            self.bn1 = nn.BatchNorm2d(widths[-1])
            cast(nn.Sequential, self.layer1)[0] = Bottleneck(widths[-1], 64, 1, 1, self.bn1.eps)
            self.channels = (widths[-1], *self.channels[1:])

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> features, fine to coarse."""
        x = self.relu(self.bn1(self.conv1(image)))
        features = [x]
        first, second, *others = cast(nn.Sequential, self.layer1)
        x = first(self.pooled(x))
        fine = cast(Bottleneck, second).residual(x)
        x = F.relu(fine + x)
        for unit in others:
            x = unit(x)
        features.append(fine)
        for stage in (2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
            features.append(x)
        return features


GOOGLE_ENCODERS: dict[str, type[nn.Module]] = {
    **{f"google:xception{depth}": GoogleXception for depth in (41, 65, 71)},
    "bonlime:xception65": GoogleXception,
    **{f"google:resnet_v1_{depth}{beta}": GoogleResNet for depth in (50, 101) for beta in ("", "_beta")},
    **{f"google:mobilenetv3_{size}": GoogleMobileNetV3 for size in ("large", "small")},
    **{f"google:mobilenetv2_{width}": GoogleMobileNetV2 for width in ("035", "050", "075", "100", "140")},
    **{f"google:mobilenetv2_dm{width}": GoogleMobileNetV2 for width in ("035", "050", "075", "140")},
}
