"""Every way of smoothing a dilated convolution.

An operator is a module with one method, `forward(x, convolve)`: it decides what the layer's own convolution is applied
to, and what is done with the result. `convolve(x, rate)` is the layer's kernel at that dilation rate, size-keeping,
zeros outside, without bias; the layer adds its bias afterwards. `convolve(x, rate, margin)` gives `margin` more outputs
on each side, where the kernel still overlaps the map.

A rate r is one number, or a tuple with one for each axis: where they differ, as for a 1x3 kernel, which is filtered
only along its dilated axis, or where there are one or three axes. Then r^2 below is the product of the rates, and a
filter of side 2r-1 has the side 2r-1 of its axis.

The operators follow the papers. Where the papers' own code differs, the docstring says so.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degrid.acceleration.recompute import apply_recomputed
from degrid.contracts import Convolve, Rate
from degrid.kernels.smoothing import mix_groups
from degrid.smoothing import filters
from degrid.smoothing.plain_layers import Filtered, MixedBlocks, cut, filter_conv, plain_conv
from degrid.types import UserError


class Operator(nn.Module):
    """Base class of all operators. Your own overrides `forward`.

    Args:
        rate: dilation rate r of the layer, pixels, at least 1; or one for each axis.
    """

    name: ClassVar[str] = ""
    keeps_constants: ClassVar[bool] = False
    """Whether a bias may as well be added before, as a filter of the input does not see it. Such an operator smooths
    layers of any stride and with any way of making their weights: it convolves once, at the layer's own rate."""

    def __init__(self, rate: Rate) -> None:
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
    keeps_constants = True

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
        if _is_recorded():
            return convolve(x, r)  # a traced graph would fix what this map's size lacks; the result is the same
        size = x.shape[2:]

        def back(groups: Tensor) -> Tensor:
            return cut(interlace(groups, r), [0] * len(size), size)

        return back(apply_recomputed(x, lambda x: periodic_subsample(x, r), back, lambda groups: convolve(groups, 1)))

    def is_identity(self) -> bool:
        """True: only the order of the arithmetic differs."""
        return True


def periodic_subsample(x: Tensor, rate: Rate) -> Tensor:
    """Split a feature map into the r^2 groups that a dilated convolution never mixes.

    Returns:
        Of x [N,C,H,W] at rate r: [r*r*N, C, ceil(H/r), ceil(W/r)]; item (i*r + j)*N + n holds x[n, :, i::r, j::r],
        zero-padded at the bottom and right where r does not divide H or W.
    Source: Wang & Ji, KDD 2018, section 3.2.
    """
    x, rates = _pad_to_multiple(x, rate), filters.axes(rate)
    count, channels, *sides = x.shape
    parts = [part for side, r in zip(sides, rates, strict=True) for part in (side // r, r)]
    number = range(len(rates))
    blocks = x.reshape(count, channels, *parts).permute(
        *(3 + 2 * axis for axis in number), 0, 1, *(2 + 2 * axis for axis in number)
    )
    return blocks.reshape(-1, channels, *parts[::2])


def interlace(groups: Tensor, rate: Rate) -> Tensor:
    """The inverse of `periodic_subsample`: [r*r*N,C,h,w] -> [N,C,h*r,w*r]."""
    rates = filters.axes(rate)
    total, channels, *sides = groups.shape
    number = len(rates)
    blocks = groups.reshape(*rates, total // math.prod(rates), channels, *sides)
    places = (place for axis in range(number) for place in (number + 2 + axis, axis))
    whole = (side * r for side, r in zip(sides, rates, strict=True))
    return blocks.permute(number, number + 1, *places).reshape(-1, channels, *whole)


def _is_recorded() -> bool:
    """Whether `torch.jit.trace` or `torch.export` records what also serves other sizes."""
    return bool(torch._C._get_tracing_state()) or torch.compiler.is_exporting()


def _missing(x: Tensor, rate: Rate) -> list[int]:
    """How many positions each axis of a map lacks to a multiple of its rate."""
    return [-side % r for side, r in zip(x.shape[2:], filters.axes(rate), strict=True)]


def _pad_to_multiple(x: Tensor, rate: Rate) -> Tensor:
    missing = _missing(x, rate)
    return F.pad(x, [side for more in reversed(missing) for side in (0, more)]) if any(missing) else x


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

    def __init__(self, rate: Rate) -> None:
        super().__init__(rate)
        self.weight = nn.Parameter(torch.eye(math.prod(filters.axes(rate))))

    def mixing(self) -> Tensor:
        """[r^2, r^2]: how much of group j (row) goes into group i (column)."""
        return self.weight

    def as_plain_layers(self, conv: nn.Conv2d) -> nn.Module:
        """The convolution, then one per block of outputs."""
        return MixedBlocks(plain_conv(conv, self.rate), self.mixing().detach(), self.rate)

    def forward(self, x: Tensor, convolve: Convolve) -> Tensor:
        """[N,C,H,W] -> [N,out,H,W]."""
        r = self.rate
        if _is_recorded():
            # Always a block more than the map needs: a record would keep what this map's size lacks, and which of the
            # cuts leave something as it is.
            rates, sides = filters.axes(r), x.shape[2:]
            y = convolve(F.pad(x, [rim for each in reversed(rates) for rim in (0, 2 * each)]), r)
            whole = [(side + each - 1) // each * each + each for side, each in zip(sides, rates, strict=True)]
            y = cut(y, [0] * len(rates), whole)
            return mix_groups(y, self.mixing(), r, tuple(x.shape[2:]))
        size, missing = x.shape[2:], _missing(x, r)
        if not any(missing):
            y = convolve(x, r)
        elif torch.is_grad_enabled():
            y = apply_recomputed(
                x,
                lambda x: _pad_to_multiple(x, r),
                lambda padded: cut(padded, [0] * len(size), size),
                lambda padded: convolve(padded, r),
            )
        else:
            # Symmetric padding costs half as much as a padded copy, but its gradients cost more.
            margin = max(missing)
            whole = [side + more for side, more in zip(size, missing, strict=True)]
            y = cut(convolve(x, r, margin), [margin] * len(size), whole)
        return mix_groups(y, self.mixing(), r, tuple(size))


class PreFilter(Operator):
    """Filter every channel of the input, then convolve. Your own overrides `kernel`."""

    keeps_constants = True

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
        return plain if kernel is None else Filtered(filter_conv(conv, kernel), plain)


class FixedFilter(PreFilter):
    """A pre-filter without parameters, which is not in the state dict."""

    fixed: Tensor

    def __init__(self, rate: Rate, kernel: Tensor) -> None:
        super().__init__(rate)
        self.register_buffer("fixed", kernel, persistent=False)
        self._changes_nothing = kernel.numel() == 1

    def kernel(self) -> Tensor | None:
        """The filter; None if it is a single tap of 1."""
        return None if self._changes_nothing else self.fixed


class Average(FixedFilter):
    """Box filter before the dilated convolution.

    Args:
        size: side of the box, odd; by default r-1 if that is odd, otherwise r. At rate 2 that is 1: no smoothing.
    Raises:
        UserError: a size that is not odd and positive.
    Source: Ziegler et al. (arXiv 1903.07992), average filter. Their code trains one filter per channel instead.
    """

    name = "average"

    def __init__(self, rate: Rate, size: int | None = None) -> None:
        super().__init__(rate, filters.box(_sides(rate, size)))


class Tent(FixedFilter):
    """Tent filter of side 2r-1 before the dilated convolution: it has no parameters and leaves no grid.

    Source: degrid's own; see `filters.tent`.
    """

    name = "tent"

    def __init__(self, rate: Rate) -> None:
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

    def __init__(self, rate: Rate, sigma: float | nn.Parameter = 1.0, size: int | None = None) -> None:
        super().__init__(rate)
        self.sides = _sides(rate, size)
        if isinstance(sigma, nn.Parameter):
            self.log_sigma: Tensor = sigma
        elif 0 < sigma < math.inf:
            self.register_buffer("log_sigma", torch.tensor(math.log(sigma)), persistent=False)
        else:
            raise UserError(f"sigma must be a positive number of pixels, got {sigma}")

    def kernel(self) -> Tensor | None:
        """The filter at the current sigma; None if it is a single tap of 1."""
        return None if max(self.sides) == 1 else filters.gaussian(self.sides, self.log_sigma.exp())


class SeparableShared(PreFilter):
    """One learned filter of side 2r-1 before the dilated convolution, the same for every channel.

    residual: [2r-1, 2r-1]. The filter is 1 at the centre plus the residual, which is zero at the start, so that the
    layer begins as the plain dilated convolution.

    Args:
        init: the filter at the start: "identity" as published, or "tent" or "box" (of the size of `Average`), which
            change the outputs at once.
    Raises:
        UserError: another start.
    Source: Wang & Ji, KDD 2018, section 3.4 (separable and shared convolution).
    """

    name = "ssc"

    def __init__(self, rate: Rate, init: str = "identity") -> None:
        super().__init__(rate)
        size = _side_of_shared(rate)
        self.register_buffer("centre", filters.delta(size), persistent=False)
        if init not in ("identity", "tent", "box"):
            raise UserError(f'init of "ssc" must be identity, tent or box, got "{init}"')
        start = self.centre
        if init != "identity":
            start = filters.tent(rate) if init == "tent" else filters.embed(filters.box(_sides(rate, None)), size)
        self.residual = nn.Parameter(start - self.centre)

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

    def __init__(self, rate: Rate, mix: nn.Parameter | None = None) -> None:
        super().__init__(rate)
        size, small = _side_of_shared(rate), _sides(rate, None)
        centre = filters.delta(size)
        box = filters.embed(filters.box(small), size)
        gaussian = filters.embed(filters.gaussian(small, torch.tensor(1.0)), size)
        self.register_buffer("parts", torch.stack([centre, box, gaussian, centre]), persistent=False)
        self.mix = mix if mix is not None else nn.Parameter(torch.zeros(4))
        self.residual = nn.Parameter(torch.zeros_like(centre))

    def kernel(self) -> Tensor:
        """The composite filter."""
        weights = self.mix.softmax(0)
        return torch.einsum("p,p...->...", weights, self.parts) + weights[3] * self.residual


def _side_of_shared(rate: Rate) -> tuple[int, ...]:
    """The sides of the shared filter: 2r-1 along each axis."""
    return tuple(2 * r - 1 for r in filters.axes(rate))


def _sides(rate: Rate, size: int | None) -> tuple[int, ...]:
    """Sides of the box or the Gaussian: those that were asked for, or as published; 1 without dilation."""
    if size is not None and not (isinstance(size, int) and size > 0 and size % 2):
        raise UserError(f"a filter's size must be odd and positive, so that it is centred; got {size!r}")
    if isinstance(rate, int) and size is not None:
        return size, size
    return tuple(filters.default_size(r) if size is None or r == 1 else size for r in filters.axes(rate))
