"""Small filters, the same for every channel: float tensors [k,k] with k odd, so that they are centred.

Their sides may differ, and there may be one axis or three: a size or a rate is one number for a square filter, or a
tuple with one number per axis. A filter is 1 wide along an axis that is not dilated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from degrid.acceleration.recompute import apply_and_forget, as_convolved, gradients_wanted
from degrid.contracts import CONVOLUTIONS, Rate
from degrid.kernels.smoothing import depthwise_gradient, shared_filter_gradient


def default_size(rate: int) -> int:
    """Side of the box and Gaussian filters: r-1 as published where that is odd, otherwise r.

    At rate 2 this is 1: the published filters leave layers of rate 2 unchanged.
    Source: Ziegler et al. (arXiv 1903.07992) use r-1, for the even rates 2 and 4.
    """
    return rate - 1 if rate % 2 == 0 else rate


def axes(number: Rate) -> tuple[int, ...]:
    """One number per axis; a single one stands for both axes of a square."""
    return (number, number) if isinstance(number, int) else number


def delta(size: Rate) -> Tensor:
    """1 at the centre: filtering with it changes nothing."""
    kernel = torch.zeros(axes(size))
    kernel[tuple(side // 2 for side in axes(size))] = 1
    return kernel


def box(size: Rate) -> Tensor:
    """All taps equal, sum 1."""
    kernel = torch.ones(axes(size))
    return kernel / kernel.numel()


def tent(rate: Rate) -> Tensor:
    """Box of side r convolved with itself: side 2r-1, sum 1.

    Its spectrum is zero at every multiple of 2 pi / r, where dilation by r repeats the kernel's spectrum. So no grid is
    left: the gridding score of a convolution after it is 0.
    """
    lines = [1 - torch.arange(1 - r, r).abs() / r for r in axes(rate)]
    return _outer([line / line.sum() for line in lines])


def gaussian(size: Rate, sigma: Tensor) -> Tensor:
    """exp(-(x^2 + y^2) / (2 sigma^2)) on whole-pixel offsets, normalised to sum 1; differentiable in sigma.

    Source: Ziegler et al. (arXiv 1903.07992). In their code sigma cancels out; see `degrid.smoothing.legacy.Gaussian`.
    """
    lines = []
    for side in axes(size):
        offsets = torch.arange(side, device=sigma.device, dtype=sigma.dtype) - side // 2
        line = torch.exp(-(offsets**2) / (2 * sigma**2))
        lines.append(line / line.sum())
    return _outer(lines)


def _outer(lines: list[Tensor]) -> Tensor:
    """[a], [b], .. -> [a,b,..]: the products."""
    return functools.reduce(lambda product, line: product[..., None] * line, lines)


def embed(kernel: Tensor, size: Rate) -> Tensor:
    """The same filter [...,size,size], with a rim of zeros."""
    sides = axes(size)
    rims = [(side - own) // 2 for side, own in zip(sides, kernel.shape[-len(sides) :], strict=True)]
    return F.pad(kernel, [rim for rim in reversed(rims) for _ in range(2)])


def convolve_filtered(x: Tensor, kernel: Tensor, convolve: Callable[[Tensor], Tensor]) -> Tensor:
    """Correlate every channel with a filter, then convolve, without keeping the filtered map for the backward pass.

    The convolution would keep that map for the gradient of its weight. Here it is computed again from x, which costs
    little beside the convolution, so that no more is kept than without a filter: x, once. Outside the image there are
    zeros, and the filter is not renormalised there.

    Args:
        x: [N,C,H,W], or with another number of axes; under autocast it is cast as for a convolution.
        kernel: [k,k], or one per channel [C,1,k,k], k odd; cast to the type of x.
        convolve: applied to the filtered map.
    """
    x = as_convolved(x)
    if not gradients_wanted(x, kernel):
        return convolve(_correlate(x, kernel))
    return apply_and_forget(_Filtered.apply(x, kernel), (x, kernel), _correlate, convolve)


class _Filtered(torch.autograd.Function):
    """`_correlate`, with a faster gradient for a filter that all channels share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, kernel)
        return _correlate(x, kernel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, kernel = ctx.saved_tensors
        spatial = range(2 - grad.ndim, 0)
        for_x = _correlate(grad, kernel.flip(*spatial)) if ctx.needs_input_grad[0] else None
        for_kernel = _kernel_gradient(grad, x, kernel) if ctx.needs_input_grad[1] else None
        return for_x, for_kernel


def _kernel_gradient(grad: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
    shared = kernel.ndim == x.ndim - 2
    sides = tuple(kernel.shape[2 - x.ndim :])
    return (shared_filter_gradient if shared else depthwise_gradient)(grad, x, sides).to(kernel.dtype)


def _correlate(x: Tensor, kernel: Tensor) -> Tensor:
    """A depthwise convolution with an expanded weight: the fastest way in both memory layouts, and free of copies."""
    channels, sides = x.shape[1], kernel.shape[2 - x.ndim :]
    weight = kernel.to(x.dtype).expand(channels, 1, *sides)
    return CONVOLUTIONS[len(sides)](x, weight, padding=[side // 2 for side in sides], groups=channels)
