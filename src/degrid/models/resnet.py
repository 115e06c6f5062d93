"""The ResNets of the original DeepLabs, as Caffe and TensorFlow's slim wrote them."""

from __future__ import annotations

import itertools
import operator
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from degrid.models.weights import BATCH_NORM_LEAVES, load_encoder_weights, read_weights
from degrid.types import Preprocess, UserError
from degrid.weight_names import BOTTLENECK_RESNETS

CAFFE = Preprocess((104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0), bgr=True)
SLIM = Preprocess((123.68, 116.78, 103.94), (1.0, 1.0, 1.0))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, each with batch norm; ReLU after the sum. The stride sits on the first 1x1 and the shortcut.

    slim puts the stride on the last 3x3 of the stage before. That is the same function, since a 1x1 convolution of
    stride 2 only subsamples.

    Source: He et al. (arXiv 1512.03385), as in Caffe.
    """

    def __init__(self, in_channels: int, width: int, stride: int, rate: int, eps: float) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=rate, dilation=rate, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out, eps)
        # Residual branches start at zero (Goyal et al., arXiv 1706.02677 section 5.1). Otherwise a deep network that
        # starts from random weights with frozen batch norm would have logits in the millions.
        nn.init.zeros_(self.bn3.weight)
        self.downsample: nn.Module | None = None
        if in_channels != out:
            shortcut = nn.Conv2d(in_channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out, eps))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,H,W] -> [N,4*width,H/stride,W/stride]."""
        y = self.residual(x)
        return cast(Tensor, self.relu(y + (x if self.downsample is None else self.downsample(x))))

    def residual(self, x: Tensor) -> Tensor:
        """What is added to the shortcut."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return cast(Tensor, self.bn3(self.conv3(y)))


class PreactBottleneck(nn.Module):
    """Batch norm and ReLU first, then 1x1, 3x3, 1x1; nothing after the sum. The stride sits where `Bottleneck` has it.

    Source: He et al. (arXiv 1603.05027), as in slim: the last 1x1 and the shortcut have a bias and no batch norm.
    """

    def __init__(self, in_channels: int, width: int, stride: int, rate: int, eps: float) -> None:
        super().__init__()
        out = 4 * width
        self.preact = nn.BatchNorm2d(in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, padding=rate, dilation=rate, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.conv3 = nn.Conv2d(width, out, 1)
        self.downsample = nn.Conv2d(in_channels, out, 1, stride) if in_channels != out else None
        self.stride = stride
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,H,W] -> [N,4*width,H/stride,W/stride]."""
        y = self.relu(self.preact(x))
        shortcut: Tensor = x[..., :: self.stride, :: self.stride] if self.downsample is None else self.downsample(y)
        y = self.relu(self.bn1(self.conv1(y)))
        y = self.relu(self.bn2(self.conv2(y)))
        return cast(Tensor, self.conv3(y) + shortcut)


class ResNet(nn.Module):
    """A ResNet whose last stages trade stride for dilation, in every unit of the stage.

    Features: the stem at stride 2 and the four stages. Parameter names are torchvision's.

    Args:
        name: a row of RESNETS. "caffe": DeepLab v2's; "slim" v1, v2 (pre-activation): DeepLab v3's in TensorFlow.
        pretrained: a local file, or a folder that `degrid convert` made; False for random weights.
        multi_grid: factors on the rates of the last stage's three units.
        uniform_rates: has no effect: the rates of these networks are always uniform.
        legacy: compute as the TensorFlow code does. Its pooling pads to "same" size with the odd row and column at the
            bottom and right; with caffe so does its stem, and the epsilon of batch norm is 1e-3; with slim_v2 there is
            no batch norm after the last stage. Otherwise padding is symmetric, and the pooling of caffe rounds up.
        in_channels: of the images; weights for 3 are adapted, see `degrid.models.weights.with_stem`.
    Raises:
        UserError: a multi_grid or weights that do not fit, or a download, which does not exist.
    Source: DeepLab v2 (arXiv 1606.00915) and v3 (arXiv 1706.05587); rates 2 and 4 at output stride 8.
    """

    def __init__(
        self,
        name: str,
        output_stride: int = 16,
        pretrained: bool | str = False,
        multi_grid: tuple[int, ...] | None = None,
        preprocess: Preprocess | None = None,
        uniform_rates: bool = False,
        legacy: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        variant, units = _variant_and_units(name, multi_grid)
        self.variant, self.legacy = variant, legacy
        self.preprocess = preprocess or (CAFFE if variant == "caffe" else SLIM).of_channels(in_channels)
        self.channels = (64, 256, 512, 1024, 2048)
        self.same_stem = variant == "caffe" and legacy
        eps = 1e-3 if self.same_stem else 1e-5
        v2 = variant == "slim_v2"
        self.conv1: nn.Module = nn.Conv2d(in_channels, 64, 7, 2, padding=0 if self.same_stem else 3, bias=v2)
        self.bn1 = nn.Identity() if v2 else nn.BatchNorm2d(64, eps)
        self.relu = nn.Identity() if v2 else nn.ReLU(inplace=True)
        strides, rates = _strides_and_rates(output_stride)
        factors = [*((1,) * count for count in units[:-1]), multi_grid or (1,) * units[-1]]
        for stage, (width, stride, rate) in enumerate(zip(self.channels, strides, rates, strict=False)):
            blocks = _stage(v2, width, 64 * 2**stage, stride, [rate * factor for factor in factors[stage]], eps)
            self.add_module(f"layer{stage + 1}", blocks)
        self.norm: nn.Module = nn.Identity()
        if v2 and not legacy:
            self.norm = nn.Sequential(nn.BatchNorm2d(2048, eps), nn.ReLU(inplace=True))
        self.reductions = tuple(itertools.accumulate((2, 2, *strides[1:]), operator.mul))
        _initialise(self)
        if pretrained:
            _load(self, name, pretrained)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> features, fine to coarse."""
        if self.same_stem:
            image = F.pad(image, _same_padding(image, 7))
        x = self.relu(self.bn1(self.conv1(image)))
        features = [x]
        x = self.pooled(x)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
            features.append(x)
        features[-1] = self.norm(x)
        return features

    def pooled(self, x: Tensor) -> Tensor:
        """The pooling after the stem."""
        if self.legacy:
            # The padding must not win the maximum; before slim_v2's first batch norm values may be negative.
            return F.max_pool2d(F.pad(x, _same_padding(x, 3), value=float("-inf")), 3, 2)
        return F.max_pool2d(x, 3, 2, padding=1, ceil_mode=self.variant == "caffe")


def _variant_and_units(name: str, multi_grid: tuple[int, ...] | None) -> tuple[str, tuple[int, ...]]:
    variant, depth = RESNETS[name]
    units = BOTTLENECK_RESNETS[depth]
    if multi_grid and len(multi_grid) != units[-1]:
        raise UserError(
            f"multi_grid={','.join(map(str, multi_grid))} needs a last stage of {len(multi_grid)} units; "
            f"{name} has {units[-1]}"
        )
    return variant, units


def _stage(preact: bool, in_channels: int, width: int, stride: int, rates: list[int], eps: float) -> nn.Sequential:
    unit = PreactBottleneck if preact else Bottleneck
    first = unit(in_channels, width, stride, rates[0], eps)
    return nn.Sequential(first, *(unit(4 * width, width, 1, rate, eps) for rate in rates[1:]))


def _load(net: nn.Module, name: str, pretrained: bool | str) -> None:
    if isinstance(pretrained, bool):
        raise UserError(
            f"there is no download for {name}: convert its ImageNet file with degrid convert, and give the result "
            "(--set model.pretrained=FOLDER, pretrained=...), or train from random weights (pretrained=False)"
        )
    spare = {"fc.weight", "fc.bias", *(f"norm.0.{leaf}" for leaf in BATCH_NORM_LEAVES)}
    load_encoder_weights(net, spare, read_weights(pretrained), pretrained)


def _initialise(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _same_padding(x: Tensor, kernel: int) -> tuple[int, int, int, int]:
    """TensorFlow's "same" padding at stride 2: left, right, top, bottom, with the odd pixel at the right and bottom."""
    x_total, y_total = (max((-(-size // 2) - 1) * 2 + kernel - size, 0) for size in (x.shape[-1], x.shape[-2]))
    return x_total // 2, x_total - x_total // 2, y_total // 2, y_total - y_total // 2


def _strides_and_rates(output_stride: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The stride of each stage, and the rate of its 3x3 convolutions."""
    strides, rates, reached, rate = [], [], 4, 1
    for wanted in (1, 2, 2, 2):
        if reached * wanted > output_stride:
            rate, wanted = rate * wanted, 1
        reached *= wanted
        strides.append(wanted)
        rates.append(rate)
    return tuple(strides), tuple(rates)


RESNETS: dict[str, tuple[str, str]] = {
    **{f"caffe:resnet{depth}": ("caffe", depth) for depth in ("50", "101", "152")},
    **{f"slim:resnet_v1_{depth}": ("slim_v1", depth) for depth in ("50", "101", "152", "152nd")},
    **{f"slim:resnet_v2_{depth}": ("slim_v2", depth) for depth in ("50", "101", "152", "200")},
}
"""Encoder names, with variant and depth (a row of `weight_names.BOTTLENECK_RESNETS`)."""

ORIGINAL_NAMES = {"deeplab": "caffe:resnet101", "res50": "caffe:resnet50", "res101": "caffe:resnet101"}
"""Values of encoder_name in the original code."""
