"""Small filters that act on every channel alike. Each is a float tensor [k,k] with k odd, so it is centred."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def default_size(rate: int) -> int:
    """Side of the box and Gaussian filters: r-1 as published where that is odd, else r, so that it is centred.

    At rate 2 this is 1: the published filters leave the layers of rate 2 as they are.
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

    Its spectrum is zero at every multiple of 2 pi / r, where a dilation of rate r repeats the kernel's spectrum, so
    no grid is left: the gridding score of a convolution after it is 0.
    """
    line = 1 - torch.arange(1 - rate, rate).abs() / rate
    line = line / line.sum()
    return torch.outer(line, line)


def gaussian(size: int, sigma: Tensor) -> Tensor:
    """exp(-(x^2 + y^2) / (2 sigma^2)) on whole-pixel offsets, normalised to sum 1; differentiable in sigma.

    Source: Ziegler et al. (arXiv 1903.07992). Their code drops sigma in the normalisation; this is what they mean.
    """
    offsets = torch.arange(size, device=sigma.device, dtype=sigma.dtype) - size // 2
    line = torch.exp(-(offsets**2) / (2 * sigma**2))
    line = line / line.sum()
    return torch.outer(line, line)


def embed(kernel: Tensor, size: int) -> Tensor:
    """The same filter with a rim of zeros, [..,size,size]."""
    rim = (size - kernel.shape[-1]) // 2
    return F.pad(kernel, (rim, rim, rim, rim))


def filter_channels(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel with a filter; zeros outside the image, not renormalised there.

    A depthwise convolution with an expanded weight: the fastest way in both memory layouts, and free of copies.

    Args:
        x: [N,C,H,W].
        kernel: [k,k], or one per channel [C,1,k,k], k odd; cast to x's dtype.
    """
    channels, size = x.shape[1], kernel.shape[-1]
    weight = kernel.to(x.dtype).expand(channels, 1, size, size)
    return F.conv2d(x, weight, padding=size // 2, groups=channels)
