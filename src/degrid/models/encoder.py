"""Encoders: an image in, features at falling resolution out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import timm
import torch
import torchvision
from torch import Tensor, nn

from degrid.lookup import did_you_mean, lookup
from degrid.models.resnet import ORIGINAL_NAMES, resnet
from degrid.models.weights import BATCH_NORM_LEAVES, load_encoder_weights, read_weights
from degrid.types import Preprocess, UserError

OUTPUT_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class EncoderSettings:
    """What an encoder is built from.

    pretrained: True for the library's ImageNet weights, a local file, or False.
    multi_grid: factors on the rates of the last stage's units.
    uniform_rates: every unit of a dilated stage has the stage's rate; else the first one keeps the rate before.
    preprocess: overrides the encoder's own.
    legacy: as the original code computes it, for the ResNets that come from it.
    """

    output_stride: int = 16
    pretrained: bool | str = False
    multi_grid: tuple[int, ...] | None = None
    uniform_rates: bool = False
    preprocess: Preprocess | None = None
    legacy: bool = False


@runtime_checkable
class Encoder(Protocol):
    """What a head needs to know of an encoder; any nn.Module with these attributes is one.

    channels, reductions: per feature, fine to coarse: its channels, and image size over feature size.
    preprocess: how the weights want their input. Called with [N,3,H,W], it gives the list of features.
    """

    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    preprocess: Preprocess

    def __call__(self, image: Tensor, /) -> list[Tensor]:
        """Features, fine to coarse."""
        ...


class TimmEncoder(nn.Module):
    """A network of timm, dilated so that its last feature has the wanted stride.

    timm leaves the previous rate in the first unit of a dilated stage, as torchvision does: at output stride 8 a
    ResNet has rates 1,2,2,.. and 2,4,4 in its last stages.

    Args:
        name: timm's name, without "timm:".
        output_stride: 8, 16 or 32.
        pretrained: True for timm's ImageNet weights; a local .safetensors or .pth file with timm's names (or
            torchvision's for MobileNetV2 and ResNets); False for random weights.
        multi_grid: factors on the rate of the last stage, one per unit: (1,2,4) at output stride 16 gives 2, 4, 8.
        preprocess: overrides timm's mean and deviation.
        uniform_rates: every unit of a dilated stage has the stage's rate, as in the original DeepLabs and in
            segmentation_models.pytorch: at output stride 8 2,2,2,.. and 4,4,4.
    Raises:
        UserError: unknown name, a stride that the network cannot do, or weights that do not fit.
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
    ) -> None:
        super().__init__()
        self.net = _create(name, output_stride, pretrained is True)
        self.channels: tuple[int, ...] = tuple(self.net.feature_info.channels())
        self.reductions: tuple[int, ...] = tuple(self.net.feature_info.reduction())
        self.preprocess = preprocess or _preprocess(name)
        if isinstance(pretrained, str):
            with torch.device("meta"):
                full_names = set(timm.create_model(name).state_dict())
            load_encoder_weights(self.net, full_names, read_weights(pretrained), pretrained)
        if uniform_rates:
            self._make_uniform()
        if multi_grid:
            self._apply_multi_grid(name, multi_grid, 32 // output_stride)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,3,H,W], normalised -> features, fine to coarse."""
        features: list[Tensor] = self.net(image)
        return features

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
        # Feature networks flatten the names of nested stages ("stages.3" becomes "stages_3").
        path = self.net.feature_info.module_name(index)
        found: nn.Module = getattr(self.net, path.replace(".", "_"), None) or self.net.get_submodule(path)
        return found


def _wide_convs(module: nn.Module) -> list[nn.Conv2d]:
    return [conv for conv in module.modules() if isinstance(conv, nn.Conv2d) and max(conv.kernel_size) > 1]


def _set_rate(conv: nn.Conv2d, rate: int) -> None:
    conv.dilation = (rate, rate)
    conv.padding = tuple(rate * (size // 2) for size in conv.kernel_size)


class TorchvisionEncoder(nn.Module):
    """MobileNetV3-Large as torchvision dilates it: output stride 16, and names that its checkpoints have.

    Args:
        name: mobilenet_v3_large.
        settings: output stride 16 or 32; no download, multi-grid or uniform rates.
    Raises:
        UserError: another network or stride.
    Source: torchvision's deeplabv3_mobilenet_v3_large; timm's network of that name has another batch norm epsilon.
    """

    def __init__(self, name: str, settings: EncoderSettings) -> None:
        super().__init__()
        if name != "mobilenet_v3_large":
            raise UserError(f'unknown encoder "torchvision:{name}"; known: torchvision:mobilenet_v3_large')
        if settings.output_stride not in (16, 32) or settings.multi_grid or settings.uniform_rates:
            raise UserError("torchvision:mobilenet_v3_large can do output stride 16 or 32, with its own rates")
        full = torchvision.models.mobilenet_v3_large(dilated=settings.output_stride == 16)
        self.net = full.features
        # Where the resolution falls, or would without dilation; the last block stands for its stage.
        starts = [index for index, block in enumerate(self.net) if getattr(block, "_is_cn", False)]
        self.taps = [0, *(index - 1 for index in starts[1:]), len(self.net) - 1]
        self.channels = tuple(self._channels(index) for index in self.taps)
        self.reductions = (2, 4, 8, 16, settings.output_stride)[: len(self.taps)]
        self.preprocess = settings.preprocess or Preprocess()
        if isinstance(settings.pretrained, str):
            given = {key.removeprefix("features."): v for key, v in read_weights(settings.pretrained).items()}
            load_encoder_weights(
                self.net,
                {f"classifier.{i}.{k}" for i in (0, 3) for k in ("weight", "bias")},
                given,
                settings.pretrained,
            )

    def _channels(self, index: int) -> int:
        block = self.net[index]
        return int(block.out_channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,3,H,W], normalised -> features, fine to coarse."""
        features, x = [], image
        for index, block in enumerate(self.net):
            x = block(x)
            if index in self.taps:
                features.append(x)
        return features


def build_encoder(name: str, settings: EncoderSettings) -> nn.Module:
    """An encoder by name.

    Args:
        name: "timm:<name>"; a row of `resnet.RESNETS` or its name in the original code ("deeplab", "res50");
            "torchvision:mobilenet_v3_large"; or "module:Encoder" of the user's own, which is called with
            output_stride=, pretrained=, multi_grid= and preprocess=.
    Raises:
        UserError: an unknown name, an impossible stride or weights that do not fit; or the user's class is not an
            encoder.
    """
    if settings.output_stride not in OUTPUT_STRIDES:
        raise UserError(f"output stride {settings.output_stride}: expected 8, 16 or 32")
    name = ORIGINAL_NAMES.get(name, name)
    common: dict[str, Any] = {
        "output_stride": settings.output_stride,
        "pretrained": settings.pretrained,
        "multi_grid": settings.multi_grid,
        "preprocess": settings.preprocess,
    }
    kind, _, rest = name.partition(":")
    if kind == "timm":
        return TimmEncoder(rest, **common, uniform_rates=settings.uniform_rates)
    if kind in ("caffe", "slim"):
        return _original(name, settings)
    if kind == "torchvision":
        return TorchvisionEncoder(rest, settings)
    if not rest and name in timm.list_models():
        raise UserError(f'unknown encoder "{name}". Did you mean "timm:{name}"?')
    make: Callable[..., object] = lookup({}, name, 'encoder (known are "timm:<name>")')
    encoder = make(**common)
    if not isinstance(encoder, nn.Module) or not isinstance(encoder, Encoder):
        raise UserError(f'encoder "{name}" must be an nn.Module with channels, reductions and preprocess')
    return encoder


def _original(name: str, settings: EncoderSettings) -> nn.Module:
    """A ResNet of the original code; its rates are uniform."""
    net = resnet(name, settings.output_stride, settings.multi_grid, settings.preprocess, settings.legacy)
    if settings.pretrained is True:
        raise UserError(
            f"there is no download for {name}: convert its ImageNet file with degrid convert, and give the result "
            "(--set model.pretrained=FOLDER), or train from random weights (--set model.pretrained=false)"
        )
    if isinstance(settings.pretrained, str):
        spare = {"fc.weight", "fc.bias", *(f"norm.0.{leaf}" for leaf in BATCH_NORM_LEAVES)}
        load_encoder_weights(net, spare, read_weights(settings.pretrained), settings.pretrained)
    return net


def _create(name: str, output_stride: int, pretrained: bool) -> Any:
    """timm's feature network, with its strides checked by running it."""
    if not timm.is_model(name):
        raise UserError(f'timm knows no network "{name}".{did_you_mean(name, timm.list_models())}')
    try:
        net: Any = timm.create_model(name, features_only=True, output_stride=output_stride, pretrained=False)
    # Each timm family refuses an impossible stride with an exception of its own kind.
    except (RuntimeError, ValueError, AssertionError, TypeError, NotImplementedError, KeyError) as error:
        raise UserError(_stride_message(name, output_stride)) from error
    if net.feature_info.reduction()[-1] != output_stride or _measured_stride(net) != output_stride:
        raise UserError(_stride_message(name, output_stride))
    if pretrained:
        try:
            net = timm.create_model(name, features_only=True, output_stride=output_stride, pretrained=True)
        except Exception as error:  # the hub, the network and the file system all have their own
            raise UserError(
                f"could not get the ImageNet weights of {name} ({type(error).__name__}: {str(error)[:120]}); "
                "without a network connection give a local file (--set model.pretrained=FILE), or train from "
                "random weights (--set model.pretrained=false)"
            ) from error
    return net


def _measured_stride(net: nn.Module) -> int:
    was_training = net.training
    with torch.no_grad():
        side = net.eval()(torch.zeros(1, 3, 64, 64))[-1].shape[-1]
    net.train(was_training)
    return 64 // int(side)


def _stride_message(name: str, output_stride: int) -> str:
    possible = []
    for stride in OUTPUT_STRIDES:
        try:
            net: Any = timm.create_model(name, features_only=True, output_stride=stride)
            if net.feature_info.reduction()[-1] == stride == _measured_stride(net):
                possible.append(str(stride))
        except Exception:  # only asked what works; whatever goes wrong means that it does not
            continue
    able = f"it can do {' or '.join(possible)}" if possible else "it gives no features that can be dilated"
    return f"timm's {name} cannot have output stride {output_stride}; {able}"


def _preprocess(name: str) -> Preprocess:
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return Preprocess()
    mean, std = ((255 * red, 255 * green, 255 * blue) for red, green, blue in (config.mean, config.std))
    return Preprocess(mean, std)
