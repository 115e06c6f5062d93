"""The gradient of one small filter that all channels share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from degrid.kernels.support import channels_last, numba_installed, use_torch_threads


def shared_filter_gradient(grad: Tensor, x: Tensor, size: int) -> Tensor:
    """The gradient for a filter [k,k] that every channel of x was correlated with, zeros outside the image.

    result[i,j] = sum over n, c, h, w of grad[n,c,h,w] * x[n,c,h+i-k//2,w+j-k//2]. A depthwise convolution's own
    gradient has one filter per channel, to be summed afterwards; here the k^2 numbers that are wanted are computed
    alone. This runs compiled on the CPU, where numba is installed and nothing is to be differentiated again; elsewhere
    as PyTorch.

    Args:
        grad: [N,C,H,W], of the filtered map.
        x: [N,C,H,W], what was filtered. Both best in channels-last order, which needs no copy.
        size: k, odd.
    Returns:
        [k,k]; float64 for float64, else float32.
    """
    again = torch.is_grad_enabled() and (grad.requires_grad or x.requires_grad)
    if grad.device.type == "cpu" and x.dtype != torch.float64 and not again and numba_installed():
        return _compiled(grad, x, size)
    return _with_torch(grad, x, size)


def _compiled(grad: Tensor, x: Tensor, size: int) -> Tensor:
    from degrid.kernels.shared_filter_numba import shared_filter_gradient

    use_torch_threads()
    return torch.from_numpy(shared_filter_gradient(channels_last(grad), channels_last(x), size)).float()


def _with_torch(grad: Tensor, x: Tensor, size: int) -> Tensor:
    """The twin, which can be differentiated again."""
    channels, shape = x.shape[1], (x.shape[1], 1, size, size)
    each: Tensor = conv2d_weight(x, shape, grad.to(x.dtype), padding=size // 2, groups=channels)  # type: ignore[no-untyped-call]
    return each.to(torch.promote_types(x.dtype, torch.float32)).sum((0, 1))
