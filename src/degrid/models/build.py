"""The networks by name: each function shows one with every number."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from degrid.models.encoder import Encoder, build_encoder
from degrid.models.heads import (
    ASPP,
    V2_RATES,
    V3_RATES_AT_STRIDE_16,
    DeepLabV2Head,
    DeepLabV3Head,
    DeepLabV3PlusHead,
)
from degrid.models.segmenter import Segmenter
from degrid.types import LabelSpace, Preprocess, UserError


def v3_rates(output_stride: int) -> tuple[int, ...]:
    """ASPP rates that cover the same part of the image at every output stride: 12,24,36 at 8; 6,12,18 at 16.

    Source: DeepLab v3 (arXiv 1706.05587) section 3.3: doubled at output stride 8.
    """
    return tuple(rate * 16 // output_stride for rate in V3_RATES_AT_STRIDE_16)


def deeplabv2(
    encoder: str,
    labels: LabelSpace,
    *,
    output_stride: int = 8,
    pretrained: bool | str = False,
    rates: tuple[int, ...] | None = None,
    multi_grid: tuple[int, ...] | None = None,
    channels: int = 256,
    dropout: float = 0.0,
    separable: bool = False,
    preprocess: Preprocess | None = None,
) -> Segmenter:
    """Summed ASPP at rates 6, 12, 18, 24. `channels`, `dropout` and `separable` have no part in it."""
    body = build_encoder(encoder, output_stride, pretrained, multi_grid, preprocess)
    features = cast(Encoder, body)
    head = DeepLabV2Head(features.channels[-1], len(labels), rates or V2_RATES)
    return Segmenter(body, head, labels, features.reductions[-1])


def deeplabv2_largefov(
    encoder: str,
    labels: LabelSpace,
    *,
    output_stride: int = 8,
    pretrained: bool | str = False,
    rates: tuple[int, ...] | None = None,
    multi_grid: tuple[int, ...] | None = None,
    channels: int = 256,
    dropout: float = 0.0,
    separable: bool = False,
    preprocess: Preprocess | None = None,
) -> Segmenter:
    """One 3x3 classifier at rate 12."""
    return deeplabv2(
        encoder,
        labels,
        output_stride=output_stride,
        pretrained=pretrained,
        rates=rates or (12,),
        multi_grid=multi_grid,
        preprocess=preprocess,
    )


def deeplabv3(
    encoder: str,
    labels: LabelSpace,
    *,
    output_stride: int = 16,
    pretrained: bool | str = False,
    rates: tuple[int, ...] | None = None,
    multi_grid: tuple[int, ...] | None = None,
    channels: int = 256,
    dropout: float = 0.1,
    separable: bool = False,
    preprocess: Preprocess | None = None,
) -> Segmenter:
    """Concatenated ASPP with image pooling; rates follow the output stride."""
    body = build_encoder(encoder, output_stride, pretrained, multi_grid, preprocess)
    features = cast(Encoder, body)
    aspp = ASPP(features.channels[-1], channels, rates or v3_rates(output_stride), dropout, separable)
    return Segmenter(body, DeepLabV3Head(aspp, channels, len(labels)), labels, features.reductions[-1])


def deeplabv3plus(
    encoder: str,
    labels: LabelSpace,
    *,
    output_stride: int = 16,
    pretrained: bool | str = False,
    rates: tuple[int, ...] | None = None,
    multi_grid: tuple[int, ...] | None = None,
    channels: int = 256,
    dropout: float = 0.1,
    separable: bool = False,
    preprocess: Preprocess | None = None,
) -> Segmenter:
    """ASPP as v3, and a decoder on the feature at stride 4.

    Raises:
        UserError: the encoder has no feature at stride 4.
    """
    body = build_encoder(encoder, output_stride, pretrained, multi_grid, preprocess)
    features = cast(Encoder, body)
    if 4 not in features.reductions:
        raise UserError(
            f"deeplabv3plus needs a feature at stride 4; {encoder} has strides "
            f"{', '.join(map(str, features.reductions))}; use deeplabv3"
        )
    low_level = features.reductions.index(4)
    aspp = ASPP(features.channels[-1], channels, rates or v3_rates(output_stride), dropout, separable)
    head = DeepLabV3PlusHead(aspp, channels, len(labels), low_level, features.channels[low_level], separable=separable)
    return Segmenter(body, head, labels, 4)


NETWORKS: dict[str, Callable[..., Segmenter]] = {
    "deeplabv2": deeplabv2,
    "deeplabv2_largefov": deeplabv2_largefov,
    "deeplabv3": deeplabv3,
    "deeplabv3plus": deeplabv3plus,
}
