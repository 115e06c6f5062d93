"""Encoders: an image in, features at falling resolution out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import timm
import torch
from torch import Tensor, nn

from degrid.catalog import did_you_mean, lookup
from degrid.models.weights import load_encoder_weights, read_weights
from degrid.types import Preprocess, UserError

OUTPUT_STRIDES = (8, 16, 32)


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
        if multi_grid:
            self._apply_multi_grid(name, multi_grid, 32 // output_stride)

    def forward(self, image: Tensor) -> list[Tensor]:
        """[N,3,H,W], normalised -> features, fine to coarse."""
        features: list[Tensor] = self.net(image)
        return features

    def _apply_multi_grid(self, name: str, multi_grid: tuple[int, ...], stage_rate: int) -> None:
        # Feature networks flatten the names of nested stages ("stages.3" becomes "stages_3").
        path = self.net.feature_info.module_name(-1)
        stage = getattr(self.net, path.replace(".", "_"), None) or self.net.get_submodule(path)
        units = [
            [conv for conv in unit.modules() if isinstance(conv, nn.Conv2d) and max(conv.kernel_size) > 1]
            for unit in stage.children()
        ]
        if len(units) != len(multi_grid) or not all(units):
            raise UserError(
                f"multi_grid={','.join(map(str, multi_grid))} needs a last stage of {len(multi_grid)} units; "
                f"{name} has {len(units)}"
            )
        for factor, convs in zip(multi_grid, units, strict=True):
            for conv in convs:
                rate = stage_rate * factor
                conv.dilation = (rate, rate)
                conv.padding = tuple(rate * (size // 2) for size in conv.kernel_size)


def build_encoder(
    name: str,
    output_stride: int,
    pretrained: bool | str = False,
    multi_grid: tuple[int, ...] | None = None,
    preprocess: Preprocess | None = None,
) -> nn.Module:
    """An encoder by name: "timm:<name>", or "module:Encoder" of the user's own.

    The user's class is called with output_stride=, pretrained=, multi_grid= and preprocess=.

    Raises:
        UserError: see `TimmEncoder`; or the user's class is not an encoder.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise UserError(f"output stride {output_stride}: expected 8, 16 or 32")
    settings: dict[str, Any] = {
        "output_stride": output_stride,
        "pretrained": pretrained,
        "multi_grid": multi_grid,
        "preprocess": preprocess,
    }
    kind, _, rest = name.partition(":")
    if kind == "timm":
        return TimmEncoder(rest, **settings)
    if not rest and name in timm.list_models():
        raise UserError(f'unknown encoder "{name}". Did you mean "timm:{name}"?')
    make: Callable[..., object] = lookup({}, name, 'encoder (known are "timm:<name>")')
    encoder = make(**settings)
    if not isinstance(encoder, nn.Module) or not isinstance(encoder, Encoder):
        raise UserError(f'encoder "{name}" must be an nn.Module with channels, reductions and preprocess')
    return encoder


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
