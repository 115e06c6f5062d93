"""DeepLab heads: features in, logits out; and the table of their names, one function each with all its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid.contracts import WithPlainForm
from degrid.models.encoder import MAX_RATE, Encoder
from degrid.resize import resize
from degrid.types import RESIZES, UserError

# Rates of the ASPP of DeepLab v3 at output stride 16 (arXiv 1706.05587 section 3.3); they scale with the resolution.
V3_RATES_AT_STRIDE_16 = (6, 12, 18)
V2_RATES = (6, 12, 18, 24)
MAX_SIDE = 100_000

MakeBranch = Callable[[int, int, int], nn.Module]
"""(input channels, output channels, rate) -> a 3x3 branch of ASPP."""


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel: int, rate: int = 1, separable: bool = False, relu: bool = True
) -> nn.Sequential:
    """Size-keeping convolution without bias, batch norm, ReLU.

    Args:
        kernel: side k.
        separable: depthwise k x k, batch norm and ReLU, then 1x1 (DeepLab v3+, arXiv 1802.02611 section 3.2).
        relu: False leaves out the ReLU.
    """
    padding = rate * (kernel // 2)

    def layers(channels: int, out: int, size: int, pad: int, dilation: int, groups: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, out, size, padding=pad, dilation=dilation, groups=groups, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        return [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True) if relu else nn.Identity()]

    if not separable or kernel == 1:
        return nn.Sequential(*layers(in_channels, out_channels, kernel, padding, rate, 1))
    depthwise = layers(in_channels, in_channels, kernel, padding, rate, in_channels)
    return nn.Sequential(*depthwise, *layers(in_channels, out_channels, 1, 0, 1, 1))


def plain_separable(in_channels: int, out_channels: int, rate: int = 1) -> nn.Sequential:
    """3x3 depthwise, 1x1, batch norm, ReLU; nothing between the halves, as in segmentation_models.pytorch."""
    depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=rate, dilation=rate, groups=in_channels, bias=False)
    nn.init.kaiming_normal_(depthwise.weight, nonlinearity="relu")
    return nn.Sequential(depthwise, *conv_norm_relu(in_channels, out_channels, 1))


def classifier(in_channels: int, num_classes: int, kernel: int = 1, rate: int = 1) -> nn.Conv2d:
    """The last convolution. It has a bias; weights start from N(0, 0.01) and biases from 0, as in Caffe's DeepLab."""
    conv = nn.Conv2d(in_channels, num_classes, kernel, padding=rate * (kernel // 2), dilation=rate)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(cast(Tensor, conv.bias))
    return conv


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


class ImagePooling(nn.Module):
    """The image's mean feature through a 1x1 convolution, at every position.

    In training with a single image, batch norm would see one value per channel, whose variance is 0. The running
    statistics are used instead, and are not updated.

    Args:
        window: rows and columns of the feature map; where the map is larger, means over windows of that size at every
            place, enlarged to the map, take the place of the image's mean. None: always the image's mean.
        resize: how those means are enlarged; a name in `degrid.types.RESIZES`.
    Source: DeepLab v3 (arXiv 1706.05587) section 3.3; the window: detectron2, which takes its training crop.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        relu: bool = True,
        window: tuple[int, int] | None = None,
        resize: str = "half_pixel",
    ) -> None:
        super().__init__()
        self.project = conv_norm_relu(in_channels, out_channels, 1, relu=relu)
        self.window, self.convention = window, resize

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W], constant over the image without a window."""
        if self.window is not None:
            if any(isinstance(side, torch.SymInt) for side in x.shape[-2:]):
                raise UserError(
                    "the image pooling of this network has a window (model.pooling_size), so its graph depends on the "
                    "size of the image: export it for one size, or with model.pooling_size set to none"
                )
            height, width = (min(side, most) for side, most in zip(x.shape[-2:], self.window, strict=True))
            if (height, width) != tuple(x.shape[-2:]):
                means = F.avg_pool2d(x, (height, width), stride=1)
                return resize(cast(Tensor, self.project(means)), x.shape[-2:], self.convention)
        conv, norm, relu = self.project
        pooled: Tensor = conv(x.mean((2, 3), keepdim=True))
        recorded = isinstance(x, torch.fx.Proxy)  # which has no number of images; one alone then fails, as in PyTorch
        if norm.training and not recorded and len(x) == 1:
            of = cast(nn.BatchNorm2d, norm)
            pooled = F.batch_norm(pooled, of.running_mean, of.running_var, of.weight, of.bias, eps=of.eps)
        else:
            pooled = norm(pooled)
        # Broadcast rather than interpolate: runtimes differ in how they enlarge a single pixel.
        spread = cast(Tensor, relu(pooled)).expand(-1, -1, x.shape[-2], x.shape[-1])
        if not (recorded or torch.compiler.is_compiling()) and x.is_contiguous(memory_format=torch.channels_last):
            # Concatenating an expanded map with channels_last ones is slow, and the result would not be channels_last.
            return spread.contiguous(memory_format=torch.channels_last)
        return spread


class ASPP(nn.Module, WithPlainForm):
    """Concatenated atrous spatial pyramid pooling: 1x1, one 3x3 per rate, and image pooling; projected by a 1x1.

    Args:
        channels: of every branch and of the output.
        rates: of the 3x3 branches, in pixels of the feature map.
        dropout: fraction of values dropped after the projection, 0 to 1.
        separable: depthwise-separable 3x3 branches.
        relu: False leaves out the ReLU after each batch norm.
        branch: makes the 3x3 branches, in place of `conv_norm_relu`.
        project: side of the projection's kernel.
        window, resize: see `ImagePooling`.
    Source: DeepLab v3 (arXiv 1706.05587) section 3.3.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        rates: tuple[int, ...],
        dropout: float = 0.1,
        separable: bool = False,
        relu: bool = True,
        branch: MakeBranch | None = None,
        project: int = 1,
        window: tuple[int, int] | None = None,
        resize: str = "half_pixel",
    ) -> None:
        super().__init__()
        wide = branch or (lambda size, out, rate: conv_norm_relu(size, out, 3, rate, separable, relu))
        self.branches = nn.ModuleList(
            [
                conv_norm_relu(in_channels, channels, 1, relu=relu),
                *(wide(in_channels, channels, rate) for rate in rates),
                ImagePooling(in_channels, channels, relu, window, resize),
            ]
        )
        self.project = conv_norm_relu(channels * len(self.branches), channels, project, relu=relu)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,h,w] -> [N,channels,h,w]."""
        joined = torch.cat([branch(x) for branch in self.branches], dim=1)
        return cast(Tensor, self.dropout(self.project(joined)))

    def as_plain_layers(self) -> nn.Module | None:
        """Without Expand and Concat of the pooled pixel; None where a part is not as it was made."""
        pooling, conv = self.branches[-1], self.project[0]
        plain = type(self) is ASPP and type(pooling) is ImagePooling and pooling.window is None
        return SummedASPP(self) if plain and type(conv) is nn.Conv2d and conv.kernel_size == (1, 1) else None


class SummedASPP(nn.Module):
    """An ASPP whose pooled pixel has a projection of its own: W [a; b] = W_a a + W_b b, and b is constant over the map.

    Enlarging the pixel (Expand) and joining it with the maps (Concat) is what tract, TVM, ncnn and LiteRT fail at. Its
    negative is subtracted, as OpenCV 5.0 takes an addition to a convolution for a shortcut, which must be a whole map.

    Args:
        aspp: in evaluation mode; its parts are used, not copied.
    """

    def __init__(self, aspp: ASPP) -> None:
        super().__init__()
        *branches, pooling = aspp.branches
        conv, rest = cast(nn.Conv2d, aspp.project[0]), aspp.project[1:]
        self.branches, self.rest = nn.ModuleList(branches), rest
        self.pooling = cast(ImagePooling, pooling).project
        pooled = next(part for part in self.pooling if isinstance(part, nn.Conv2d)).out_channels
        weights = torch.split(conv.weight.detach(), [conv.in_channels - pooled, pooled], dim=1)
        self.project, self.project_pooled = (
            nn.Conv2d(weight.shape[1], conv.out_channels, 1, bias=conv.bias is not None and index == 0)
            for index, weight in enumerate(weights)
        )
        with torch.no_grad():
            self.project.weight.copy_(weights[0])
            self.project_pooled.weight.copy_(-weights[1])
            if conv.bias is not None:
                cast(Tensor, self.project.bias).copy_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N,in,h,w] -> [N,channels,h,w]."""
        negative = self.project_pooled(self.pooling(x.mean((2, 3), keepdim=True)))
        joined = torch.cat([branch(x) for branch in self.branches], dim=1)
        return cast(Tensor, self.rest(self.project(joined) - negative))


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
    for layers in [module for module in head.modules() if isinstance(module, nn.Sequential)]:
        for index, layer in enumerate(layers):
            layers[index] = nn.LeakyReLU(0.01, inplace=True) if isinstance(layer, nn.ReLU) else layer
    return head, encoder.reductions[-1]


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
    """A decoder on a fine feature; its 1x1 and that after ASPP have neither batch norm nor ReLU.

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
    stride, size = encoder.reductions[-1], settings.pooling_size
    rates = v3_rates(stride) if settings.rates is None else settings.rates
    window = None if size is None else (max(1, size[0] // stride), max(1, size[1] // stride))
    numbers = encoder.channels[-1], settings.channels, rates, settings.dropout, settings.separable
    return ASPP(*numbers, relu, branch, project, window, resize)


NETWORKS: dict[str, MakeHead] = {
    "deeplabv2": v2_head,
    "deeplabv2_largefov": partial(v2_head, rates=(12,)),
    "deeplabv3": v3_head,
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
