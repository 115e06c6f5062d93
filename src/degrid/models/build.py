"""Networks by name: the table of heads, one function each with all its numbers, and `build_network`."""

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
    """What a head is built with. The heads of DeepLab v2 use only `rates`.

    Attributes:
        rates: dilation rates of ASPP; None for the paper's.
        channels: of ASPP and decoder.
        dropout: fraction of values dropped after ASPP, 0 to 1.
        separable: depthwise-separable convolutions in ASPP and decoder.
    """

    rates: tuple[int, ...] | None = None
    channels: int = 256
    dropout: float = 0.1
    separable: bool = False


MakeHead = Callable[[Encoder, int, HeadSettings], tuple[nn.Module, int]]
"""(encoder, number of classes, settings) -> a module from the encoder's features to logits, and their stride."""


def v3_rates(output_stride: int) -> tuple[int, ...]:
    """ASPP rates that cover the same part of the image at every output stride: 12, 24, 36 at 8; 6, 12, 18 at 16.

    Source: DeepLab v3 (arXiv 1706.05587) section 3.3: doubled at output stride 8.
    """
    return tuple(rate * 16 // output_stride for rate in V3_RATES_AT_STRIDE_16)


def v2_head(encoder: Encoder, num_classes: int, settings: HeadSettings) -> tuple[nn.Module, int]:
    """Summed ASPP at rates 6, 12, 18, 24."""
    head = DeepLabV2Head(encoder.channels[-1], num_classes, settings.rates or V2_RATES)
    return head, encoder.reductions[-1]


def v2_largefov_head(encoder: Encoder, num_classes: int, settings: HeadSettings) -> tuple[nn.Module, int]:
    """One 3x3 classifier at rate 12."""
    head = DeepLabV2Head(encoder.channels[-1], num_classes, settings.rates or (12,))
    return head, encoder.reductions[-1]


def v3_head(encoder: Encoder, num_classes: int, settings: HeadSettings) -> tuple[nn.Module, int]:
    """Concatenated ASPP with image pooling."""
    head = DeepLabV3Head(_aspp(encoder, settings), settings.channels, num_classes)
    return head, encoder.reductions[-1]


def v3_refined_head(encoder: Encoder, num_classes: int, settings: HeadSettings) -> tuple[nn.Module, int]:
    """v3 with one more 3x3 convolution before the classifier, as in torchvision and segmentation_models.pytorch."""
    head = DeepLabV3Head(_aspp(encoder, settings), settings.channels, num_classes, refine=True)
    return head, encoder.reductions[-1]


def v3_linear_head(encoder: Encoder, num_classes: int, settings: HeadSettings) -> tuple[nn.Module, int]:
    """v3 without ReLU between the encoder and the logits, as in sthalles/deeplab_v3."""
    head = DeepLabV3Head(_aspp(encoder, settings, relu=False), settings.channels, num_classes)
    return head, encoder.reductions[-1]


def v3plus_head(encoder: Encoder, num_classes: int, settings: HeadSettings) -> tuple[nn.Module, int]:
    """ASPP as in v3, and a decoder on the feature at stride 4.

    Raises:
        UserError: the encoder has no feature at stride 4.
    """
    fine = _fine_feature(encoder)
    head = DeepLabV3PlusHead(
        _aspp(encoder, settings),
        settings.channels,
        num_classes,
        low_level=fine,
        low_level_in=encoder.channels[fine],
        separable=settings.separable,
    )
    return head, 4


def v3plus_smp_head(encoder: Encoder, num_classes: int, settings: HeadSettings) -> tuple[nn.Module, int]:
    """v3+ as in segmentation_models.pytorch: its separable convolutions have no batch norm between the halves; there is
    one more after ASPP, and one instead of two after the join; resizing aligns the corners.

    Raises:
        UserError: the encoder has no feature at stride 4.
    """
    fine, channels = _fine_feature(encoder), settings.channels
    aspp = ASPP(encoder.channels[-1], channels, _rates(encoder, settings), settings.dropout, branch=plain_separable)
    head = DeepLabV3PlusHead(
        aspp,
        channels,
        num_classes,
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


def _rates(encoder: Encoder, settings: HeadSettings) -> tuple[int, ...]:
    return v3_rates(encoder.reductions[-1]) if settings.rates is None else settings.rates


def _aspp(encoder: Encoder, settings: HeadSettings, relu: bool = True) -> ASPP:
    rates = _rates(encoder, settings)
    return ASPP(encoder.channels[-1], settings.channels, rates, settings.dropout, settings.separable, relu)


NETWORKS: dict[str, MakeHead] = {
    "deeplabv2": v2_head,
    "deeplabv2_largefov": v2_largefov_head,
    "deeplabv3": v3_head,
    "deeplabv3_refined": v3_refined_head,
    "deeplabv3_linear": v3_linear_head,
    "deeplabv3plus": v3plus_head,
    "deeplabv3plus_smp": v3plus_smp_head,
}


def build_network(
    network: str,
    encoder: str,
    labels: LabelSpace,
    body: EncoderSettings,
    head: HeadSettings | None = None,
    *,
    resize: str = "half_pixel",
    scales: tuple[float, ...] = (),
) -> Segmenter:
    """An encoder with a head.

    Args:
        network: a row of NETWORKS, or "module:function" of the user's own, see `MakeHead`.
        encoder: see `build_encoder`.
        labels: the classes.
        body: settings of the encoder.
        head: settings of the head, by default those of the papers.
        resize, scales: see `Segmenter`.
    Raises:
        UserError: an unknown name or an impossible combination; or the user's function makes no head.
    """
    make_head = lookup(NETWORKS, network, "network")
    net = build_encoder(encoder, body)
    made: object = make_head(cast(Encoder, net), len(labels), head or HeadSettings())
    match made:
        case (nn.Module() as module, int() as stride):
            return Segmenter(net, module, labels, stride, resize, scales)
    raise UserError(
        f'network "{network}": expected a function that returns a module from features to logits and the stride of the '
        f"logits, got {made!r:.100}"
    )
