"""Encoders from the libraries timm and torchvision."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
import torch.nn.functional as F
from timm.layers.pool2d_same import AvgPool2dSame
from torch import Tensor, nn

from degrid.lookup import in_a_line
from degrid.models.dilation import rate_factor, set_rates
from degrid.models.own_rates import OwnRates
from degrid.models.strides import is_wide, pair
from degrid.models.timm_networks import TimmPlan, is_channels_last, plan
from degrid.models.weights import load_encoder_weights, read_weights
from degrid.types import Preprocess, UserError


class TimmEncoder(nn.Module):
    """A network of timm, dilated so that its last feature has the wanted stride.

    Where timm dilates the network itself, and strides and rates are right, it does; otherwise
    `degrid.models.dilation.dilate`. As in torchvision, the first unit of a dilated stage keeps the rate of the stage
    before: at output stride 8 a ResNet has the rates 1, 2, 2, ... and 2, 4, 4 in its last two stages. docs/encoders.md
    has a table of all families.

    Images for a network that needs sides of a multiple of 32 are padded by zeros at the bottom and right, and the
    features cropped.

    Args:
        name: timm's name, with or without "timm:".
        output_stride: 8, 16 or 32.
        pretrained: True for timm's ImageNet weights; a local .safetensors or .pth file with timm's names (or
            torchvision's for MobileNetV2 and ResNets); False for random weights.
        multi_grid: factors on the rate of the last stage, one per unit: (1, 2, 4) at output stride 16 gives 2, 4, 8.
        preprocess: replaces timm's mean and standard deviation.
        uniform_rates: every unit of a dilated stage has the stage's rate, as in the original DeepLabs and in
            segmentation_models.pytorch: 2, 2, 2, ... and 4, 4, 4 at output stride 8. Rates that a network has without
            dilation multiply these.
        legacy: has no effect, since none of these networks comes from the original code.
        in_channels: of the images; weights for 3 are adapted, see `degrid.models.weights.with_stem`.
    Raises:
        UserError: an unknown name or tag, a stride or sizes of images that the network does not support, or weights
            that do not fit.
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
        made = self._plan(name, output_stride)
        self.net = _create(made, pretrained is True, in_channels)
        _pad_the_same_everywhere(self.net)
        self.channels: tuple[int, ...] = tuple(self.net.feature_info.channels())
        self.reductions: tuple[int, ...] = made.reductions
        self.multiple = made.multiple
        self.channels_last = is_channels_last(self.net)
        self.preprocess = preprocess or _preprocess(name).of_channels(in_channels)
        if isinstance(pretrained, str):
            with torch.device("meta"):
                full_names = set(timm.create_model(name).state_dict())
            load_encoder_weights(self.net, full_names, read_weights(pretrained), pretrained)
        factors = _uniform_factors(self.net, made) if uniform_rates else {}
        if multi_grid:
            factors |= _grid_factors(self.net, made, multi_grid)
        layers = made.layers()
        for path, factor in factors.items():
            conv: Any = self.net.get_submodule(path)
            dilated = rate_factor(layers[path], output_stride)
            set_rates(conv, tuple(rate // dilated * factor for rate in pair(conv.dilation)))

    def _plan(self, name: str, output_stride: int) -> TimmPlan:
        """The settings with which the network is made."""
        return plan(name, output_stride)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,C,H,W], normalised -> features, fine to coarse."""
        if self.multiple > 1:
            height, width = image.shape[-2:]
            image = F.pad(image, (0, -width % self.multiple, 0, -height % self.multiple))
        features: list[Tensor] = self.net(image)
        if self.channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        if self.multiple > 1:
            strides = zip(features, self.reductions, strict=True)
            features = [each[..., : -(-height // stride), : -(-width // stride)] for each, stride in strides]
        return features


class SteadyAvgPool2d(AvgPool2dSame):
    """timm's mean that keeps the size, at stride 1: as many zeros for every size, so that torch.fx can record it."""

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,H,W]."""
        down, right = (side - 1 for side in pair(self.kernel_size))
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.avg_pool2d(x, self.kernel_size, self.stride, 0, self.ceil_mode, self.count_include_pad)


def _pad_the_same_everywhere(net: nn.Module) -> None:
    """Make poolings of stride 1 independent of the size of their map, in place."""
    for module in net.modules():
        if type(module) is AvgPool2dSame and pair(module.stride) == (1, 1):
            module.__class__ = SteadyAvgPool2d


def _uniform_factors(net: nn.Module, made: TimmPlan) -> dict[str, int]:
    """The factors on the rates that convolutions have without dilation, by their names; alike in each stage."""
    modules, layers = dict(net.named_modules()), made.layers()
    wide = [name for name in layers if name in modules and is_wide(modules[name])]  # timm leaves out some poolings
    return {name: max(1, layers[name].unit // made.output_stride) for name in wide}


def _grid_factors(net: Any, made: TimmPlan, multi_grid: tuple[int, ...]) -> dict[str, int]:
    """The factors that multi-grid gives the units of the last stage, as `_uniform_factors` gives them."""
    given = f"multi_grid={','.join(map(str, multi_grid))}"
    stage = _last_stage(net)
    units = {} if stage is None else dict(getattr(stage, "blocks", stage).named_children())
    if not units:
        raise UserError(
            f"{given} needs a last stage that consists of units; the last feature of {made.name} comes from its layer "
            f"{net.feature_info.module_name(-1)}, which has none: leave multi_grid out, or take another encoder"
        )
    if len(units) != len(multi_grid):
        raise UserError(f"{given} needs a last stage of {len(multi_grid)} units; {made.name} has {len(units)}")
    names = {module: name for name, module in net.named_modules()}
    layers, stage_rate = made.layers(), made.strides.features[-1] // made.output_stride
    factors: dict[str, int] = {}
    for (unit, module), factor in zip(units.items(), multi_grid, strict=True):
        wide = [names[each] for each in module.modules() if names[each] in layers and is_wide(each)]
        if not wide:
            raise UserError(
                f"{given} needs units with a convolution wider than 1; unit {unit} in the last stage of {made.name} "
                "has none"
            )
        factors |= dict.fromkeys(wide, stage_rate * factor)
    return factors


def _last_stage(net: Any) -> nn.Module | None:
    """The module of the last feature, whose name timm changes in some feature networks."""
    path = net.feature_info.module_name(-1)
    modules = dict(net.named_modules())
    found = (modules.get(name) for name in (path.replace(".", "_"), path, f"body.{path}", f"model.{path}"))
    return next((module for module in found if module is not None), None)


class TorchvisionEncoder(OwnRates):
    """MobileNetV3-Large as torchvision dilates it, with the names in torchvision's checkpoints.

    Args:
        name: "torchvision:mobilenet_v3_large"; of "torchvision:mobilenet_v3_large_lraspp" the feature at stride 8 is
            that of the first block there.
        output_stride: 16 or 32.
        pretrained: a local file; False for random weights.
        settings: see `OwnRates`.
    Raises:
        UserError: a setting that it does not support, or weights that do not fit.
    Source: torchvision's deeplabv3_mobilenet_v3_large; timm's network of that name has another batch norm epsilon.
    """

    strides = (16, 32)

    def __init__(
        self,
        name: str,
        output_stride: int = 16,
        *,
        pretrained: bool | str = False,
        in_channels: int = 3,
        **settings: Any,
    ) -> None:
        super().__init__(name, output_stride, in_channels=in_channels, **settings)
        if pretrained is True:
            raise UserError(
                f"there is no download for {name}: give torchvision's file (--set model.pretrained=FILE, "
                "pretrained=...), or train from random weights (--set model.pretrained=false, pretrained=False)"
            )
        import torchvision  # imported here because it is slow

        self.net = torchvision.models.mobilenet_v3_large(dilated=output_stride == 16).features
        self.taps = _last_blocks(self.net)
        if name.endswith("_lraspp"):
            self.taps[2] = self.taps[1] + 1
        self.channels = tuple(int(self.net[index].out_channels) for index in self.taps)
        self.reductions = (2, 4, 8, 16, output_stride)
        if in_channels != 3:
            self.net[0][0] = nn.Conv2d(in_channels, self.net[0][0].out_channels, 3, 2, 1, bias=False)
            nn.init.kaiming_normal_(self.net[0][0].weight, mode="fan_out")  # as torchvision does
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


TORCHVISION_ENCODERS = {f"torchvision:mobilenet_v3_large{head}": TorchvisionEncoder for head in ("", "_lraspp")}


def _last_blocks(net: nn.Sequential) -> list[int]:
    """The last block of each stage; the next one lowers the resolution, or would without dilation (_is_cn)."""
    from torchvision.models.mobilenetv3 import InvertedResidual

    starts = [index for index, block in enumerate(net) if isinstance(block, InvertedResidual) and block._is_cn]
    return [0, *(index - 1 for index in starts[1:]), len(net) - 1]


def _create(made: TimmPlan, pretrained: bool, in_channels: int) -> Any:
    if not pretrained:
        return made.build(in_channels)
    try:
        with _cache_alone_without_network():
            return made.build(in_channels, pretrained=True)
    except Exception as error:  # hub, connection and file system each raise their own
        raise UserError(
            f"could not get the ImageNet weights of {made.name} ({in_a_line(error)}); "
            "without a network connection give a local file (--set model.pretrained=FILE, pretrained=...), or "
            "train from random weights (--set model.pretrained=false, pretrained=False)"
        ) from error


@contextmanager
def _cache_alone_without_network() -> Iterator[None]:
    """If the hub's name cannot be resolved, use only its cache, rather than ask and wait twelve times."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not getproxies():  # a proxy resolves names itself
        try:
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _preprocess(name: str) -> Preprocess:
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return Preprocess()
    mean, std = ((255 * red, 255 * green, 255 * blue) for red, green, blue in (config.mean, config.std))
    return Preprocess(mean, std)
