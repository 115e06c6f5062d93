"""The gradient of one small filter that all channels share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import grad as gradients

from degrid.kernels.support import channels_last, numba_installed, use_torch_threads


def shared_filter_gradient(grad: Tensor, x: Tensor, size: int | tuple[int, ...]) -> Tensor:
    """The gradient for a filter [k,k] that every channel of x was correlated with, zeros outside the image.

    result[i,j] = sum over n, c, h, w of grad[n,c,h,w] * x[n,c,h+i-k//2,w+j-k//2]. A depthwise convolution's own
    gradient has one filter per channel, to be summed afterwards; here the k^2 numbers that are wanted are computed
    alone. This runs compiled for square filters on the CPU, where numba is installed and nothing is to be
    differentiated again; elsewhere as PyTorch.

    Args:
        grad: [N,C,H,W], of the filtered map; or with another number of axes.
        x: [N,C,H,W], what was filtered. Both best in channels-last order, which needs no copy.
        size: k, odd; or one for each axis.
    Returns:
        [k,k]; float64 for float64, else float32.
    """
    sides = (size, size) if isinstance(size, int) else size
    square = len(sides) == 2 and sides[0] == sides[1]
    again = torch.is_grad_enabled() and (grad.requires_grad or x.requires_grad)
    if square and grad.device.type == "cpu" and x.dtype != torch.float64 and not again and numba_installed():
        return _compiled(grad, x, sides[0])
    return _with_torch(grad, x, sides)


def _compiled(grad: Tensor, x: Tensor, size: int) -> Tensor:
    from degrid.kernels.shared_filter_numba import shared_filter_gradient

    use_torch_threads()
    return torch.from_numpy(shared_filter_gradient(channels_last(grad), channels_last(x), size)).float()


def _with_torch(grad: Tensor, x: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The twin, which can be differentiated again."""
    each = depthwise_gradient(grad, x, sides)
    return each.to(torch.promote_types(x.dtype, torch.float32)).sum((0, 1))


def depthwise_gradient(grad: Tensor, x: Tensor, sides: tuple[int, ...]) -> Tensor:
    """As `shared_filter_gradient`, for one filter per channel: [C,1,k,k], in the type of x."""
    make = {1: gradients.conv1d_weight, 2: gradients.conv2d_weight, 3: gradients.conv3d_weight}[len(sides)]
    channels, padding = x.shape[1], tuple(side // 2 for side in sides)
    made: Tensor = make(x, (channels, 1, *sides), grad.to(x.dtype), padding=padding, groups=channels)  # type: ignore[no-untyped-call]
    return made
