"""From settings to a network, smoothed."""

from __future__ import annotations

from typing import Any

from degrid import config as configs
from degrid.config import ModelConfig, SmoothingConfig
from degrid.models import EncoderSettings, Segmenter, build_network
from degrid.smoothing import rate_at_most, smooth_dilated_convs
from degrid.types import LabelSpace, Preprocess, UserError


def build_model(config: ModelConfig, labels: LabelSpace) -> Segmenter:
    """The network that a config describes, smoothed by the public retrofit.

    Raises:
        UserError: an unknown name or an impossible combination.
    """
    preprocess = None
    if config.mean is not None or config.std is not None:
        if config.mean is None or config.std is None:
            raise UserError("model.mean and model.std go together; only one is set")
        preprocess = Preprocess(config.mean, config.std, bool(config.bgr))
    elif config.bgr is not None:
        raise UserError("model.bgr needs model.mean and model.std beside it, in that order of channels")
    model = build_network(
        config.network,
        config.encoder,
        labels,
        body=EncoderSettings(
            config.output_stride,
            config.pretrained,
            config.multi_grid,
            config.uniform_rates,
            preprocess,
            config.legacy,
        ),
        rates=config.rates,
        channels=config.channels,
        dropout=config.dropout,
        separable=config.separable,
        resize=config.resize or ("tf_legacy" if config.legacy else "half_pixel"),
        scales=config.scales,
    )
    smoothing = config.smoothing
    if smoothing.part not in ("encoder", "all"):
        raise UserError(f'setting "model.smoothing.part": expected encoder or all, got "{smoothing.part}"')
    if smoothing.operator != "regular":
        part = model.encoder if smoothing.part == "encoder" else model
        where = rate_at_most(smoothing.max_rate)
        smooth_dilated_convs(part, smoothing.operator, where, legacy=config.legacy, **smoothing.options)
    model.config = config
    return model


def _network(
    name: str, encoder: str, num_classes: int | LabelSpace, operator: str, settings: dict[str, Any]
) -> Segmenter:
    labels = num_classes if isinstance(num_classes, LabelSpace) else LabelSpace.of_size(num_classes)
    smoothing = SmoothingConfig(
        operator,
        settings.pop("max_rate", SmoothingConfig.max_rate),
        options=settings.pop("operator_options", {}),
    )
    values = {"network": name, "encoder": encoder, "smoothing": configs.to_dict(smoothing), **settings}
    return build_model(configs.from_dict(ModelConfig, values), labels)


def deeplabv2(
    encoder: str,
    num_classes: int | LabelSpace,
    *,
    output_stride: int = 8,
    operator: str = "regular",
    pretrained: bool | str = False,
    large_fov: bool = False,
    **settings: Any,
) -> Segmenter:
    """DeepLab v2: an encoder and the summed ASPP, or LargeFOV.

    Args:
        encoder: "timm:<name>".
        num_classes: the number of classes, or their names and colours.
        output_stride: 8, 16 or 32.
        operator: smoothing operator for the dilated convolutions of rate `max_rate` (default 4) or less.
        pretrained: True for timm's ImageNet weights, or a local file.
        settings: the other fields of `degrid.config.ModelConfig`; `max_rate` and `operator_options`.
    Source: arXiv 1606.00915, section 3.
    """
    name = "deeplabv2_largefov" if large_fov else "deeplabv2"
    settings |= {"output_stride": output_stride, "pretrained": pretrained}
    return _network(name, encoder, num_classes, operator, settings)


def deeplabv3(
    encoder: str,
    num_classes: int | LabelSpace,
    *,
    output_stride: int = 16,
    operator: str = "regular",
    pretrained: bool | str = False,
    **settings: Any,
) -> Segmenter:
    """DeepLab v3: an encoder and the concatenated ASPP with image pooling. Arguments as `deeplabv2`.

    Source: arXiv 1706.05587, section 3.
    """
    settings |= {"output_stride": output_stride, "pretrained": pretrained}
    return _network("deeplabv3", encoder, num_classes, operator, settings)


def deeplabv3plus(
    encoder: str,
    num_classes: int | LabelSpace,
    *,
    output_stride: int = 16,
    operator: str = "regular",
    pretrained: bool | str = False,
    **settings: Any,
) -> Segmenter:
    """DeepLab v3+: v3 with a decoder that adds detail from the features at stride 4. Arguments as `deeplabv2`.

    Source: arXiv 1802.02611, section 3.
    """
    settings |= {"output_stride": output_stride, "pretrained": pretrained}
    return _network("deeplabv3plus", encoder, num_classes, operator, settings)
