"""Encoders: an image in, features of decreasing resolution out. Their settings, and the table of their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from degrid.lookup import keywords, lookup, unknown
from degrid.models.resnet import ORIGINAL_NAMES, RESNETS, ResNet
from degrid.models.weights import stated_input
from degrid.types import Preprocess, UserError

OUTPUT_STRIDES = (8, 16, 32)
MAX_RATE = 10_000
"""Libraries take no dilation rate far beyond it, and no map is so large."""


@dataclass(frozen=True)
class EncoderSettings:
    """What every encoder is built with; each field is a keyword argument of the encoder's class.

    Attributes:
        output_stride: image size over the size of the last feature: 8, 16 or 32; 4 for HRNet.
        pretrained: True for the ImageNet weights that the library downloads, a local file, or False.
        multi_grid: factors on the rates of the last stage's units.
        uniform_rates: every unit of a dilated stage has the stage's rate; otherwise the first unit keeps the rate of
            the stage before.
        preprocess: replaces what the weights' file says (see `stated_input`) or, without that, the encoder's own.
        legacy: compute as the original code does; for the ResNets that come from it.
        in_channels: of the images.
    Raises:
        UserError: a factor below 1, or an absurd one.
    """

    output_stride: int = 16
    pretrained: bool | str = False
    multi_grid: tuple[int, ...] | None = None
    uniform_rates: bool = False
    preprocess: Preprocess | None = None
    legacy: bool = False
    in_channels: int = 3

    def __post_init__(self) -> None:
        if not all(1 <= factor <= MAX_RATE for factor in self.multi_grid or ()):
            raise UserError(f'setting "model.multi_grid": expected factors from 1 to {MAX_RATE}, got {self.multi_grid}')


@runtime_checkable
class Encoder(Protocol):
    """What a head needs to know about an encoder; any nn.Module with these attributes is one.

    Attributes:
        channels: of each feature, fine to coarse.
        reductions: image size over feature size, of each feature.
        preprocess: how the weights expect their input.
    """

    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    preprocess: Preprocess

    def __call__(self, image: Tensor, /) -> list[Tensor]:
        """Images [N,C,H,W], normalised -> features, fine to coarse."""
        ...


ENCODERS: dict[str, Callable[..., nn.Module] | str | Mapping[str, Callable[..., nn.Module]]] = {
    "timm": "degrid.models.library_encoders:TimmEncoder",
    "torchvision": "degrid.models.library_encoders:TORCHVISION_ENCODERS",
    "caffe": dict.fromkeys(RESNETS, ResNet),
    "slim": dict.fromkeys(RESNETS, ResNet),
    # As these projects build them.
    **dict.fromkeys(
        ("jfzhang95", "vainf", "bubbliiiing", "tramac", "gluoncv", "mmseg", "nvidia", "paddleseg", "speedinghzl"),
        "degrid.models.peers:PEERS",
    ),
    **dict.fromkeys(("google", "bonlime"), "degrid.models.google_encoders:GOOGLE_ENCODERS"),
    "transformers": "degrid.models.peers:TRANSFORMERS_ENCODERS",
    "smp": "degrid.models.smp_encoders:smp_encoder",
}
"""By the part of the name before the colon: the class or function, called with the whole name and the settings as
keywords; or several, by the whole name. As a text: where to import it from when it is first used."""

_NAMES = ("timm:NAME", "torchvision:mobilenet_v3_large", *RESNETS)


def _ours(row: Any, name: str) -> Callable[..., nn.Module]:
    """The class or function that a row of ENCODERS has for a name."""
    found: Any = lookup({}, row, "encoder") if isinstance(row, str) else row
    if isinstance(found, Mapping) and name not in found:
        raise unknown("encoder", name, found)
    made: Callable[..., nn.Module] = found[name] if isinstance(found, Mapping) else found
    return made


def _with_stated_input(settings: EncoderSettings) -> EncoderSettings:
    """The settings with the input that is stated beside the weights, unless they name one."""
    if settings.preprocess is not None or not isinstance(settings.pretrained, str):
        return settings
    stated = stated_input(settings.pretrained)
    return dataclasses.replace(settings, preprocess=stated and stated.of_channels(settings.in_channels))


def build_encoder(name: str, settings: EncoderSettings) -> nn.Module:
    """An encoder by name.

    Args:
        name: "timm:NAME"; "torchvision:mobilenet_v3_large"; a row of `resnet.RESNETS` or its name in the original code
            ("deeplab", "res50"); or "module:Encoder", a class of the user's own. That class is called with those
            settings that it has parameters for.
    Raises:
        UserError: an unknown name, an unsupported stride or weights that do not fit; or the user's class makes no
            encoder, or does not take a setting that was given.
    """
    if settings.output_stride not in ((4,) if ":hrnetv2" in name else OUTPUT_STRIDES):
        raise UserError(f"output stride {settings.output_stride}: expected 8, 16 or 32, and 4 for HRNet")
    settings = _with_stated_input(settings)
    name = ORIGINAL_NAMES.get(name, name)
    family = name.partition(":")[0]
    if family in ENCODERS and family != name:
        return _ours(ENCODERS[family], name)(name, **vars(settings))
    import timm  # imported here because it is slow

    if timm.is_model(name):
        raise UserError(f'unknown encoder "{name}". Did you mean "timm:{name}"?')
    make: Callable[..., object] = lookup(dict.fromkeys(_NAMES, nn.Module), name, "encoder")
    known = keywords(make)
    taken = {key: value for key, value in vars(settings).items() if key in known or "**" in known}
    encoder = make(**taken)
    if not isinstance(encoder, nn.Module) or not isinstance(encoder, Encoder):
        raise UserError(f'encoder "{name}" must be an nn.Module with channels, reductions and preprocess')
    without_effect = {
        "pretrained": isinstance(settings.pretrained, bool),  # true is the default for every encoder
        "preprocess": settings.preprocess in (None, encoder.preprocess),
    }
    for key, value in vars(settings).items():
        if key not in taken and not without_effect.get(key, value == getattr(EncoderSettings, key)):
            setting = "model.mean" if key == "preprocess" else f"model.{key}"
            raise UserError(
                f'encoder "{name}" has no parameter "{key}", so {setting} would be lost; add the parameter, or leave '
                f"{setting} at its default"
            )
    return encoder
