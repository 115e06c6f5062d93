"""Encoders as segmentation_models.pytorch builds them, where they differ from timm's."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers.selective_kernel import SelectiveKernel
from torch import Tensor, nn

from degrid.lookup import lookup
from degrid.models.dilation import Conv2dWithMargins, set_rates
from degrid.models.library_encoders import TimmEncoder
from degrid.models.strides import pair
from degrid.models.timm_networks import TimmPlan, plan_of_timm

# The image size that fixes the padding, and the first blocks that the library counts to the strides 16 and 32. Of b0
# it counts one unit before the stride too few to the stage before: `out_indexes` in its table of encoders.
EFFICIENT_NETS = {
    "b0": (224, 5, 9),
    "b1": (240, 8, 16),
    "b2": (260, 8, 16),
    "b3": (300, 8, 18),
    "b4": (380, 10, 22),
    "b5": (456, 13, 27),
    "b6": (528, 15, 31),
    "b7": (600, 18, 38),
}


class SmpEfficientNet(TimmEncoder):
    """EfficientNet with TensorFlow's padding for one image size, used for images of every size; every unit is dilated.

    Args:
        name: "smp:efficientnet-b0" to b7.
        output_stride: 8, 16 or 32.
        settings: the others of `TimmEncoder`.
    """

    def __init__(self, name: str, output_stride: int = 16, **settings: Any) -> None:
        variant = name.rpartition("-")[2]
        super().__init__(f"tf_efficientnet_{variant}", 32, **settings)
        size, *starts = EFFICIENT_NETS[variant]
        self.reductions = tuple(min(stride, output_stride) for stride in self.reductions)
        blocks: list[Any] = [block for stage in self.net.blocks for block in stage]
        size = _pad(self.net.conv_stem, size, 0)
        for index, block in enumerate(blocks):
            stride = 32 if index >= starts[1] else 16 if index >= starts[0] else 8
            size = _pad(block.conv_dw, size, stride // output_stride if stride > output_stride else 0)


def _pad(conv: Any, size: int, rate: int) -> int:
    """Pad a convolution as for maps of `size` pixels; with a rate instead of its stride if one is given.

    Returns the size of its result on such maps.
    """
    kernel, stride = conv.kernel_size[0], pair(conv.stride)[0]
    out = -(-size // stride)
    if rate:
        conv.__class__ = nn.Conv2d
        conv.stride, conv.dilation, conv.padding = (1, 1), pair(rate), pair(kernel // 2 * rate)
    elif stride > 1:
        margin = max((out - 1) * stride + kernel - size, 0)
        conv.__class__, conv.padding = Conv2dWithMargins, (0, 0)
        conv.margins = (margin // 2, margin - margin // 2) * 2
    return out


class SmpMobileNetV2(TimmEncoder):
    """MobileNetV2 whose last feature is that of the 1x1 convolution to 1280 channels.

    Args:
        name: "smp:mobilenet_v2".
        settings: see `TimmEncoder`.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__("mobilenetv2_100", **settings)
        self.last = nn.Sequential(nn.Conv2d(self.channels[-1], 1280, 1, bias=False), nn.BatchNorm2d(1280))
        self.channels = (*self.channels[:-1], 1280)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> features, fine to coarse."""
        *features, last = super().forward(image)
        return [*features, F.relu6(self.last(last))]


class SmpSkNet(TimmEncoder):
    """A selective-kernel network whose first path reads half of the channels; dilated, both paths have one rate.

    Args:
        name: "smp:skresnet18", "smp:skresnet34" or "smp:skresnext50_32x4d".
        settings: see `TimmEncoder`.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name.removeprefix("smp:"), **settings)
        ratio = 1 / 16 if "next" in name else 1 / 8
        for unit in self.net.modules():
            for part in ("conv1", "conv2"):
                if isinstance(kernel := getattr(unit, part, None), SelectiveKernel):
                    setattr(unit, part, _sk_kernel(kernel, ratio))


def _sk_kernel(kernel: Any, ratio: float) -> SelectiveKernel:
    """The same selective kernel with split input and an attention whose width is rounded to multiples of 8."""
    of = kernel.paths[0].conv
    made = SelectiveKernel(
        kernel.in_channels, kernel.out_channels, stride=pair(of.stride)[0], groups=of.groups, rd_ratio=ratio
    )
    rate = pair(of.dilation)[0]
    if rate > 1:
        for path in made.paths:
            set_rates(path.conv, (rate, rate))
    return made


class SmpDualPath(TimmEncoder):
    """A dual path network with a ReLU on the feature that the decoder reads, and its last batch norm on the last.

    Args:
        name: "smp:dpn68", "smp:dpn68b", "smp:dpn92", "smp:dpn98", "smp:dpn107" or "smp:dpn131".
        settings: see `TimmEncoder`.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name.removeprefix("smp:"), **settings)
        self.net.features_conv5_bn_ac = nn.Sequential()
        self.net.features_conv5_bn_ac.bn = nn.BatchNorm2d(self.channels[-1], 1e-3)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> features, fine to coarse."""
        stem, *features, last = super().forward(image)
        return [stem, *map(F.relu, features), F.relu(self.net.features_conv5_bn_ac(last))]


class SmpUniversal(TimmEncoder):
    """A network of timm as timm itself dilates it, also where its rates are not those of its strides.

    Args:
        name: "smp:tu-NAME", where NAME is timm's.
        settings: see `TimmEncoder`.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name.partition("tu-")[2], **settings)

    def _plan(self, name: str, output_stride: int) -> TimmPlan:
        return plan_of_timm(name, output_stride)


SMP_ENCODERS: dict[str, type[TimmEncoder]] = {
    "smp:mobilenet_v2": SmpMobileNetV2,
    **{f"smp:efficientnet-{variant}": SmpEfficientNet for variant in EFFICIENT_NETS},
    **{f"smp:{name}": SmpSkNet for name in ("skresnet18", "skresnet34", "skresnext50_32x4d")},
    **{f"smp:dpn{variant}": SmpDualPath for variant in ("68", "68b", "92", "98", "107", "131")},
}


def smp_encoder(name: str, **settings: Any) -> TimmEncoder:
    """An encoder of `SMP_ENCODERS`, or "smp:tu-NAME", which is timm's NAME.

    Args:
        settings: see `TimmEncoder`.
    Raises:
        UserError: an unknown name, or see `TimmEncoder`.
    """
    if name.startswith("smp:tu-"):
        return SmpUniversal(name, **settings)
    return lookup(SMP_ENCODERS, name, "encoder")(name, **settings)
