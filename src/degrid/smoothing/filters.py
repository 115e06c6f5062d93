"""Small filters, the same for every channel: float tensors [k,k] with k odd, so that they are centred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from degrid.acceleration.recompute import apply_and_forget, as_convolved, gradients_wanted
from degrid.kernels.shared_filter import shared_filter_gradient


def default_size(rate: int) -> int:
    """Side of the box and Gaussian filters: r-1 as published where that is odd, otherwise r.

    At rate 2 this is 1: the published filters leave layers of rate 2 unchanged.
    Source: Ziegler et al. (arXiv 1903.07992) use r-1, for the even rates 2 and 4.
    """
    return rate - 1 if rate % 2 == 0 else rate


def delta(size: int) -> Tensor:
    """1 at the centre: filtering with it changes nothing."""
    kernel = torch.zeros(size, size)
    kernel[size // 2, size // 2] = 1
    return kernel


def box(size: int) -> Tensor:
    """All taps equal, sum 1."""
    return torch.full((size, size), 1 / size**2)


def tent(rate: int) -> Tensor:
    """Box of side r convolved with itself: side 2r-1, sum 1.

    Its spectrum is zero at every multiple of 2 pi / r, where dilation by r repeats the kernel's spectrum. So no grid is
    left: the gridding score of a convolution after it is 0.
    """
    line = 1 - torch.arange(1 - rate, rate).abs() / rate
    line = line / line.sum()
    return torch.outer(line, line)


def gaussian(size: int, sigma: Tensor) -> Tensor:
    """exp(-(x^2 + y^2) / (2 sigma^2)) on whole-pixel offsets, normalised to sum 1; differentiable in sigma.

    Source: Ziegler et al. (arXiv 1903.07992). In their code sigma cancels out; see `degrid.smoothing.legacy.Gaussian`.
    """
    offsets = torch.arange(size, device=sigma.device, dtype=sigma.dtype) - size // 2
    line = torch.exp(-(offsets**2) / (2 * sigma**2))
    line = line / line.sum()
    return torch.outer(line, line)


def embed(kernel: Tensor, size: int) -> Tensor:
    """The same filter [...,size,size], with a rim of zeros."""
    rim = (size - kernel.shape[-1]) // 2
    return F.pad(kernel, (rim, rim, rim, rim))


def convolve_filtered(x: Tensor, kernel: Tensor, convolve: Callable[[Tensor], Tensor]) -> Tensor:
    """Correlate every channel with a filter, then convolve, without keeping the filtered map for the backward pass.

    The convolution would keep that map for the gradient of its weight. Here it is computed again from x, which costs
    little beside the convolution, so that no more is kept than without a filter: x, once. Outside the image there are
    zeros, and the filter is not renormalised there.

    Args:
        x: [N,C,H,W]; under autocast it is cast as for a convolution.
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
        for_x = _correlate(grad, kernel.flip(-2, -1)) if ctx.needs_input_grad[0] else None
        for_kernel = _kernel_gradient(grad, x, kernel) if ctx.needs_input_grad[1] else None
        return for_x, for_kernel


def _kernel_gradient(grad: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
    size = kernel.shape[-1]
    if kernel.ndim == 2:
        return shared_filter_gradient(grad, x, size).to(kernel.dtype)
    weight: Tensor = conv2d_weight(x, kernel.shape, grad, padding=size // 2, groups=x.shape[1])  # type: ignore[no-untyped-call]
    return weight.to(kernel.dtype)


def _correlate(x: Tensor, kernel: Tensor) -> Tensor:
    """A depthwise convolution with an expanded weight: the fastest way in both memory layouts, and free of copies."""
    channels, size = x.shape[1], kernel.shape[-1]
    weight = kernel.to(x.dtype).expand(channels, 1, size, size)
    return F.conv2d(x, weight, padding=size // 2, groups=channels)
