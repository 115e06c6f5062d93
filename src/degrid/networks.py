"""Build a network from settings, and smooth it."""

from __future__ import annotations

import math
from typing import Any, TypedDict, Unpack

from degrid import config as configs
from degrid.arguments import checked
from degrid.config import ModelConfig
from degrid.models import EncoderSettings, HeadSettings, Segmenter, build_network
from degrid.smoothing import rate_at_most, smooth_dilated_convs
from degrid.smoothing.table import operator_factory
from degrid.types import Bands, LabelSpace, Preprocess, UserError

_MOST_CHANNELS = 10_000  # sensors have a few hundred


class NetworkSettings(TypedDict, total=False):
    """Keyword arguments of `deeplabv2`, `deeplabv3` and `deeplabv3plus`.

    operator, max_rate and operator_options are the operator, max_rate and options of `degrid.config.SmoothingConfig`;
    the others are fields of `degrid.config.ModelConfig`, which explains them. pretrained is False by default here.
    """

    operator: str
    max_rate: int
    operator_options: dict[str, Any]
    pretrained: bool | str
    output_stride: int
    rates: tuple[int, ...] | None
    multi_grid: tuple[int, ...] | None
    uniform_rates: bool
    channels: int
    dropout: float
    separable: bool
    head_resize: str | None
    pooling_size: tuple[int, ...] | None
    low_level_channels: int
    in_channels: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    bgr: bool | None
    range: tuple[float, ...] | str
    resize: str | None
    scales: tuple[float, ...]
    legacy: bool


def build_model(config: ModelConfig, labels: LabelSpace) -> Segmenter:
    """The network that the settings describe, smoothed.

    Raises:
        UserError: an unknown name or an impossible combination.
    """
    smoothing = config.smoothing
    if smoothing.part not in ("encoder", "all"):
        raise UserError(f'setting "model.smoothing.part": expected encoder or all, got "{smoothing.part}"')
    # Made before the encoder, so that a misspelt name costs no download.
    operator = operator_factory(smoothing.operator, config.legacy, **smoothing.options)
    wanted = bands_of(config)
    bands = Bands(wanted.count or 3, "bytes" if wanted.range == "auto" else wanted.range)
    preprocess = preprocess_of(config)
    body = EncoderSettings(
        config.output_stride,
        config.pretrained,
        config.multi_grid,
        config.uniform_rates,
        preprocess and preprocess.of_channels(bands.count),
        config.legacy,
        bands.count,
    )
    numbers = config.rates, config.channels, config.dropout, config.separable
    head = HeadSettings(*numbers, config.head_resize, config.pooling_size, config.low_level_channels)
    resize = config.resize or ("tf_legacy" if config.legacy else "half_pixel")
    model = build_network(config.network, config.encoder, labels, body, head, resize=resize, scales=config.scales)
    if smoothing.operator != "regular":
        part = model.encoder if smoothing.part == "encoder" else model
        where = rate_at_most(smoothing.max_rate)
        smooth_dilated_convs(part, operator, where, legacy=config.legacy)
    model.config = config
    model.bands = bands
    return model


def bands_of(config: ModelConfig) -> Bands:
    """How images become the input of the network that the settings describe; what they leave open is to be found.

    Raises:
        UserError: a number of channels below 1, or a range of another form.
    """
    count, given = config.in_channels or 0, config.range
    if config.in_channels is not None and not 1 <= count <= _MOST_CHANNELS:
        raise UserError(
            f'setting "model.in_channels": expected at least 1 channel, at most {_MOST_CHANNELS}, got {count}'
        )
    if isinstance(given, str):
        if given not in ("auto", "file", "bytes"):
            raise UserError(
                f'setting "model.range": expected auto, file, bytes or numbers such as 0,4095, got "{given}"'
            )
        return Bands(count, given)
    pairs = tuple(zip(given[::2], given[1::2], strict=False))
    fits = len(given) == 2 or (len(given) % 2 == 0 and count in (0, len(pairs)))
    if not given or not fits or not all(-math.inf < low < high < math.inf for low, high in pairs):
        raise UserError(
            f'setting "model.range": expected a lower and a higher value, or such a pair for each of the '
            f"{count or 'input'} channels, got {', '.join(f'{value:g}' for value in given)}"
        )
    return Bands(count, pairs)


def preprocess_of(config: ModelConfig) -> Preprocess | None:
    """The input that the settings name; None where it is the weights' own.

    Raises:
        UserError: half of it, or numbers that cannot be divided by.
    """
    if config.mean is not None and config.std is not None:
        if not all(map(math.isfinite, config.mean)) or not all(0 < value < math.inf for value in config.std):
            raise UserError(
                f"model.mean and model.std: expected numbers, of model.std above 0; got {config.mean} and {config.std}"
            )
        return Preprocess(config.mean, config.std, bool(config.bgr))
    if config.mean is not None or config.std is not None:
        raise UserError("model.mean and model.std go together; only one is set")
    if config.bgr is not None:
        raise UserError("model.bgr needs model.mean and model.std, in that order of channels")
    return None


def _network(name: str, encoder: str, num_classes: int | LabelSpace, settings: NetworkSettings) -> Segmenter:
    values: dict[str, Any] = {"network": name, "encoder": encoder, "pretrained": False, **settings}
    rows = (("operator", "operator"), ("max_rate", "max_rate"), ("operator_options", "options"))
    values["smoothing"] = {field: values.pop(key) for key, field in rows if key in values}
    labels = num_classes if isinstance(num_classes, LabelSpace) else LabelSpace.of_size(num_classes)
    return build_model(configs.from_dict(ModelConfig, values), labels)


@checked
def deeplabv2(
    encoder: str, num_classes: int | LabelSpace, *, large_fov: bool = False, **settings: Unpack[NetworkSettings]
) -> Segmenter:
    """DeepLab v2: an encoder and the summed ASPP, or LargeFOV; output stride 8 by default.

    Args:
        encoder: "timm:NAME" or another encoder that `degrid.config.ModelConfig` names.
        num_classes: the number of classes, or their names and colours.
        large_fov: one rate instead of ASPP's four.
        settings: see `NetworkSettings`.
    Raises:
        UserError: an unknown name or setting, or an impossible combination.
    Source: arXiv 1606.00915, section 3.
    """
    settings.setdefault("output_stride", 8)
    return _network("deeplabv2_largefov" if large_fov else "deeplabv2", encoder, num_classes, settings)


@checked
def deeplabv3(encoder: str, num_classes: int | LabelSpace, **settings: Unpack[NetworkSettings]) -> Segmenter:
    """DeepLab v3: an encoder and the concatenated ASPP with image pooling. Arguments as for `deeplabv2`.

    Source: arXiv 1706.05587, section 3.
    """
    return _network("deeplabv3", encoder, num_classes, settings)


@checked
def deeplabv3plus(encoder: str, num_classes: int | LabelSpace, **settings: Unpack[NetworkSettings]) -> Segmenter:
    """DeepLab v3+: v3 with a decoder that adds detail from the features at stride 4. Arguments as for `deeplabv2`.

    Source: arXiv 1802.02611, section 3.
    """
    return _network("deeplabv3plus", encoder, num_classes, settings)
