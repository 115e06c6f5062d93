"""The networks by name: each function shows one head with every number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch import nn

from degrid.lookup import lookup
from degrid.models.encoder import Encoder, EncoderSettings, build_encoder
from degrid.models.heads import (
    ASPP,
    V2_RATES,
    V3_RATES_AT_STRIDE_16,
    DeepLabV2Head,
    DeepLabV3Head,
    DeepLabV3PlusHead,
    plain_separable,
)
from degrid.models.segmenter import Segmenter
from degrid.types import LabelSpace, UserError


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


def deeplabv3_refined(encoder: Encoder, settings: HeadSettings) -> tuple[nn.Module, int]:
    """v3 with a 3x3 convolution more before the classifier, as torchvision and segmentation_models.pytorch build it."""
    head = DeepLabV3Head(_aspp(encoder, settings), settings.channels, settings.num_classes, refine=True)
    return head, encoder.reductions[-1]


def deeplabv3_linear(encoder: Encoder, settings: HeadSettings) -> tuple[nn.Module, int]:
    """v3 without ReLU from the encoder to the logits, as one TensorFlow re-implementation (ST) has it."""
    return DeepLabV3Head(_aspp(encoder, settings, relu=False), settings.channels, settings.num_classes), (
        encoder.reductions[-1]
    )


def deeplabv3plus(encoder: Encoder, settings: HeadSettings) -> tuple[nn.Module, int]:
    """ASPP as v3 and a decoder on the feature at stride 4, and the stride of its logits, 4.

    Raises:
        UserError: the encoder has no feature at stride 4.
    """
    fine = _fine_feature(encoder)
    head = DeepLabV3PlusHead(
        _aspp(encoder, settings),
        settings.channels,
        settings.num_classes,
        low_level=fine,
        low_level_in=encoder.channels[fine],
        separable=settings.separable,
    )
    return head, 4


def deeplabv3plus_smp(encoder: Encoder, settings: HeadSettings) -> tuple[nn.Module, int]:
    """v3+ as segmentation_models.pytorch builds it: separable convolutions without batch norm between their halves, one
    more after ASPP, one in place of two after the join, and align-corners resizing.

    Raises:
        UserError: the encoder has no feature at stride 4.
    """
    fine, channels = _fine_feature(encoder), settings.channels
    rates = v3_rates(settings.output_stride) if settings.rates is None else settings.rates
    head = DeepLabV3PlusHead(
        ASPP(encoder.channels[-1], channels, rates, settings.dropout, branch=plain_separable),
        channels,
        settings.num_classes,
        low_level=fine,
        low_level_in=encoder.channels[fine],
        after_aspp=plain_separable(channels, channels),
        refine=plain_separable(channels + 48, channels),
        convention="align_corners",
    )
    return head, 4


def _fine_feature(encoder: Encoder) -> int:
    if 4 not in encoder.reductions:
        raise UserError(
            "deeplabv3plus needs a feature at stride 4; this encoder has strides "
            f"{', '.join(map(str, encoder.reductions))}; use deeplabv3"
        )
    return encoder.reductions.index(4)


def _aspp(encoder: Encoder, settings: HeadSettings, relu: bool = True) -> ASPP:
    rates = v3_rates(settings.output_stride) if settings.rates is None else settings.rates
    return ASPP(encoder.channels[-1], settings.channels, rates, settings.dropout, settings.separable, relu)


NETWORKS: dict[str, Callable[[Encoder, HeadSettings], tuple[nn.Module, int]]] = {
    "deeplabv2": deeplabv2,
    "deeplabv2_largefov": deeplabv2_largefov,
    "deeplabv3": deeplabv3,
    "deeplabv3_refined": deeplabv3_refined,
    "deeplabv3_linear": deeplabv3_linear,
    "deeplabv3plus": deeplabv3plus,
    "deeplabv3plus_smp": deeplabv3plus_smp,
}


def build_network(
    network: str,
    encoder: str,
    labels: LabelSpace,
    *,
    body: EncoderSettings,
    rates: tuple[int, ...] | None = None,
    channels: int = 256,
    dropout: float = 0.1,
    separable: bool = False,
    resize: str = "half_pixel",
    scales: tuple[float, ...] = (),
) -> Segmenter:
    """An encoder with a head.

    Args:
        network: a row of NETWORKS, or "module:function" of the same kind.
        encoder: see `build_encoder`.
        body: the encoder's settings.
        rates, channels, dropout, separable: see `HeadSettings`.
        resize, scales: see `Segmenter`.
    Raises:
        UserError: an unknown name or an impossible combination.
    """
    make_head = lookup(NETWORKS, network, "network")
    net = build_encoder(encoder, body)
    settings = HeadSettings(len(labels), body.output_stride, rates, channels, dropout, separable)
    head, logit_stride = make_head(cast(Encoder, net), settings)
    return Segmenter(net, head, labels, logit_stride, resize, scales)
