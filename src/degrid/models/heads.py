"""DeepLab heads: features in, logits out; and the table of their names, one function each with all its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from degrid.models.aspp import ASPP, MakeBranch, classifier, conv_norm_relu, plain_separable
from degrid.models.encoder import MAX_RATE, Encoder
from degrid.models.light_heads import FCNHead, LiteRASPPHead
from degrid.resize import resize
from degrid.types import RESIZES, UserError

# Rates of the ASPP of DeepLab v3 at output stride 16 (arXiv 1706.05587 section 3.3); they scale with the resolution.
V3_RATES_AT_STRIDE_16 = (6, 12, 18)
V2_RATES = (6, 12, 18, 24)
MAX_SIDE = 100_000


class DeepLabV2Head(nn.Module):
    """Summed atrous spatial pyramid pooling (ASPP): the sum of one 3x3 classifier per rate; LargeFOV with one rate.

    It has no batch norm and no ReLU, and gives logits at the stride of the last feature.

    Source: DeepLab v2 (arXiv 1606.00915) section 3.2; rates 6, 12, 18, 24 (ASPP-L) or 12 (LargeFOV).
    """

    def __init__(self, in_channels: int, num_classes: int, rates: tuple[int, ...] = V2_RATES) -> None:
        super().__init__()
        self.branches = nn.ModuleList(classifier(in_channels, num_classes, 3, rate) for rate in rates)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features, fine to coarse -> logits [N,C,h,w]."""
        return torch.stack([branch(features[-1]) for branch in self.branches]).sum(0)


class DeepLabV3Head(nn.Module):
    """ASPP and a 1x1 classifier on the last feature; logits at its stride.

    Args:
        aspp: on the last feature, with `channels` outputs.
        refine: one more 3x3 convolution before the classifier, as in torchvision and segmentation_models.pytorch.
    Source: DeepLab v3 (arXiv 1706.05587) section 3.3.
    """

    def __init__(self, aspp: ASPP, channels: int, num_classes: int, refine: bool = False) -> None:
        super().__init__()
        self.aspp = aspp
        self.refine = conv_norm_relu(channels, channels, 3) if refine else nn.Identity()
        self.classifier = classifier(channels, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features, fine to coarse -> logits [N,C,h,w]."""
        return cast(Tensor, self.classifier(self.refine(self.aspp(features[-1]))))


class EnlargedHead(DeepLabV3Head):
    """As `DeepLabV3Head`, with ASPP's output enlarged to the size of a finer feature before what follows.

    Args:
        low_level: index of that feature. resize: how ASPP's output is enlarged; a name in `degrid.types.RESIZES`.
        aspp, channels, num_classes: as in `DeepLabV3Head`; a 1x1 convolution stands before the classifier.
    """

    def __init__(self, aspp: ASPP, channels: int, num_classes: int, low_level: int, resize: str) -> None:
        super().__init__(aspp, channels, num_classes)
        self.refine = conv_norm_relu(channels, channels, 1)
        self.low_level, self.convention = low_level, resize

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features, fine to coarse -> logits [N,C,h,w]."""
        wide = resize(self.aspp(features[-1]), features[self.low_level].shape[-2:], self.convention)
        return cast(Tensor, self.classifier(self.refine(wide)))


class DeepLabV3PlusHead(nn.Module):
    """ASPP, and a decoder that joins its output with a fine feature; logits at the stride of that feature, 4.

    Args:
        aspp: on the last feature.
        channels: of ASPP's output and of the decoder.
        low_level: index of the fine feature. reduced: its channels, those that a convolution reduces them to, so that
            they do not outweigh ASPP, and the side of its kernel.
        joined: makes the 3x3 convolutions after the join, by default `conv_norm_relu`. convs: how many, 1 or 2.
        after_aspp: a separable 3x3 after ASPP, as in segmentation_models.pytorch.
        resize: how ASPP's output is enlarged; a name in `degrid.types.RESIZES`.
    Source: DeepLab v3+ (arXiv 1802.02611) section 3.1; 48 channels and two 3x3 from tables 1 and 2.
    """

    def __init__(
        self,
        aspp: ASPP,
        channels: int,
        num_classes: int,
        low_level: int,
        reduced: tuple[int, int, int],
        joined: MakeBranch,
        convs: int = 2,
        after_aspp: bool = False,
        resize: str = "half_pixel",
    ) -> None:
        super().__init__()
        self.aspp = aspp
        self.after_aspp = plain_separable(channels, channels) if after_aspp else nn.Identity()
        self.low_level = low_level
        self.convention = resize
        self.reduce = conv_norm_relu(*reduced)
        first = joined(channels + reduced[1], channels, 1)
        self.refine = first if convs == 1 else nn.Sequential(first, joined(channels, channels, 1))
        self.classifier = classifier(channels, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Features, fine to coarse -> logits [N,C,H/4,W/4]."""
        fine = self.reduce(features[self.low_level])
        wide = self.after_aspp(self.aspp(features[-1]))
        wide = resize(wide, fine.shape[-2:], self.convention)
        return cast(Tensor, self.classifier(self.refine(torch.cat([wide, fine], dim=1))))


@dataclass(frozen=True)
class HeadSettings:
    """What a head is built with: see `degrid.config.ModelConfig`, where `resize` is `head_resize`.

    The heads of DeepLab v2 use only `rates`.


    Raises:
        UserError: no network has such numbers.
    """

    rates: tuple[int, ...] | None = None
    channels: int = 256
    dropout: float = 0.1
    separable: bool = False
    resize: str | None = None
    pooling_size: tuple[int, ...] | None = None
    low_level_channels: int = 48

    def __post_init__(self) -> None:
        if self.resize not in (None, *RESIZES):
            raise UserError(f'setting "model.head_resize": expected {", ".join(RESIZES)} or none, got "{self.resize}"')
        size = self.pooling_size
        if size is not None and not (len(size) == 2 and all(1 <= side <= MAX_SIDE for side in size)):
            raise UserError(f'setting "model.pooling_size": expected height and width, such as 512,1024; got {size}')
        sizes = (self.channels, self.low_level_channels, *(self.rates or ()))
        if not all(1 <= size <= MAX_RATE for size in sizes) or not 0 <= self.dropout <= 1:
            raise UserError(
                f"model.channels, model.low_level_channels, model.rates and model.dropout: expected channels and rates "
                f"from 1 to {MAX_RATE}, and a fraction from 0 to 1; got {self.channels}, {self.low_level_channels}, "
                f"{self.rates} and {self.dropout:g}"
            )


MakeHead = Callable[[Encoder, int, HeadSettings], tuple[nn.Module, int]]
"""(encoder, number of classes, settings) -> a module from the encoder's features to logits, and their stride."""


def v3_rates(output_stride: int) -> tuple[int, ...]:
    """ASPP rates that cover the same part of the image at every output stride: 12, 24, 36 at 8; 6, 12, 18 at 16.

    Source: DeepLab v3 (arXiv 1706.05587) section 3.3: doubled at output stride 8.
    """
    return tuple(rate * 16 // output_stride for rate in V3_RATES_AT_STRIDE_16)


def v2_head(
    encoder: Encoder, num_classes: int, settings: HeadSettings, rates: tuple[int, ...] = V2_RATES
) -> tuple[nn.Module, int]:
    """Summed ASPP at the given rates; LargeFOV, a single 3x3 classifier, with one rate."""
    return DeepLabV2Head(encoder.channels[-1], num_classes, settings.rates or rates), encoder.reductions[-1]


def v3_head(
    encoder: Encoder,
    num_classes: int,
    settings: HeadSettings,
    refine: bool = False,
    relu: bool = True,
    project: int = 1,
    plain: bool = False,
) -> tuple[nn.Module, int]:
    """Concatenated ASPP with image pooling; see `DeepLabV3Head` for `refine`, `ASPP` for `relu` and `project`.

    plain: `plain_separable` branches.
    """
    branch = plain_separable if plain else None
    aspp = _aspp(encoder, settings, settings.resize or "half_pixel", branch, relu, project)
    return DeepLabV3Head(aspp, settings.channels, num_classes, refine), encoder.reductions[-1]


def enlarged_v3_head(encoder: Encoder, num_classes: int, settings: HeadSettings) -> tuple[nn.Module, int]:
    """ASPP enlarged to stride 4, a 1x1 convolution and the classifier; see `EnlargedHead`."""
    convention, channels = settings.resize or "half_pixel", settings.channels
    aspp, fine = _aspp(encoder, settings, convention), _fine(encoder, "deeplabv3_keras_hub")
    return EnlargedHead(aspp, channels, num_classes, fine, convention), 4


def leaky_v3_head(encoder: Encoder, num_classes: int, settings: HeadSettings) -> tuple[nn.Module, int]:
    """ASPP whose projection has twice as many channels, with leaky ReLUs of slope 0.01 in the place of ReLUs."""
    aspp, channels = _aspp(encoder, settings, settings.resize or "half_pixel"), settings.channels
    aspp.project = conv_norm_relu(channels * len(aspp.branches), 2 * channels, 1)
    head = DeepLabV3Head(aspp, 2 * channels, num_classes)
    _replace_relus(head, lambda: nn.LeakyReLU(0.01, inplace=True))
    return head, encoder.reductions[-1]


def bounded_head(
    encoder: Encoder, num_classes: int, settings: HeadSettings, make: MakeHead = v3_head
) -> tuple[nn.Module, int]:
    """The head that `make` makes, with min(x, 6) after every ReLU."""
    head, stride = make(encoder, num_classes, settings)
    _replace_relus(head, lambda: nn.ReLU6(inplace=True))
    return head, stride


def _replace_relus(head: nn.Module, activation: Callable[[], nn.Module]) -> None:
    for layers in [module for module in head.modules() if isinstance(module, nn.Sequential)]:
        for index, layer in enumerate(layers):
            layers[index] = activation() if isinstance(layer, nn.ReLU) else layer


def fcn_head(encoder: Encoder, num_classes: int, settings: HeadSettings) -> tuple[nn.Module, int]:
    """One 3x3 convolution to a quarter of the channels, and a classifier; see `FCNHead`."""
    return FCNHead(encoder.channels[-1], num_classes, settings.dropout), encoder.reductions[-1]


def lraspp_head(
    encoder: Encoder, num_classes: int, settings: HeadSettings, google: bool = False
) -> tuple[nn.Module, int]:
    """Lite R-ASPP; see `LiteRASPPHead`.

    Args:
        google: as research/deeplab has it: a bias and a hard sigmoid in the gate, and means over windows, if any, at
            every fourth row and fifth column.
    Raises:
        UserError: the encoder has no feature at stride 8.
    """
    if 8 not in encoder.reductions[:-1]:
        strides = ", ".join(map(str, encoder.reductions))
        raise UserError(f"lraspp needs a feature at stride 8 before its last; this encoder has strides {strides}")
    fine, gate = encoder.reductions.index(8), nn.Hardsigmoid() if google else nn.Sigmoid()
    channels = encoder.channels[-1], settings.channels, encoder.channels[fine]
    window, convention = _window(encoder, settings, rounds_up=google), settings.resize or "half_pixel"
    return LiteRASPPHead(channels, num_classes, fine, gate, google, window, convention), 8


def v3plus_head(
    encoder: Encoder,
    num_classes: int,
    settings: HeadSettings,
    project: int = 1,
    convs: int = 2,
    plain: bool = False,
    smp: bool = False,
    dense: bool = False,
    reduce: int = 1,
    joining: int = 3,
) -> tuple[nn.Module, int]:
    """ASPP as in v3, and a decoder on the feature at stride 4.

    Args:
        project: see `ASPP`. convs: see `DeepLabV3PlusHead`.
        plain: `plain_separable` 3x3 convolutions everywhere, whatever `separable` is set to.
        dense: full 3x3 convolutions in ASPP even so.
        smp: a further 3x3 after ASPP; corners are aligned unless the settings say otherwise.
        reduce: side of the kernel that reduces the fine feature. joining: of those after the join.
    Raises:
        UserError: the encoder has no feature at stride 4.
    """
    fine = _fine(encoder, "deeplabv3plus")
    convention = settings.resize or ("align_corners" if smp else "half_pixel")
    aspp = _aspp(encoder, settings, convention, plain_separable if plain and not dense else None, project=project)

    def joined(in_channels: int, out: int, rate: int) -> nn.Module:
        if plain:
            return plain_separable(in_channels, out, rate)
        return conv_norm_relu(in_channels, out, joining, rate, settings.separable)

    reduced = encoder.channels[fine], settings.low_level_channels, reduce
    return DeepLabV3PlusHead(aspp, settings.channels, num_classes, fine, reduced, joined, convs, smp, convention), 4


def full_size_v3plus_head(encoder: Encoder, num_classes: int, settings: HeadSettings) -> tuple[nn.Module, int]:
    """As `v3plus_head`, for logits at the size of the image: of several scales, the maximum is taken there."""
    return v3plus_head(encoder, num_classes, settings)[0], 1


def nvidia_head(
    encoder: Encoder, num_classes: int, settings: HeadSettings, low_level: int = 0
) -> tuple[nn.Module, int]:
    """A decoder on a fine feature; its 1x1 convolution and the one after ASPP have neither batch norm nor ReLU.

    Corners are aligned unless the settings say otherwise.

    Args:
        low_level: index of the fine feature.
    """
    convention, fine, channels = settings.resize or "align_corners", encoder.channels[low_level], settings.channels
    aspp, width = _aspp(encoder, settings, convention), settings.low_level_channels
    aspp.project = nn.Sequential(nn.Conv2d(channels * len(aspp.branches), channels, 1, bias=False))

    def joined(in_channels: int, out: int, rate: int) -> nn.Module:
        return conv_norm_relu(in_channels, out, 3, rate, settings.separable)

    reduced = fine, width, 1
    head = DeepLabV3PlusHead(aspp, channels, num_classes, low_level, reduced, joined, resize=convention)
    head.reduce = nn.Sequential(nn.Conv2d(fine, width, 1, bias=False))
    return head, encoder.reductions[low_level]


def _fine(encoder: Encoder, network: str) -> int:
    """The index of the encoder's feature at stride 4."""
    if 4 not in encoder.reductions:
        strides = ", ".join(map(str, encoder.reductions))
        raise UserError(f"{network} needs a feature at stride 4; this encoder has strides {strides}; use deeplabv3")
    return encoder.reductions.index(4)


def _aspp(
    encoder: Encoder,
    settings: HeadSettings,
    resize: str,
    branch: MakeBranch | None = None,
    relu: bool = True,
    project: int = 1,
) -> ASPP:
    rates = v3_rates(encoder.reductions[-1]) if settings.rates is None else settings.rates
    numbers = encoder.channels[-1], settings.channels, rates, settings.dropout, settings.separable
    return ASPP(*numbers, relu, branch, project, _window(encoder, settings), resize)


def _window(encoder: Encoder, settings: HeadSettings, rounds_up: bool = False) -> tuple[int, int] | None:
    """Rows and columns of the feature map that image pooling takes the mean of; None: all."""
    stride, size = encoder.reductions[-1], settings.pooling_size
    more = stride - 1 if rounds_up else 0
    return None if size is None else (max(1, (size[0] + more) // stride), max(1, (size[1] + more) // stride))


NETWORKS: dict[str, MakeHead] = {
    "deeplabv2": v2_head,
    "deeplabv2_largefov": partial(v2_head, rates=(12,)),
    "deeplabv3": v3_head,
    # As in research/deeplab with --use_bounded_activation, but on Xception.
    "deeplabv3_bounded": bounded_head,
    "deeplabv3plus_bounded": partial(bounded_head, make=v3plus_head),
    # As in torchvision and segmentation_models.pytorch.
    "deeplabv3_refined": partial(v3_head, refine=True),
    # As in sthalles/deeplab_v3.
    "deeplabv3_linear": partial(v3_head, relu=False),
    # As in mmsegmentation: the projection after ASPP is 3x3.
    "deeplabv3_mmseg": partial(v3_head, project=3),
    # As in kazuto1011/deeplab-pytorch, multi-scale.
    "deeplabv3plus_kazuto1011": full_size_v3plus_head,
    # As in keras-hub: a 1x1 after the enlarging to stride 4, in both.
    "deeplabv3_keras_hub": enlarged_v3_head,
    "deeplabv3plus_keras_hub": partial(v3plus_head, convs=1, joining=1),
    # As in speedinghzl/pytorch-segmentation-toolbox.
    "deeplabv3_speedinghzl": leaky_v3_head,
    "deeplabv3plus": v3plus_head,
    # As in torchvision, and as in research/deeplab on MobileNetV3.
    "fcn": fcn_head,
    "lraspp": lraspp_head,
    "lraspp_google": partial(lraspp_head, google=True),
    # As in NVIDIA/semantic-segmentation.
    "deeplabv3plus_nvidia": nvidia_head,
    "deeplabv3plus_nvidia_resnet": partial(nvidia_head, low_level=1),
    # As in detectron2 with depthwise-separable convolutions: one 5x5 in the decoder.
    "deeplabv3plus_detectron2_separable": partial(v3plus_head, convs=1, joining=5),
    "deeplabv3plus_mmseg": partial(v3plus_head, project=3),
    # As in VainF/DeepLabV3Plus-Pytorch: one 3x3 in the decoder.
    "deeplabv3plus_vainf": partial(v3plus_head, convs=1),
    # The same with its --separable_conv.
    "deeplabv3plus_vainf_separable": partial(v3plus_head, convs=1, plain=True),
    # As in PaddleSeg and segmentation_models.pytorch: nothing between the halves of separable convolutions.
    "deeplabv3plus_paddleseg": partial(v3plus_head, plain=True),
    # As in Tramac/awesome-semantic-segmentation-pytorch: the decoder's first convolution is 3x3.
    "deeplabv3plus_tramac": partial(v3plus_head, reduce=3),
    "deeplabv3plus_smp": partial(v3plus_head, convs=1, plain=True, smp=True),
    "deeplabv3plus_smp_dense": partial(v3plus_head, convs=1, plain=True, smp=True, dense=True),
    "deeplabv3_smp_separable": partial(v3_head, refine=True, plain=True),
}
"""The function of each network's head, with all its numbers."""
