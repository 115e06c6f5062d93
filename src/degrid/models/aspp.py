"""Atrous spatial pyramid pooling, and the layers that heads are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid.contracts import WithPlainForm
from degrid.resize import resize
from degrid.types import UserError

MakeBranch = Callable[[int, int, int], nn.Module]
"""(input channels, output channels, rate) -> a 3x3 branch of ASPP."""


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel: int, rate: int = 1, separable: bool = False, relu: bool = True
) -> nn.Sequential:
    """Size-keeping convolution without bias, batch norm, ReLU.

    Args:
        kernel: side k.
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


def no_window_for_free_sizes(x: Tensor) -> None:
    """Raise UserError while a graph for images of every size is recorded: whether a window slides depends on it."""
    if any(isinstance(side, torch.SymInt) for side in x.shape[-2:]):
        raise UserError(
            "the image pooling of this network has a window (model.pooling_size), so its graph depends on the "
            "size of the image: export it for one size, or with model.pooling_size set to none"
        )


class ImagePooling(nn.Module):
    """The image's mean feature through a 1x1 convolution, at every position.

    In training with a single image, batch norm would see one value per channel, whose variance is 0. The running
    statistics are used instead, and are not updated.

    Args:
        window: rows and columns of the feature map; where the map is larger, means over windows of that size at every
            place, enlarged to the map, take the place of the image's mean. None: always the image's mean.
        resize: how those means are enlarged; a name in `degrid.types.RESIZES`.
    Source: DeepLab v3 (arXiv 1706.05587) section 3.3; the window: detectron2, which takes its training crop.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        relu: bool = True,
        window: tuple[int, int] | None = None,
        resize: str = "half_pixel",
    ) -> None:
        super().__init__()
        self.project = conv_norm_relu(in_channels, out_channels, 1, relu=relu)
        self.window, self.convention = window, resize

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W], constant over the image without a window."""
        if self.window is not None:
            no_window_for_free_sizes(x)
            height, width = (min(side, most) for side, most in zip(x.shape[-2:], self.window, strict=True))
            if (height, width) != tuple(x.shape[-2:]):
                means = F.avg_pool2d(x, (height, width), stride=1)
                return resize(cast(Tensor, self.project(means)), x.shape[-2:], self.convention)
        conv, norm, relu = self.project
        pooled: Tensor = conv(x.mean((2, 3), keepdim=True))
        recorded = isinstance(x, torch.fx.Proxy)  # which has no number of images; one alone then fails, as in PyTorch
        if norm.training and not recorded and len(x) == 1:
            of = cast(nn.BatchNorm2d, norm)
            pooled = F.batch_norm(pooled, of.running_mean, of.running_var, of.weight, of.bias, eps=of.eps)
        else:
            pooled = norm(pooled)
        # Broadcast rather than interpolate: runtimes differ in how they enlarge a single pixel.
        spread = cast(Tensor, relu(pooled)).expand(-1, -1, x.shape[-2], x.shape[-1])
        if not (recorded or torch.compiler.is_compiling()) and x.is_contiguous(memory_format=torch.channels_last):
            # Concatenating an expanded map with channels_last ones is slow, and the result would not be channels_last.
            return spread.contiguous(memory_format=torch.channels_last)
        return spread


class ASPP(nn.Module, WithPlainForm):
    """Concatenated atrous spatial pyramid pooling: 1x1, one 3x3 per rate, and image pooling; projected by a 1x1.

    Args:
        channels: of every branch and of the output.
        rates: of the 3x3 branches, in pixels of the feature map.
        dropout: fraction of values dropped after the projection, 0 to 1.
        separable: depthwise-separable 3x3 branches.
        relu: False leaves out the ReLU after each batch norm.
        branch: makes the 3x3 branches, instead of `conv_norm_relu`.
        project: side of the projection's kernel.
        window, resize: see `ImagePooling`.
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
        branch: MakeBranch | None = None,
        project: int = 1,
        window: tuple[int, int] | None = None,
        resize: str = "half_pixel",
    ) -> None:
        super().__init__()
        wide = branch or (lambda size, out, rate: conv_norm_relu(size, out, 3, rate, separable, relu))
        self.branches = nn.ModuleList(
            [
                conv_norm_relu(in_channels, channels, 1, relu=relu),
                *(wide(in_channels, channels, rate) for rate in rates),
                ImagePooling(in_channels, channels, relu, window, resize),
            ]
        )
        self.project = conv_norm_relu(channels * len(self.branches), channels, project, relu=relu)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,h,w] -> [N,channels,h,w]."""
        joined = torch.cat([branch(x) for branch in self.branches], dim=1)
        return cast(Tensor, self.dropout(self.project(joined)))

    def as_plain_layers(self) -> nn.Module | None:
        """Without Expand and Concat of the pooled pixel; None where a part is not as it was made."""
        pooling, conv = self.branches[-1], self.project[0]
        plain = type(self) is ASPP and type(pooling) is ImagePooling and pooling.window is None
        return SummedASPP(self) if plain and type(conv) is nn.Conv2d and conv.kernel_size == (1, 1) else None


class SummedASPP(nn.Module):
    """An ASPP whose pooled pixel has a projection of its own: W [a; b] = W_a a + W_b b, and b is constant over the map.

    Enlarging the pixel (Expand) and joining it with the maps (Concat) is what tract, TVM, ncnn and LiteRT fail at. Its
    negative is subtracted, as OpenCV 5.0 takes an addition to a convolution for a shortcut, which must be a whole map.

    Args:
        aspp: in evaluation mode; its parts are used, not copied.
    """

    def __init__(self, aspp: ASPP) -> None:
        super().__init__()
        *branches, pooling = aspp.branches
        conv, rest = cast(nn.Conv2d, aspp.project[0]), aspp.project[1:]
        self.branches, self.rest = nn.ModuleList(branches), rest
        self.pooling = cast(ImagePooling, pooling).project
        pooled = next(part for part in self.pooling if isinstance(part, nn.Conv2d)).out_channels
        weights = torch.split(conv.weight.detach(), [conv.in_channels - pooled, pooled], dim=1)
        self.project, self.project_pooled = (
            nn.Conv2d(weight.shape[1], conv.out_channels, 1, bias=conv.bias is not None and index == 0)
            for index, weight in enumerate(weights)
        )
        with torch.no_grad():
            self.project.weight.copy_(weights[0])
            self.project_pooled.weight.copy_(-weights[1])
            if conv.bias is not None:
                cast(Tensor, self.project.bias).copy_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,h,w] -> [N,channels,h,w]."""
        negative = self.project_pooled(self.pooling(x.mean((2, 3), keepdim=True)))
        joined = torch.cat([branch(x) for branch in self.branches], dim=1)
        return cast(Tensor, self.rest(self.project(joined) - negative))
