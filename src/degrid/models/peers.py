"""Encoders as other projects changed them, so that the weights trained there keep their meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.mobilevit import MobileVitV2Block
from torch import Tensor, nn

from degrid.models.dilation import set_rates
from degrid.models.library_encoders import TimmEncoder
from degrid.models.own_rates import Drn, PeerHRNet, WideResNet38
from degrid.models.strides import is_wide, pair
from degrid.models.xception import XCEPTIONS, PeerXception


class PadsFirst(InvertedResidual):
    """An inverted residual block that pads its input by zeros before the expansion, and not the depthwise convolution.

    At the border that one then sees what the expansion makes of zero, which its batch norm moves away from zero.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,H,W] -> [N,out,H/stride,W/stride]."""
        rate = self.conv_dw.dilation[0]
        wide = self.conv_dw(self.bn1(self.conv_pw(F.pad(x, (rate,) * 4))))
        if self.conv_dw.padding[0]:  # what it sees beyond the border that was added, see `pad_first`
            wide = wide[..., rate:-rate, rate:-rate]
        y: Tensor = self.bn3(self.conv_pwl(self.bn2(wide)))
        return x + y if self.has_skip else y


def pad_first(block: Any) -> None:
    """Make an inverted residual block a `PadsFirst`.

    A dilated convolution, which has no stride, keeps its size and is cropped: so it can be smoothed.
    """
    block.__class__ = PadsFirst
    if block.conv_dw.dilation == (1, 1):
        block.conv_dw.padding = (0, 0)


class PeerMobileNetV2(TimmEncoder):
    """MobileNetV2 as a project changed it.

    Args:
        name: "jfzhang95:mobilenet_v2", where every block pads before its expansion and dilation lags a stage;
            "vainf:mobilenet_v2", where every block pads before its expansion and the first convolution not at all;
            "mmseg:mobilenet_v2", where only the first block of a stage is dilated.
        settings: see `TimmEncoder`.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__("mobilenetv2_100", **settings)
        project = name.partition(":")[0]
        if project == "vainf":
            self.net.conv_stem.padding = (0, 0)
        for stage in self.net.blocks:
            convs: list[Any] = [conv for conv in stage.modules() if is_wide(conv)]
            first, last = pair(convs[0].dilation), pair(convs[-1].dilation)
            if project == "jfzhang95":
                _set_all(convs, [first] * len(convs))
            elif project == "mmseg":
                _set_all(convs, [last, *[(1, 1)] * (len(convs) - 1)])
        for block in self.net.modules():
            if type(block) is InvertedResidual and project != "mmseg":
                pad_first(block)


class PeerResNet(TimmEncoder):
    """A ResNet of timm with the rates and shortcuts of a project.

    Args:
        name: "mmseg:resnet50", 50c, 50d or of another depth, "mmseg:resnest50d" or "mmseg:resnest101e": the shortcuts
            of dilated stages have no average pooling, the second convolution of basic blocks is not dilated, and
            multi_grid are the rates of the last stage themselves. "paddleseg:resnet50d" or of another depth: the first
            of these alone, and a shortcut with a convolution in the first stage of basic blocks, too.
            "speedinghzl:resnet101s": only the pooling of the stem rounds up.
        settings: see `TimmEncoder`.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        project, _, network = name.partition(":")
        basic_c = network in ("resnet18c", "resnet34c")  # timm does not have it
        super().__init__(f"{network[:-1]}d" if basic_c else network, **settings)
        multi_grid = settings.get("multi_grid") or ()
        if project == "speedinghzl":
            self.net.maxpool.ceil_mode = True
            return
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            units: Any = self.net.get_submodule(stage)
            if project == "paddleseg" and units[0].downsample is None:
                width = units[0].conv1.in_channels
                conv = nn.Conv2d(width, width, 1, bias=False)
                units[0].downsample = nn.Sequential(nn.Identity(), conv, nn.BatchNorm2d(width))
            _change_shortcut(units[0].downsample, basic_c)
            if project != "mmseg":
                continue
            basic = not hasattr(units[0], "conv3")
            if basic:
                _set_all([unit.conv2 for unit in units], [(1, 1)] * len(units))
            if multi_grid and stage == "layer4":
                wide = [unit.conv1 if basic else getattr(unit.conv2, "conv", unit.conv2) for unit in units]
                _set_all(wide, [(rate, rate) for rate in multi_grid])


def _change_shortcut(shortcut: Any, strided: bool) -> None:
    """Drop average pooling that lowers no resolution; `strided`: all of it, the convolution taking its stride."""
    pool = None if shortcut is None else shortcut[0]
    if strided and pool is not None:
        shortcut[1].stride = pair(getattr(pool, "stride", 1))
        del shortcut[0]
    elif isinstance(pool, nn.AvgPool2d) and pair(pool.stride) == (1, 1):
        shortcut[0] = nn.Identity()


def _set_all(convs: list[Any], rates: list[tuple[int, ...]]) -> None:
    for conv, rate in zip(convs, rates, strict=True):
        set_rates(conv, rate)


_MMSEG = ("18", "18c", "18d", "34c", "34d", "50", "50c", "50d", "101", "101c", "101d", "152", "152c", "152d")
PEERS: dict[str, Callable[..., nn.Module]] = {
    "jfzhang95:mobilenet_v2": PeerMobileNetV2,
    "vainf:mobilenet_v2": PeerMobileNetV2,
    "mmseg:mobilenet_v2": PeerMobileNetV2,
    **{f"mmseg:resnet{variant}": PeerResNet for variant in _MMSEG},
    **dict.fromkeys(("mmseg:resnest50d", "mmseg:resnest101e"), PeerResNet),
    "jfzhang95:drn_d_54": Drn,
    "nvidia:wider_resnet38": WideResNet38,
    **dict.fromkeys(("vainf:hrnetv2_32", "vainf:hrnetv2_48"), PeerHRNet),
    **dict.fromkeys(XCEPTIONS, PeerXception),
    **{f"speedinghzl:resnet{depth}s": PeerResNet for depth in (50, 101, 152)},
    **{f"paddleseg:resnet{depth}d": PeerResNet for depth in (18, 34, 50, 101, 152, 200)},
}


class WholePatches(MobileVitV2Block):
    """A block of MobileViTV2 that leaves out the last row and column where a side is odd, and has zeros there.

    timm's enlarges the feature instead.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,H,W] -> [N,out,H,W]."""
        x = self.conv_1x1(self.conv_kxk(x))
        batch, channels = x.shape[:2]
        rows, columns = (side // 2 for side in x.shape[-2:])
        grid = x[..., : 2 * rows, : 2 * columns].reshape(batch, channels, rows, 2, columns, 2)
        patches = self.norm(
            self.transformer(grid.permute(0, 1, 3, 5, 2, 4).reshape(batch, channels, 4, rows * columns))
        )
        grid = patches.reshape(batch, channels, 2, 2, rows, columns).permute(0, 1, 4, 2, 5, 3)
        y = grid.reshape(batch, channels, 2 * rows, 2 * columns)
        out: Tensor = self.conv_proj(F.pad(y, (0, x.shape[-1] - 2 * columns, 0, x.shape[-2] - 2 * rows)))
        return out


class TransformersMobileViT(TimmEncoder):
    """MobileViT without the last 1x1 convolution, or MobileViTV2; its rates lag behind the strides that are gone.

    At output stride 16 nothing is dilated; at 8 the first convolution of the last stage has rate 2.

    Args:
        name: "transformers:mobilevit_s", xs or xxs, or "transformers:mobilevitv2_050" to 200.
        output_stride: 8, 16 or 32.
        settings: the others of `TimmEncoder`.
    """

    def __init__(self, name: str, output_stride: int = 16, **settings: Any) -> None:
        super().__init__(name.partition(":")[2], 32, **settings)
        net: Any = self.net
        net.final_conv = nn.Identity()
        self.channels = (*self.channels[:-1], net.stages_4[1].conv_proj.conv.out_channels)
        self.reductions = tuple(min(stride, output_stride) for stride in self.reductions)
        for stage in (net.stages_2, net.stages_3, net.stages_4):
            if isinstance(stage[1], MobileVitV2Block):
                stage[1].__class__ = WholePatches
        rate = 1
        for stage, stride in ((net.stages_3, 16), (net.stages_4, 32)):
            if stride > output_stride:
                conv = stage[0].conv2_kxk.conv
                conv.stride = (1, 1)
                set_rates(conv, (rate, rate))
                rate *= 2


_MOBILEVITS = (*(f"_{size}" for size in ("s", "xs", "xxs")), *(f"v2_{width:03}" for width in range(50, 201, 25)))
TRANSFORMERS_ENCODERS = {f"transformers:mobilevit{kind}": TransformersMobileViT for kind in _MOBILEVITS}
