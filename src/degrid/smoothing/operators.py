"""Every way of smoothing a dilated convolution.

An operator is a module with one method, `forward(x, convolve)`: it decides what the layer's own convolution is applied
to, and what is done with the result. `convolve(x, rate)` is the layer's kernel at that dilation rate, size-keeping,
zeros outside, without bias; the layer adds its bias afterwards. `convolve(x, rate, margin)` gives `margin` more outputs
on each side, where the kernel still overlaps the map.

The operators follow the papers. Where the papers' own code differs, the docstring says so.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid.acceleration.recompute import apply_recomputed
from degrid.contracts import Convolve
from degrid.kernels.group_mixing import mix_groups
from degrid.smoothing import filters
from degrid.smoothing.plain_layers import MixedBlocks, filter_conv, plain_conv
from degrid.types import UserError


class Operator(nn.Module):
    """Base class of all operators. Your own overrides `forward`.

    Args:
        rate: dilation rate r of the layer, pixels, at least 1.
    """

    name: ClassVar[str] = ""

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.rate = rate

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def bind(self, conv: nn.Conv2d) -> None:
        """Called once with the layer to be smoothed, for parameters whose shape depends on it."""

    def forward(self, x: Tensor, convolve: Convolve) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W]; convolve: (x, rate, margin=0) -> the layer's convolution, without bias."""
        raise TypeError(f"{type(self).__name__} must define forward(x, convolve)")

    def is_identity(self) -> bool:
        """Whether the layer stays a plain dilated convolution whatever is learned."""
        return False

    def as_plain_layers(self, conv: nn.Conv2d) -> nn.Module | None:
        """Layers of PyTorch alone that compute what this operator does with a layer, for export.

        None by default, unless the operator is an identity; it is then exported as it is, and has to be traceable.
        """
        return plain_conv(conv, self.rate) if self.is_identity() else None

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        return f"rate={self.rate}"


class Regular(Operator):
    """The dilated convolution as it is."""

    name = "regular"

    def forward(self, x: Tensor, convolve: Convolve) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W]."""
        return convolve(x, self.rate)

    def is_identity(self) -> bool:
        """True."""
        return True


class Decompose(Operator):
    """The same result in three steps: r^2 periodic subsamples, an ordinary convolution of each, re-interlacing.

    It shows where the grid comes from: the subsamples never meet. It is exact for every size, since the padding up to a
    multiple of r is zero like everything outside the image.

    Source: Wang & Ji, KDD 2018, section 3.2.
    """

    name = "decompose"

    def forward(self, x: Tensor, convolve: Convolve) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W]."""
        r = self.rate
        height, width = x.shape[-2:]

        def back(groups: Tensor) -> Tensor:
            return interlace(groups, r)[..., :height, :width]

        return back(apply_recomputed(x, lambda x: periodic_subsample(x, r), back, lambda groups: convolve(groups, 1)))

    def is_identity(self) -> bool:
        """True: only the order of the arithmetic differs."""
        return True


def periodic_subsample(x: Tensor, rate: int) -> Tensor:
    """Split a feature map into the r^2 groups that a dilated convolution never mixes.

    Returns:
        Of x [N,C,H,W] at rate r: [r*r*N, C, ceil(H/r), ceil(W/r)]; item (i*r + j)*N + n holds x[n, :, i::r, j::r],
        zero-padded at the bottom and right where r does not divide H or W.
    Source: Wang & Ji, KDD 2018, section 3.2.
    """
    x = _pad_to_multiple(x, rate)
    count, channels, height, width = x.shape
    blocks = x.reshape(count, channels, height // rate, rate, width // rate, rate)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(-1, channels, height // rate, width // rate)


def interlace(groups: Tensor, rate: int) -> Tensor:
    """The inverse of `periodic_subsample`: [r*r*N,C,h,w] -> [N,C,h*r,w*r]."""
    total, channels, height, width = groups.shape
    blocks = groups.reshape(rate, rate, total // rate**2, channels, height, width)
    return blocks.permute(2, 3, 4, 0, 5, 1).reshape(-1, channels, height * rate, width * rate)


def _pad_to_multiple(x: Tensor, rate: int) -> Tensor:
    height, width = x.shape[-2:]
    bottom, right = -height % rate, -width % rate
    return F.pad(x, (0, right, 0, bottom)) if bottom or right else x


class GroupInteraction(Operator):
    """Mix the r^2 groups of outputs, with one learned weight per pair of groups for all channels and positions.

    Group k = i*r + j holds the outputs at rows i, i+r, ... and columns j, j+r, ...; out_i = sum_j weight[j, i] * f_j.
    So every r x r block of outputs is mixed within itself, without subsampling. Where r does not divide the map's
    sides, the convolution continues past the bottom and right edges, over zeros, until the last blocks are complete.
    The gradient of the weight needs the convolved map, so training keeps one more map per layer than without mixing.

    weight: [r^2, r^2], the identity at the start, so that the layer begins as the plain dilated convolution. It has r^4
    parameters: 16 at rate 2, 256 at rate 4, 20,736 at rate 12 (leave ASPP alone).

    Source: Wang & Ji, KDD 2018, section 3.3. The bias is added after mixing, as in their code. In their code the first
    group never reaches the others (`legacy.GroupInteraction`); here every group does, as in the paper.
    """

    name = "gi"

    def __init__(self, rate: int) -> None:
        super().__init__(rate)
        self.weight = nn.Parameter(torch.eye(rate**2))

    def mixing(self) -> Tensor:
        """[r^2, r^2]: how much of group j (row) goes into group i (column)."""
        return self.weight

    def as_plain_layers(self, conv: nn.Conv2d) -> nn.Module:
        """The convolution, then one per block of outputs."""
        return MixedBlocks(plain_conv(conv, self.rate), self.mixing().detach(), self.rate)

    def forward(self, x: Tensor, convolve: Convolve) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W]."""
        r = self.rate
        height, width = x.shape[-2:]
        bottom, right = -height % r, -width % r
        if not (bottom or right):
            y = convolve(x, r)
        elif torch.is_grad_enabled():
            y = apply_recomputed(
                x,
                lambda x: _pad_to_multiple(x, r),
                lambda padded: padded[..., :height, :width],
                lambda padded: convolve(padded, r),
            )
        else:
            # Symmetric padding costs half as much as a padded copy, but its gradients cost more.
            margin = max(bottom, right)
            y = convolve(x, r, margin)[..., margin : margin + height + bottom, margin : margin + width + right]
        return mix_groups(y, self.mixing(), r, (height, width))


class PreFilter(Operator):
    """Filter every channel of the input, then convolve. Your own overrides `kernel`."""

    def kernel(self) -> Tensor | None:
        """The filter [k,k], or one per channel [C,1,k,k], k odd; None if it would change nothing."""
        raise TypeError(f"{type(self).__name__} must define kernel()")

    def forward(self, x: Tensor, convolve: Convolve) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W]."""
        kernel = self.kernel()
        if kernel is None:
            return convolve(x, self.rate)
        return filters.convolve_filtered(x, kernel, lambda filtered: convolve(filtered, self.rate))

    def is_identity(self) -> bool:
        """Whether there is no filter, as where it would have a single tap of 1."""
        return self.kernel() is None

    def as_plain_layers(self, conv: nn.Conv2d) -> nn.Module:
        """A depthwise convolution with the filter, unless that changes nothing, then the convolution."""
        kernel, plain = self.kernel(), plain_conv(conv, self.rate)
        return plain if kernel is None else nn.Sequential(filter_conv(conv, kernel), plain)


class FixedFilter(PreFilter):
    """A pre-filter without parameters, which is not in the state dict."""

    fixed: Tensor

    def __init__(self, rate: int, kernel: Tensor) -> None:
        super().__init__(rate)
        self.register_buffer("fixed", kernel, persistent=False)

    def kernel(self) -> Tensor | None:
        """The filter; None if it is a single tap of 1."""
        return None if self.fixed.numel() == 1 else self.fixed


class Average(FixedFilter):
    """Box filter before the dilated convolution.

    Args:
        size: side of the box, odd; by default r-1 if that is odd, otherwise r. At rate 2 that is 1: no smoothing.
    Raises:
        UserError: a size that is not odd and positive.
    Source: Ziegler et al. (arXiv 1903.07992), average filter. Their code trains one filter per channel instead.
    """

    name = "average"

    def __init__(self, rate: int, size: int | None = None) -> None:
        super().__init__(rate, filters.box(_odd_size(rate, size)))


class Tent(FixedFilter):
    """Tent filter of side 2r-1 before the dilated convolution: it has no parameters and leaves no grid.

    Source: degrid's own; see `filters.tent`.
    """

    name = "tent"

    def __init__(self, rate: int) -> None:
        super().__init__(rate, filters.tent(rate))


class Gaussian(PreFilter):
    """Gaussian before the dilated convolution.

    Args:
        sigma: width in pixels: a number, which is fixed, or a parameter that holds log(sigma), which keeps sigma
            positive. Several layers may have the same parameter.
        size: side of the filter, odd; by default r-1 if that is odd, otherwise r. At rate 2 that is 1: no smoothing.
    Raises:
        UserError: a fixed sigma that is not positive, or a size that is not odd and positive.
    Source: Ziegler et al. (arXiv 1903.07992), Gaussian filter, sigma 1 at the start.
    """

    name = "gaussian"

    def __init__(self, rate: int, sigma: float | nn.Parameter = 1.0, size: int | None = None) -> None:
        super().__init__(rate)
        self.size = _odd_size(rate, size)
        if isinstance(sigma, nn.Parameter):
            self.log_sigma: Tensor = sigma
        elif sigma > 0:
            self.register_buffer("log_sigma", torch.tensor(math.log(sigma)), persistent=False)
        else:
            raise UserError(f"sigma must be a positive number of pixels, got {sigma}")

    def kernel(self) -> Tensor | None:
        """The filter at the current sigma; None if it is a single tap of 1."""
        return None if self.size == 1 else filters.gaussian(self.size, self.log_sigma.exp())


class SeparableShared(PreFilter):
    """One learned filter of side 2r-1 before the dilated convolution, the same for every channel.

    residual: [2r-1, 2r-1], zeros at the start. The filter is 1 at the centre plus the residual, so the layer begins as
    the plain dilated convolution.

    Source: Wang & Ji, KDD 2018, section 3.4 (separable and shared convolution).
    """

    name = "ssc"

    def __init__(self, rate: int) -> None:
        super().__init__(rate)
        self.residual = nn.Parameter(torch.zeros(2 * rate - 1, 2 * rate - 1))
        self.register_buffer("centre", filters.delta(2 * rate - 1), persistent=False)

    centre: Tensor

    def kernel(self) -> Tensor:
        """Delta plus residual."""
        return self.centre + self.residual


class Aggregation(PreFilter):
    """A learned mix of four pre-filters: identity, box, Gaussian (sigma 1) and separable-and-shared.

    The weights are softmax(mix): from 0 to 1, with sum 1, and equal at the start. All four filters are linear and pad
    with zeros, so together they are a single filter of side 2r-1, which each forward pass builds anew.

    Args:
        mix: parameter [4], the same one in every layer of the network; by default the layer's own.
    Source: Ziegler et al. (arXiv 1903.07992), aggregation. Their code never applies the softmax, and trains the box.
    """

    name = "aggregation"

    parts: Tensor

    def __init__(self, rate: int, mix: nn.Parameter | None = None) -> None:
        super().__init__(rate)
        size = 2 * rate - 1
        small = filters.default_size(rate)
        centre = filters.delta(size)
        box = filters.embed(filters.box(small), size)
        gaussian = filters.embed(filters.gaussian(small, torch.tensor(1.0)), size)
        self.register_buffer("parts", torch.stack([centre, box, gaussian, centre]), persistent=False)
        self.mix = mix if mix is not None else nn.Parameter(torch.zeros(4))
        self.residual = nn.Parameter(torch.zeros(size, size))

    def kernel(self) -> Tensor:
        """The composite filter."""
        weights = self.mix.softmax(0)
        return torch.einsum("p,pij->ij", weights, self.parts) + weights[3] * self.residual


def _odd_size(rate: int, size: int | None) -> int:
    size = filters.default_size(rate) if size is None else size
    if size < 1 or size % 2 == 0:
        raise UserError(f"a filter's size must be odd and positive, so that it is centred; got {size}")
    return size
