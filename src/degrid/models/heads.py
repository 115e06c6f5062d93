"""DeepLab heads: features in, logits out."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid.resize import resize

# Rates of the ASPP of DeepLab v3 at output stride 16 (arXiv 1706.05587 section 3.3); they scale with the resolution.
V3_RATES_AT_STRIDE_16 = (6, 12, 18)
V2_RATES = (6, 12, 18, 24)


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel: int, rate: int = 1, separable: bool = False, relu: bool = True
) -> nn.Sequential:
    """Size-keeping convolution without bias, batch norm, ReLU.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: side k.
        rate: dilation rate.
        separable: depthwise k x k, batch norm and ReLU, then 1x1 (DeepLab v3+, arXiv 1802.02611 section 3.2).
        relu: False leaves out the ReLU.
    """
    padding = rate * (kernel // 2)

    def layers(channels: int, out: int, size: int, pad: int, dilation: int, groups: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, out, size, padding=pad, dilation=dilation, groups=groups, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        return [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True) if relu else nn.Identity()]

    if not separable or kernel == 1:
        return nn.Sequential(*layers(in_channels, out_channels, kernel, padding, rate, 1))
    depthwise = layers(in_channels, in_channels, kernel, padding, rate, in_channels)
    return nn.Sequential(*depthwise, *layers(in_channels, out_channels, 1, 0, 1, 1))


def plain_separable(in_channels: int, out_channels: int, rate: int = 1) -> nn.Sequential:
    """3x3 depthwise, 1x1, batch norm, ReLU; nothing between the halves, as in segmentation_models.pytorch."""
    depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=rate, dilation=rate, groups=in_channels, bias=False)
    nn.init.kaiming_normal_(depthwise.weight, nonlinearity="relu")
    return nn.Sequential(depthwise, *conv_norm_relu(in_channels, out_channels, 1))


def classifier(in_channels: int, num_classes: int, kernel: int = 1, rate: int = 1) -> nn.Conv2d:
    """The last convolution. It has a bias; weights start from N(0, 0.01) and biases from 0, as in Caffe's DeepLab."""
    conv = nn.Conv2d(in_channels, num_classes, kernel, padding=rate * (kernel // 2), dilation=rate)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(cast(Tensor, conv.bias))
    return conv


class DeepLabV2Head(nn.Module):
    """Summed atrous spatial pyramid pooling (ASPP): the sum of one 3x3 classifier per rate; LargeFOV with one rate.

    It has no batch norm and no ReLU, and gives logits at the stride of the last feature.

    Source: DeepLab v2 (arXiv 1606.00915) section 3.2; rates 6, 12, 18, 24 (ASPP-L) or 12 (LargeFOV).
    """

    def __init__(self, in_channels: int, num_classes: int, rates: tuple[int, ...] = V2_RATES) -> None:
        super().__init__()
        self.branches = nn.ModuleList(classifier(in_channels, num_classes, 3, rate) for rate in rates)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features, fine to coarse -> logits [N,C,h,w]."""
        return torch.stack([branch(features[-1]) for branch in self.branches]).sum(0)


class ImagePooling(nn.Module):
    """The image's mean feature through a 1x1 convolution, at every position.

    In training with a single image, batch norm would see one value per channel, whose variance is 0. The running
    statistics are used instead, and are not updated.

    Source: DeepLab v3 (arXiv 1706.05587) section 3.3.
    """

    def __init__(self, in_channels: int, out_channels: int, relu: bool = True) -> None:
        super().__init__()
        self.project = conv_norm_relu(in_channels, out_channels, 1, relu=relu)

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W], constant over the image."""
        conv, norm, relu = self.project
        pooled: Tensor = conv(x.mean((2, 3), keepdim=True))
        if norm.training and len(x) == 1:
            fixed = cast(nn.BatchNorm2d, norm)
            pooled = F.batch_norm(
                pooled, fixed.running_mean, fixed.running_var, fixed.weight, fixed.bias, eps=fixed.eps
            )
        else:
            pooled = norm(pooled)
        # Broadcast rather than interpolate: runtimes differ in how they enlarge a single pixel.
        spread = cast(Tensor, relu(pooled)).expand(-1, -1, *x.shape[-2:])
        if not torch.compiler.is_compiling() and x.is_contiguous(memory_format=torch.channels_last):
            # Concatenating an expanded map with channels_last ones is slow, and the result would not be channels_last.
            return spread.contiguous(memory_format=torch.channels_last)
        return spread


class ASPP(nn.Module):
    """Concatenated atrous spatial pyramid pooling: 1x1, one 3x3 per rate, and image pooling; projected by a 1x1.

    Args:
        in_channels: of the input.
        channels: of every branch and of the output.
        rates: of the 3x3 branches, in pixels of the feature map.
        dropout: fraction of values dropped after the projection, 0 to 1.
        separable: depthwise-separable 3x3 branches.
        relu: False leaves out the ReLU after each batch norm.
        branch: makes a 3x3 branch from its input channels, output channels and rate, in place of `conv_norm_relu`.
    Source: DeepLab v3 (arXiv 1706.05587) section 3.3.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        rates: tuple[int, ...],
        dropout: float = 0.1,
        separable: bool = False,
        relu: bool = True,
        branch: Callable[[int, int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        wide = branch or (lambda size, out, rate: conv_norm_relu(size, out, 3, rate, separable, relu))
        self.branches = nn.ModuleList(
            [
                conv_norm_relu(in_channels, channels, 1, relu=relu),
                *(wide(in_channels, channels, rate) for rate in rates),
                ImagePooling(in_channels, channels, relu),
            ]
        )
        self.project = conv_norm_relu(channels * len(self.branches), channels, 1, relu=relu)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,h,w] -> [N,channels,h,w]."""
        joined = torch.cat([branch(x) for branch in self.branches], dim=1)
        return cast(Tensor, self.dropout(self.project(joined)))


class DeepLabV3Head(nn.Module):
    """ASPP and a 1x1 classifier on the last feature; logits at its stride.

    Args:
        aspp: on the last feature.
        channels: of ASPP's output.
        num_classes: of the logits.
        refine: one more 3x3 convolution before the classifier, as in torchvision and segmentation_models.pytorch.
    Source: DeepLab v3 (arXiv 1706.05587) section 3.3.
    """

    def __init__(self, aspp: ASPP, channels: int, num_classes: int, refine: bool = False) -> None:
        super().__init__()
        self.aspp = aspp
        self.refine = conv_norm_relu(channels, channels, 3) if refine else nn.Identity()
        self.classifier = classifier(channels, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features, fine to coarse -> logits [N,C,h,w]."""
        return cast(Tensor, self.classifier(self.refine(self.aspp(features[-1]))))


class DeepLabV3PlusHead(nn.Module):
    """ASPP, and a decoder that joins its output with a fine feature; logits at the stride of that feature, 4.

    Args:
        aspp: on the last feature.
        channels: of ASPP's output and of the decoder.
        num_classes: of the logits.
        low_level: index of the fine feature.
        low_level_in: its channels.
        low_level_channels: to which a 1x1 reduces them, so that it does not outweigh ASPP.
        separable: depthwise-separable convolutions in the decoder.
        after_aspp: applied to ASPP's output before it is enlarged; nothing by default.
        refine: from channels + low_level_channels to channels; two 3x3 by default.
        convention: how ASPP's output is enlarged, see `degrid.resize`.
    Source: DeepLab v3+ (arXiv 1802.02611) section 3.1; 48 channels and two 3x3 from tables 1 and 2.
    """

    def __init__(
        self,
        aspp: ASPP,
        channels: int,
        num_classes: int,
        low_level: int,
        low_level_in: int,
        low_level_channels: int = 48,
        separable: bool = False,
        after_aspp: nn.Module | None = None,
        refine: nn.Module | None = None,
        convention: str = "half_pixel",
    ) -> None:
        super().__init__()
        self.aspp = aspp
        self.after_aspp = after_aspp or nn.Identity()
        self.low_level = low_level
        self.convention = convention
        self.reduce = conv_norm_relu(low_level_in, low_level_channels, 1)
        self.refine = refine or nn.Sequential(
            conv_norm_relu(channels + low_level_channels, channels, 3, separable=separable),
            conv_norm_relu(channels, channels, 3, separable=separable),
        )
        self.classifier = classifier(channels, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features, fine to coarse -> logits [N,C,H/4,W/4]."""
        fine = self.reduce(features[self.low_level])
        wide = self.after_aspp(self.aspp(features[-1]))
        wide = resize(wide, fine.shape[-2:], self.convention)
        return cast(Tensor, self.classifier(self.refine(torch.cat([wide, fine], dim=1))))
