"""Encoders from the libraries timm and torchvision."""

from __future__ import annotations

from typing import Any, cast

import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual

from degrid.contracts import evaluating
from degrid.lookup import did_you_mean
from degrid.models.weights import load_encoder_weights, read_weights
from degrid.types import Preprocess, UserError

OUTPUT_STRIDES = (8, 16, 32)
MOBILENET_V3 = "torchvision:mobilenet_v3_large"


class TimmEncoder(nn.Module):
    """A network of timm, dilated so that its last feature has the wanted stride.

    As in torchvision, the first unit of a dilated stage keeps the rate of the stage before: at output stride 8 a ResNet
    has the rates 1, 2, 2, ... and 2, 4, 4 in its last two stages.

    Args:
        name: timm's name, with or without "timm:".
        output_stride: 8, 16 or 32.
        pretrained: True for timm's ImageNet weights; a local .safetensors or .pth file with timm's names (or
            torchvision's for MobileNetV2 and ResNets); False for random weights.
        multi_grid: factors on the rate of the last stage, one per unit: (1, 2, 4) at output stride 16 gives 2, 4, 8.
        preprocess: replaces timm's mean and standard deviation.
        uniform_rates: every unit of a dilated stage has the stage's rate, as in the original DeepLabs and in
            segmentation_models.pytorch: 2, 2, 2, ... and 4, 4, 4 at output stride 8.
        legacy: has no effect, since none of these networks comes from the original code.
        in_channels: of the images; weights for 3 are adapted, see `degrid.models.weights.with_stem`.
    Raises:
        UserError: an unknown name, a stride that the network does not support, or weights that do not fit.
    Source: output stride and multi-grid: DeepLab v3 (arXiv 1706.05587) sections 3.1 and 3.2.
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
        name = name.removeprefix("timm:")
        self.net = _create(name, output_stride, pretrained is True, in_channels)
        self.channels: tuple[int, ...] = tuple(self.net.feature_info.channels())
        self.reductions: tuple[int, ...] = tuple(self.net.feature_info.reduction())
        self.preprocess = preprocess or _preprocess(name).of_channels(in_channels)
        if isinstance(pretrained, str):
            with torch.device("meta"):
                full_names = set(timm.create_model(name).state_dict())
            load_encoder_weights(self.net, full_names, read_weights(pretrained), pretrained)
        if uniform_rates:
            self._make_uniform()
        if multi_grid:
            self._apply_multi_grid(name, multi_grid, 32 // output_stride)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> features, fine to coarse."""
        return cast(list[Tensor], self.net(image))

    def _apply_multi_grid(self, name: str, multi_grid: tuple[int, ...], stage_rate: int) -> None:
        units = [_wide_convs(unit) for unit in self._stage(-1).children()]
        if len(units) != len(multi_grid) or not all(units):
            raise UserError(
                f"multi_grid={','.join(map(str, multi_grid))} needs a last stage of {len(multi_grid)} units; "
                f"{name} has {len(units)}"
            )
        for factor, convs in zip(multi_grid, units, strict=True):
            for conv in convs:
                _set_rate(conv, stage_rate * factor)

    def _make_uniform(self) -> None:
        rate = 1
        for index in range(1, len(self.reductions)):
            if self.reductions[index] == self.reductions[index - 1]:
                rate *= 2  # a stage whose stride became dilation
                for conv in _wide_convs(self._stage(index)):
                    _set_rate(conv, rate)

    def _stage(self, index: int) -> nn.Module:
        # Some feature networks flatten the names of nested stages ("stages.3" becomes "stages_3").
        path = self.net.feature_info.module_name(index)
        children = dict(self.net.named_children())
        return children.get(path.replace(".", "_")) or cast(nn.Module, self.net.get_submodule(path))


def _wide_convs(module: nn.Module) -> list[nn.Conv2d]:
    return [conv for conv in module.modules() if isinstance(conv, nn.Conv2d) and max(conv.kernel_size) > 1]


def _set_rate(conv: nn.Conv2d, rate: int) -> None:
    conv.dilation = (rate, rate)
    conv.padding = tuple(rate * (size // 2) for size in conv.kernel_size)


class TorchvisionEncoder(nn.Module):
    """MobileNetV3-Large as torchvision dilates it, with the names in torchvision's checkpoints.

    Args:
        name: "torchvision:mobilenet_v3_large".
        output_stride: 16 or 32.
        pretrained: a local file; False for random weights.
        multi_grid, uniform_rates: not supported.
        preprocess, legacy, in_channels: see `TimmEncoder`.
    Raises:
        UserError: another network, a setting that it does not support, or weights that do not fit.
    Source: torchvision's deeplabv3_mobilenet_v3_large; timm's network of that name has another batch norm epsilon.
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
        if name != MOBILENET_V3:
            raise UserError(f'unknown encoder "{name}"; known: {MOBILENET_V3}')
        if output_stride not in (16, 32) or multi_grid or uniform_rates:
            raise UserError(f"{name} supports output stride 16 or 32, with its own rates")
        if pretrained is True:
            raise UserError(
                f"no download for {name}: give torchvision's file (--set model.pretrained=FILE, pretrained=...), "
                "or train from random weights (--set model.pretrained=false, pretrained=False)"
            )
        self.net = torchvision.models.mobilenet_v3_large(dilated=output_stride == 16).features
        self.taps = _last_blocks(self.net)
        self.channels = tuple(int(self.net[index].out_channels) for index in self.taps)
        self.reductions = (2, 4, 8, 16, output_stride)
        if in_channels != 3:
            self.net[0][0] = nn.Conv2d(in_channels, self.net[0][0].out_channels, 3, 2, 1, bias=False)
            nn.init.kaiming_normal_(self.net[0][0].weight, mode="fan_out")  # as torchvision does
        self.preprocess = preprocess or Preprocess().of_channels(in_channels)
        if isinstance(pretrained, str):
            given = {key.removeprefix("features."): value for key, value in read_weights(pretrained).items()}
            classifier = {f"classifier.{layer}.{leaf}" for layer in (0, 3) for leaf in ("weight", "bias")}
            load_encoder_weights(self.net, classifier, given, pretrained)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> features, fine to coarse."""
        features, x = [], image
        for index, block in enumerate(self.net):
            x = block(x)
            if index in self.taps:
                features.append(x)
        return features


def _last_blocks(net: nn.Sequential) -> list[int]:
    """The last block of each stage; the next one lowers the resolution, or would without dilation (_is_cn)."""
    starts = [index for index, block in enumerate(net) if isinstance(block, InvertedResidual) and block._is_cn]
    return [0, *(index - 1 for index in starts[1:]), len(net) - 1]


def _create(name: str, output_stride: int, pretrained: bool, in_channels: int) -> Any:
    if not timm.is_model(name):
        raise UserError(f'timm knows no network "{name}".{did_you_mean(name, timm.list_models())}')
    net, cause = None, None
    try:
        net = _features(name, output_stride, in_channels)
    # The families of timm refuse an impossible stride with different exceptions.
    except (RuntimeError, ValueError, AssertionError, TypeError, NotImplementedError, KeyError) as error:
        cause = error
    if net is None:
        possible = [str(stride) for stride in OUTPUT_STRIDES if _works(name, stride)]
        able = f"it supports {' or '.join(possible)}" if possible else "it has no features that can be dilated"
        raise UserError(f"timm's {name} does not support output stride {output_stride}; {able}") from cause
    if pretrained:
        try:
            net = timm.create_model(
                name, features_only=True, output_stride=output_stride, pretrained=True, in_chans=in_channels
            )
        except Exception as error:  # hub, connection and file system each raise their own
            raise UserError(
                f"could not get the ImageNet weights of {name} ({type(error).__name__}: {str(error)[:120]}); "
                "without a network connection give a local file (--set model.pretrained=FILE, pretrained=...), or "
                "train from random weights (--set model.pretrained=false, pretrained=False)"
            ) from error
    return net


def _works(name: str, output_stride: int) -> bool:
    try:
        return _features(name, output_stride) is not None
    except Exception:  # this only asks what works, and any error means that it does not
        return False


def _features(name: str, output_stride: int, in_channels: int = 3) -> Any:
    """timm's feature network with random weights; None if its stride, measured on an image, is another."""
    net: Any = timm.create_model(name, features_only=True, output_stride=output_stride, in_chans=in_channels)
    with torch.no_grad(), evaluating(net):
        side = net(torch.zeros(1, in_channels, 64, 64))[-1].shape[-1]
    return net if net.feature_info.reduction()[-1] == output_stride == 64 // int(side) else None


def _preprocess(name: str) -> Preprocess:
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return Preprocess()
    mean, std = ((255 * red, 255 * green, 255 * blue) for red, green, blue in (config.mean, config.std))
    return Preprocess(mean, std)
