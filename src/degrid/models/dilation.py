"""Dilation instead of strides, for any convolutional network whose weights keep their meaning under it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.blur_pool import BlurPool2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from degrid.arguments import checked
from degrid.contracts import DressedConv, copied
from degrid.lookup import in_a_line
from degrid.models.strides import Layer, Strides, is_conv, is_window, maps_of, measure_strides, pair
from degrid.types import UserError

Margins = tuple[int, int, int, int]
"""Pixels beyond the left, right, top and bottom of a map."""


@dataclass(frozen=True)
class DilationReport:
    """What `dilate` did.

    Attributes:
        strides: image size over feature size, of each feature, fine to coarse as the network gives them.
        stopped: names of the layers that no longer lower the resolution, or by less.
        rates: the name of each convolution and pooling whose rate was raised, and its rate now.
    """

    strides: tuple[int, ...]
    stopped: tuple[str, ...]
    rates: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        found = ", ".join(map(str, sorted({rate for _, rate in self.rates}))) or "none"
        return (
            f"features at strides {', '.join(map(str, self.strides))}: {len(self.stopped)} layers no longer lower the "
            f"resolution, {len(self.rates)} are dilated (rates {found})"
        )


class Conv2dWithMargins(nn.Conv2d):
    """A convolution whose map is first padded by zeros, with a margin of its own on each side."""

    margins: Margins

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,out,h,w]."""
        y: Tensor = self._conv_forward(F.pad(x, self.margins), self.weight, self.bias)
        return y


class DilatedMaxPool2d(nn.MaxPool2d):
    """A maximum over pixels that lie apart, with a margin of its own on each side."""

    margins: Margins

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,h,w]."""
        padded = F.pad(x, self.margins, value=float("-inf"))
        return F.max_pool2d(padded, self.kernel_size, self.stride, 0, self.dilation)


class DilatedAvgPool2d(nn.AvgPool2d):
    """A mean over pixels that lie apart, with a margin of its own on each side.

    Pixels in the margin count as zeros if the pooling had padding that counts; otherwise they do not count.
    """

    margins: Margins
    dilation: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,h,w]."""
        total = self._sum(x)
        if self.count_include_pad and max(pair(self.padding)):
            return total / (pair(self.kernel_size)[0] * pair(self.kernel_size)[1])
        return total / self._sum(torch.ones_like(x[:1, :1]))

    def _sum(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        ones = x.new_ones(channels, 1, *pair(self.kernel_size))
        return F.conv2d(F.pad(x, self.margins), ones, None, self.stride, 0, self.dilation, channels)


class DilatedBlurPool2d(BlurPool2d):
    """A blur over pixels that lie apart, with a margin of its own on each side."""

    filt: Tensor
    margins: Margins
    dilation: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        """[N,C,H,W] -> [N,C,h,w]."""
        channels = x.shape[1]
        kernel = self.filt.expand(channels, 1, self.filt_size, self.filt_size)
        padded = F.pad(x, self.margins, mode=self.pad_mode)
        return F.conv2d(padded, kernel, stride=self.stride, dilation=self.dilation, groups=channels)


PROOF_SIDES = (64, 128)
"""Height and width of the image on which a dilated network is compared with the original."""


@checked
def dilate(network: nn.Module, output_stride: int, *, in_channels: int = 3) -> DilationReport:
    """Remove strides from a network, in place, and dilate what follows, so that its features have a finer stride.

    Every layer that would lower the resolution below `output_stride` keeps it, and the convolutions and poolings after
    it reach as far as before: their rate is multiplied by the removed stride. At the positions that the features had
    before, they have the same values as before, so that trained weights keep their meaning. This is measured, on a copy
    of the network with random weights, before anything changes. Only means and statistics over the whole map (squeeze
    and excitation, group norm) are then taken over more pixels, which the measurement leaves out of account.

    The network keeps its parameters and the names in its state dict.

    Args:
        network: from normalised images [N,C,H,W] to a feature map [N,C,h,w], or a list or dictionary of them, such as
            those of timm with features_only=True.
        output_stride: the largest stride to keep, a power of 2 such as 8 or 16.
        in_channels: C of the images.
    Returns:
        What changed; nothing if no feature has a larger stride.
    Raises:
        UserError: the network does not run on images of 128x192 and 64x128; or its features would change, as with
            attention among all positions, or if something other than convolutions and poolings lowers the resolution.
            The network is then unchanged.
    Source: the hole algorithm of DeepLab v1 (arXiv 1412.7062) section 3.1.
    """
    if output_stride < 1 or output_stride & (output_stride - 1):
        raise UserError(f"output stride {output_stride}: expected a power of 2, such as 8 or 16")
    kind = type(network).__name__
    try:
        strides = measure_strides(network, in_channels)
    except Exception as error:  # a network may raise anything, and any error means that it cannot be measured
        raise UserError(
            f"cannot dilate this {kind}: it does not run on an image of {in_channels}x128x192 ({in_a_line(error)})"
        ) from error
    if reason := reason_against(copied(network), strides, output_stride, in_channels):
        if any(isinstance(module, DressedConv) for module in network.modules()):
            reason = "convolutions of it are smoothed for the rates that they have; dilate it before it is smoothed"
        raise UserError(f"cannot dilate this {kind} to output stride {output_stride}: {reason}")
    return change_strides(network, strides, output_stride)


def change_strides(network: nn.Module, strides: Strides, output_stride: int) -> DilationReport:
    """What `dilate` does after it has measured, and found that it is right.

    Raises:
        UserError: a layer that has to change cannot be dilated.
    """
    modules = dict(network.named_modules())
    stopped, rates = [], []
    for name, layer in {layer.name: layer for layer in strides.layers}.items():
        module: Any = modules[name]
        step = max(1, min(layer.after, output_stride) // min(layer.before, output_stride))
        factor, stops = rate_factor(layer, output_stride), step * layer.before < layer.after
        if not is_window(module) or not (stops or factor > 1):
            continue
        _spread(name, module, factor, (step, step) if stops else pair(module.stride))
        stopped += [name] * stops
        if factor > 1 and max(_kernel(module)) > 1:
            rates.append((name, max(pair(module.dilation))))
    features = tuple(min(stride, output_stride) for stride in strides.features)
    return DilationReport(features, tuple(stopped), tuple(rates))


def rate_factor(layer: Layer, output_stride: int) -> int:
    """The factor by which the taps of a layer move apart where its input comes at a finer stride than it did."""
    return max(1, layer.before // output_stride)


def set_rates(conv: Any, rates: tuple[int, ...]) -> None:
    """Give a convolution other rates, without changing the size of its output.

    Args:
        conv: one whose padding grows with its rates.
    """
    old, conv.dilation = pair(conv.dilation), rates
    grown = [new / before for new, before in zip(rates, old, strict=True)]
    if isinstance(conv, Conv2dWithMargins):
        factors = (grown[1], grown[1], grown[0], grown[0])
        conv.margins = cast(Margins, tuple(int(pad * by) for pad, by in zip(conv.margins, factors, strict=True)))
    elif not isinstance(conv.padding, str):
        conv.padding = tuple(int(pad * by) for pad, by in zip(pair(conv.padding), grown, strict=True))


def _kernel(module: Any) -> tuple[int, ...]:
    return pair(module.filt_size if isinstance(module, BlurPool2d) else module.kernel_size)


def _spread(name: str, module: Any, factor: int, stride: tuple[int, ...]) -> None:
    """Move the taps of a layer apart by a factor, and give it another stride."""
    rates = tuple(rate * factor for rate in pair(getattr(module, "dilation", 1)))
    if _pads_by_itself(module):
        module.dilation, module.stride = rates, stride
        return
    padding = module.padding[0] if isinstance(module, BlurPool2d) else module.padding
    before = tuple(pad * factor for pad in pair(padding))
    # As many zeros at the end as keep the size for sides that the stride divides.
    sides = zip(rates, _kernel(module), stride, before, strict=True)
    after = tuple(max(0, rate * (taps - 1) + 1 - step - start) for rate, taps, step, start in sides)
    margins = (before[1], after[1], before[0], after[0])
    if is_conv(module) and before == after:
        module.dilation, module.stride, module.padding = rates, stride, before
        return
    kinds = {nn.Conv2d: Conv2dWithMargins, nn.MaxPool2d: DilatedMaxPool2d, nn.AvgPool2d: DilatedAvgPool2d}
    kinds |= {AvgPool2dSame: DilatedAvgPool2d, BlurPool2d: DilatedBlurPool2d}
    if type(module) not in kinds:
        raise UserError(f"{name} is a {type(module).__name__}, which it cannot dilate")
    module.__class__ = kinds[type(module)]
    module.dilation, module.stride, module.margins = rates, stride, margins
    if isinstance(module, nn.Conv2d):
        module.padding = (0, 0)


def _pads_by_itself(module: Any) -> bool:
    """Whether a layer finds its padding for each size, and so needs no other for another rate."""
    same = isinstance(module, Conv2dSame | MaxPool2dSame) or getattr(module, "same_pad", False)
    return bool(same) or isinstance(module.padding, str)


def reason_against(network: nn.Module, strides: Strides, output_stride: int, in_channels: int = 3) -> str | None:
    """Why a network cannot be dilated, found by dilating a copy; None if it can.

    Args:
        network: gets random factors, as in `randomise`.
        strides: of the network.
    """
    randomise(network)
    dilated = copy.deepcopy(network)
    try:
        report = change_strides(dilated, strides, output_stride)
    except UserError as error:
        return str(error)
    return difference(network, dilated, report.strides, in_channels)


def difference(before: nn.Module, after: nn.Module, strides: tuple[int, ...], in_channels: int = 3) -> str | None:
    """Why the features of a dilated network are not those of the network without dilation, and more between them.

    Args:
        before, after: without and with dilation, of the same random weights; see `randomise`.
        strides: of the features of `after`.
    Returns:
        None where they are.
    """
    device, generator = next(before.parameters()).device, torch.Generator().manual_seed(0)
    image = torch.randn(1, in_channels, *PROOF_SIDES, dtype=torch.float64, generator=generator).to(device)
    which = "it"
    try:
        with torch.no_grad(), _WholeMap() as recorded:
            wanted = maps_of(before(image), PROOF_SIDES)
        which = "with dilation it"
        with torch.no_grad(), _WholeMap(recorded.found):
            features = maps_of(after(image), PROOF_SIDES)
    except Exception as error:  # a network may raise anything
        return f"{which} does not run on an image of {in_channels}x64x128 ({in_a_line(error)})"
    for feature, old, stride in zip(features, wanted, strides, strict=True):
        size = [side // stride for side in PROOF_SIDES]
        if list(feature.shape[-2:]) != size:
            found = "x".join(map(str, feature.shape[-2:]))
            return (
                f"a feature of a 64x128 image is {found} for {size[0]}x{size[1]}, so it does not only lower the "
                "resolution by convolutions and poolings that pad"
            )
        if not _contains(feature, old):
            return (
                "its features would not keep their values, since a position sees more than the convolutions and "
                "poolings around it, such as attention"
            )
    return None


def _contains(feature: Tensor, old: Tensor) -> bool:
    """Whether every n-th value of a feature, from one of the first n, is the old feature."""
    step = feature.shape[-1] // old.shape[-1]
    if feature[..., ::step, ::step].shape != old.shape:
        return False
    limit = 1e-8 * float(old.abs().max())
    apart = (float((feature[..., start::step, start::step] - old).abs().max()) for start in range(step))
    return float(old.std()) > 0 and any(each <= limit for each in apart)


def randomise(network: nn.Module) -> None:
    """Prepare a network for `difference`: double precision, and random weights of a size that hides no layer."""
    network.double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():
            if value.numel() == max(value.shape, default=1):  # biases, and factors, which may begin as 0
                value.copy_(0.5 + 0.5 * torch.rand(value.shape, generator=generator))
            else:
                value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
    for module in network.modules():
        if isinstance(module, BlurPool2d):
            module.pad_mode = "constant"  # reflection pads with other pixels if the taps lie apart


class _WholeMap(TorchFunctionMode):
    """Records what is computed over whole maps, or returns what was recorded for another network instead.

    These are means, maxima and norms over all positions, and the statistics of group norm.

    Args:
        given: what was noted.
    """

    NAMES = frozenset({"mean", "amax", "norm", "adaptive_avg_pool2d", "adaptive_max_pool2d"})

    def __init__(self, given: list[Tensor] | None = None) -> None:
        super().__init__()
        self.given = None if given is None else list(given)
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "group_norm":
            return self._group_norm(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if name in self.NAMES and isinstance(result, Tensor) and args[0].ndim == 4 and _one_position(result):
            return self._noted(result)
        return result

    def _noted(self, result: Tensor) -> Tensor:
        if self.given is not None:
            return self.given.pop(0) if self.given else result
        self.found.append(result)
        return result

    def _group_norm(self, x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
        grouped = x.reshape(len(x), groups, -1)
        centred = grouped - self._noted(grouped.mean(2, keepdim=True))
        scaled = centred * (self._noted(centred.square().mean(2, keepdim=True)) + eps).rsqrt()
        shape = (1, -1, *(1 for _ in x.shape[2:]))
        y = scaled.reshape(x.shape)
        y = y if weight is None else y * weight.reshape(shape)
        return y if bias is None else y + bias.reshape(shape)


def _one_position(result: Tensor) -> bool:
    return result.ndim == 2 or (result.ndim == 4 and 1 in (result.shape[-2:].numel(), result.shape[1:3].numel()))
