"""The networks by name: each function shows one head with every number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import nn

from degrid.catalog import lookup
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


@dataclass(frozen=True)
class HeadSettings:
    """What a head is built from; v2's have no use for channels, dropout and separable.

    rates: of ASPP, None for the paper's; channels: width of ASPP and decoder; dropout: 0 to 1.
    """

    num_classes: int
    output_stride: int
    rates: tuple[int, ...] | None = None
    channels: int = 256
    dropout: float = 0.1
    separable: bool = False


def v3_rates(output_stride: int) -> tuple[int, ...]:
    """ASPP rates that cover the same part of the image at every output stride: 12,24,36 at 8; 6,12,18 at 16.

    Source: DeepLab v3 (arXiv 1706.05587) section 3.3: doubled at output stride 8.
    """
    return tuple(rate * 16 // output_stride for rate in V3_RATES_AT_STRIDE_16)


def deeplabv2(encoder: Encoder, settings: HeadSettings) -> tuple[nn.Module, int]:
    """Summed ASPP at rates 6, 12, 18, 24, and the stride of its logits."""
    head = DeepLabV2Head(encoder.channels[-1], settings.num_classes, settings.rates or V2_RATES)
    return head, encoder.reductions[-1]


def deeplabv2_largefov(encoder: Encoder, settings: HeadSettings) -> tuple[nn.Module, int]:
    """One 3x3 classifier at rate 12, and the stride of its logits."""
    head = DeepLabV2Head(encoder.channels[-1], settings.num_classes, settings.rates or (12,))
    return head, encoder.reductions[-1]


def deeplabv3(encoder: Encoder, settings: HeadSettings) -> tuple[nn.Module, int]:
    """Concatenated ASPP with image pooling, and the stride of its logits."""
    head = DeepLabV3Head(_aspp(encoder, settings), settings.channels, settings.num_classes)
    return head, encoder.reductions[-1]


def deeplabv3plus(encoder: Encoder, settings: HeadSettings) -> tuple[nn.Module, int]:
    """ASPP as v3 and a decoder on the feature at stride 4, and the stride of its logits, 4.

    Raises:
        UserError: the encoder has no feature at stride 4.
    """
    if 4 not in encoder.reductions:
        raise UserError(
            "deeplabv3plus needs a feature at stride 4; this encoder has strides "
            f"{', '.join(map(str, encoder.reductions))}; use deeplabv3"
        )
    fine = encoder.reductions.index(4)
    head = DeepLabV3PlusHead(
        _aspp(encoder, settings),
        settings.channels,
        settings.num_classes,
        low_level=fine,
        low_level_in=encoder.channels[fine],
        separable=settings.separable,
    )
    return head, 4


def _aspp(encoder: Encoder, settings: HeadSettings) -> ASPP:
    rates = settings.rates or v3_rates(settings.output_stride)
    return ASPP(encoder.channels[-1], settings.channels, rates, settings.dropout, settings.separable)


NETWORKS: dict[str, Callable[[Encoder, HeadSettings], tuple[nn.Module, int]]] = {
    "deeplabv2": deeplabv2,
    "deeplabv2_largefov": deeplabv2_largefov,
    "deeplabv3": deeplabv3,
    "deeplabv3plus": deeplabv3plus,
}


def build_network(
    network: str,
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
    """An encoder with a head.

    Args:
        network: a row of NETWORKS, or "module:function" of the same kind.
        encoder: "timm:<name>", or "module:Encoder".
        pretrained, multi_grid, preprocess: see `TimmEncoder`; the others: see `HeadSettings`.
    Raises:
        UserError: an unknown name or an impossible combination.
    """
    make_head = lookup(NETWORKS, network, "network")
    body = build_encoder(encoder, output_stride, pretrained, multi_grid, preprocess)
    settings = HeadSettings(len(labels), output_stride, rates, channels, dropout, separable)
    head, logit_stride = make_head(cast(Encoder, body), settings)
    return Segmenter(body, head, labels, logit_stride)
