"""timm networks whose features have the wanted stride, which is measured before they are used."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.format import Format
from timm.models import get_arch_pretrained_cfgs, split_model_name_tag
from torch import nn

from degrid.files import kept_on_disk
from degrid.lookup import did_you_mean, in_a_line, some
from degrid.models.dilation import change_strides, rate_factor, reason_against, set_rates
from degrid.models.encoder import OUTPUT_STRIDES
from degrid.models.strides import SIDES, Layer, Strides, is_wide, measure_strides, pair, tensors_of
from degrid.models.weights import WithoutRandomValues
from degrid.types import UserError

ODD_SIDES = (97, 129)


@dataclass(frozen=True)
class TimmPlan:
    """How a network of timm is made, so that its last feature has the wanted stride.

    Attributes:
        name: timm's, with or without a tag.
        output_stride: wanted.
        dilated_by: "timm", where its own output_stride gives right strides and rates; "degrid", where `dilate` does;
            "both", where timm gives right strides, and some of its rates had to be corrected; "", where the network has
            that stride without dilation.
        strides: of the network without dilation.
        reductions: image size over feature size, of each feature.
        multiple: sides of images are padded to a multiple of this, since the network fails on others.
        corrected: rates that timm has wrong, by the names of the convolutions.
    """

    name: str
    output_stride: int
    dilated_by: str
    strides: Strides
    reductions: tuple[int, ...]
    multiple: int
    corrected: dict[str, tuple[int, ...]]

    def build(self, in_channels: int, pretrained: bool = False) -> Any:
        """The network, on the CPU.

        Args:
            pretrained: with timm's ImageNet weights.
        Raises:
            Whatever timm raises where it cannot get the weights.
        """
        by_timm = self.dilated_by in ("timm", "both")
        net = _features(self.name, self.output_stride if by_timm else None, in_channels, pretrained)
        if self.dilated_by == "degrid":
            change_strides(net, self.strides, self.output_stride)
        for name, rates in self.corrected.items():
            set_rates(net.get_submodule(name), rates)
        return net

    def layers(self) -> dict[str, Layer]:
        """The layers of the network without dilation by name; of one that runs several times, the last call."""
        return {layer.name: layer for layer in self.strides.layers}


class _UnableError(Exception):
    """Why a network cannot have an output stride; follows its name in messages."""


def plan(name: str, output_stride: int) -> TimmPlan:
    """How to make a network of timm with an output stride.

    What it depends on is measured: on the meta device, where a network allows it, since only sizes matter; and with
    random weights, where it is dilated by `degrid.models.dilation.dilate`.

    Args:
        name: timm's, with or without a tag.
        output_stride: 8, 16 or 32.
    Raises:
        UserError: an unknown name or tag; no features of that stride; or a network for images of one size.
    """
    _check_name(name)
    with torch.device("cpu"):  # even if the network is then made on another device
        try:
            return _plan(name, output_stride)
        except _UnableError as reason:
            error = reason
        able = [str(stride) for stride in OUTPUT_STRIDES if stride != output_stride and _works(name, stride)]
    advice = f"; it supports {' or '.join(able)}" if able else ""
    raise UserError(
        f"timm's {name} does not support output stride {output_stride}{advice}: {error}"
    ) from error.__cause__


def plan_of_timm(name: str, output_stride: int) -> TimmPlan:
    """As `plan`, with the rates that timm gives the network, right or wrong.

    Raises:
        UserError: as `plan`, or timm itself makes no network of that stride.
    """
    made = plan(name, output_stride)
    if made.dilated_by in ("", "timm"):
        return made
    with torch.device("cpu"):
        net = _dilated_by_timm(name, made.strides, output_stride)
        if net is None:
            raise UserError(f"timm itself does not make {name} at output stride {output_stride}")
        return replace(made, dilated_by="timm", corrected={}, multiple=_multiple(net))


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        raise UserError(f'timm knows no network "{name}".{did_you_mean(name, timm.list_models())}')
    network, tag = split_model_name_tag(name)
    known = [split_model_name_tag(full)[1] for full in get_arch_pretrained_cfgs(network)]
    if tag and tag not in known:
        hint = f"{did_you_mean(tag, known)} Known: {some(known, 8)}" if known else " It has none."
        raise UserError(f'timm knows no weights "{tag}" of {network}.{hint}')


def _works(name: str, output_stride: int) -> bool:
    try:
        _plan(name, output_stride)
    except _UnableError:
        return False
    return True


@lru_cache(maxsize=256)
def _plan(name: str, output_stride: int) -> TimmPlan:
    """The plan measured here before: measuring takes longer than everything else before a network's first mask."""
    if not timm.model_entrypoint(name).__module__.startswith("timm."):
        return _measured_plan(name, output_stride)  # of a network that changes without a new version
    key = [name, str(output_stride), timm.__version__, torch.__version__, *_sources()]
    values = kept_on_disk(key, lambda: asdict(_measured_plan(name, output_stride)))
    layers = tuple(Layer(**layer) for layer in values["strides"]["layers"])
    values["strides"] = Strides(layers, tuple(values["strides"]["features"]))
    values["reductions"] = tuple(values["reductions"])
    values["corrected"] = {layer: tuple(rates) for layer, rates in values["corrected"].items()}
    return TimmPlan(**values)


def _sources() -> list[str]:
    """The code that measures."""
    return [Path(__file__).with_name(f"{name}.py").read_text() for name in ("timm_networks", "dilation", "strides")]


def _measured_plan(name: str, output_stride: int) -> TimmPlan:
    plain, strides = _measured(name)
    last = strides.features[-1]
    if last < output_stride:
        raise _UnableError(f"its last feature has stride {last}")
    dilated_by, net, corrected = "", plain, {}
    if last > output_stride:
        net = _dilated_by_timm(name, strides, output_stride)
        corrected = {} if net is None else _wrong_rates(plain, net, strides, output_stride)
        dilated_by = "timm"
        if net is None or corrected:
            if not (reason := reason_against(_features(name), strides, output_stride)):
                dilated_by, net, corrected = "degrid", _light(name), {}
                change_strides(net, strides, output_stride)
            elif net is None:
                raise _UnableError(reason)
            else:
                dilated_by = "both"
    reductions = tuple(min(stride, output_stride) for stride in strides.features)
    return TimmPlan(name, output_stride, dilated_by, strides, reductions, _multiple(net), corrected)


@lru_cache(maxsize=8)
def _measured(name: str) -> tuple[Any, Strides]:
    """The network without dilation, on the meta device if it runs there, and its strides."""
    try:
        try:
            net = _light(name)
            strides = measure_strides(net)
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error):  # some networks compute with numbers, which that device does not have
                raise
            net = _features(name)
            strides = measure_strides(net)
    except Exception as error:  # timm's families raise all kinds of errors
        config = timm.get_pretrained_cfg(name)
        size = _by(config.input_size[1:]) if config else "one size"
        raise _UnableError(
            f"it is made for images of {size}, and does not run on one of 128x192 ({in_a_line(error)})"
        ) from error
    sizes, last = _sizes(net, SIDES), strides.features[-1]
    if sizes is None:
        raise _UnableError("its features are no maps")
    if sizes[-1] != tuple(side // last for side in SIDES):
        raise _UnableError(
            f"its last feature of a 128x192 image is {_by(sizes[-1])}, which is not the image over a power of 2"
        )
    return net, strides


def _dilated_by_timm(name: str, strides: Strides, output_stride: int) -> Any:
    """timm's own dilated network, on the meta device, if its features have the right strides; otherwise None."""
    try:
        net = _light(name, output_stride)
        sizes = _sizes(net, SIDES)
    except Exception:  # families refuse a stride with different errors
        return None
    if any(isinstance(module, nn.Conv3d) for module in net.modules()):
        return None  # the positions of lambda layers, which timm does not dilate
    wanted = [min(stride, output_stride) for stride in strides.features]
    return net if sizes == [tuple(side // stride for side in SIDES) for stride in wanted] else None


def _wrong_rates(plain: nn.Module, net: nn.Module, strides: Strides, output_stride: int) -> dict[str, tuple[int, ...]]:
    """The rates that convolutions of a dilated network should have and do not, along an axis that is wider than 1.

    Args:
        plain: the network without dilation, with those strides.
    """
    wrong = {}
    for layer in strides.layers:
        own: Any = plain.get_submodule(layer.name)
        if is_wide(own):
            conv: Any = net.get_submodule(layer.name)  # which no family of timm leaves out
            rates = tuple(rate * rate_factor(layer, output_stride) for rate in pair(own.dilation))
            axes = zip(pair(conv.kernel_size), pair(conv.dilation), rates, strict=True)
            if any(side > 1 and rate != wanted for side, rate, wanted in axes):
                wrong[layer.name] = rates
    return wrong


def _multiple(net: Any) -> int:
    """1 if a network runs on images of odd sides; otherwise what their sides have to be a multiple of."""
    for multiple in (1, 16, 32, 64, 128):
        try:
            if _sizes(net, tuple(-(-side // multiple) * multiple for side in ODD_SIDES)) is not None:
                break
        except Exception:  # any error means that it does not run
            continue
    return multiple


def _by(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))


def _sizes(net: Any, sides: tuple[int, ...]) -> list[tuple[int, ...]] | None:
    """Height and width of each feature of an image; None if they are no maps with the channels that timm says."""
    device = next(net.parameters()).device
    with torch.no_grad():
        features = tensors_of(net.eval()(torch.zeros(1, 3, *sides, device=device)))
    maps = [feature.movedim(-1, 1) if is_channels_last(net) else feature for feature in features]
    channels = list(net.feature_info.channels())
    if [feature.shape[1] for feature in maps] != channels or any(feature.ndim != 4 for feature in maps):
        return None
    return [tuple(feature.shape[2:]) for feature in maps]


def is_channels_last(net: nn.Module) -> bool:
    """Whether the features of a network of timm are [N,h,w,C]."""
    return getattr(net, "output_fmt", Format.NCHW) == Format.NHWC


def _features(name: str, output_stride: int | None = None, in_channels: int = 3, pretrained: bool = False) -> Any:
    """timm's network of features; without output_stride as it is, which also those families have that do not dilate."""
    dilated: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    return timm.create_model(name, features_only=True, in_chans=in_channels, pretrained=pretrained, **dilated)


def _light(name: str, output_stride: int | None = None) -> Any:
    """The network on the meta device, without the parts that change no size but take longest there."""
    with torch.device("meta"), WithoutRandomValues():
        net = _features(name, output_stride)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.ReLU | nn.ReLU6 | nn.SiLU | nn.GELU | nn.Hardswish):
            module.__dict__["forward"] = nn.Identity().forward
    return net
