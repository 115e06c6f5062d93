"""Blocks of a map mixed by one matrix, and the gradient of one small filter that all channels of a map share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import grad as gradients

from degrid.kernels.support import channels_last, numba_installed, traced, use_torch_threads


def mix_groups(y: Tensor, weight: Tensor, rate: int | tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Pixel i of a block becomes the sum over its pixels j of weight[j,i] times pixel j; pixels count row by row.

    This runs compiled for square blocks in float32 on the CPU, where numba is installed; elsewhere as PyTorch. For its
    gradients it keeps y, and no copy.

    Args:
        y: [N,C,H,W], H and W multiples of r; best in channels-last order, which needs no copy. Or with another number
            of axes.
        weight: [r^2,r^2], cast to y's type; with several rates their product takes the place of r^2.
        rate: r, pixels; or one for each axis.
        size: (h, w) of the result, at most (H, W): what is beyond at the bottom and right is left out.
    Returns:
        [N,C,h,w].
    """
    weight = weight.to(y.dtype)
    fitting = isinstance(rate, int) and y.device.type == "cpu" and y.dtype == torch.float32
    if fitting and not traced(y, weight) and numba_installed():
        return _Mixed.apply(y, weight, rate, size)  # type: ignore[no-any-return]
    return _with_torch(y, weight, rate, size)


# Of a, b, d within a block each goes into i, j, k; h, w, z number the blocks.
_EQUATIONS = {1: "ai,nhac->nhic", 2: "abij,nhawbc->nhiwjc", 3: "abdijk,nhawbzdc->nhiwjzkc"}


def _with_torch(y: Tensor, weight: Tensor, rate: int | tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    rates = (rate, rate) if isinstance(rate, int) else rate
    count, channels, *sides = y.shape
    parts = [part for side, r in zip(sides, rates, strict=True) for part in (side // r, r)]
    blocks = y.movedim(1, -1).reshape(count, *parts, channels)
    mixed = torch.einsum(_EQUATIONS[len(rates)], weight.reshape(*rates, *rates), blocks)
    mixed = mixed.reshape(count, *sides, channels).movedim(-1, 1)
    for axis, side in enumerate(size, 2):
        mixed = mixed.narrow(axis, 0, side)
    return mixed


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, rate: int, size: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(y, weight)
        ctx.rate, ctx.size = rate, size
        return _mixed(y, weight, rate, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        y, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            out = _with_torch(y, weight, ctx.rate, ctx.size)
            first, second = torch.autograd.grad(out, (y, weight), grad, create_graph=True, allow_unused=True)
            return first, second, None, None
        for_y = _mixed(grad, weight.T, ctx.rate, y.shape[-2:]) if ctx.needs_input_grad[0] else None
        for_weight = _products(y, grad, ctx.rate) if ctx.needs_input_grad[1] else None
        return for_y, for_weight, None, None


def _mixed(y: Tensor, weight: Tensor, rate: int, size: tuple[int, ...]) -> Tensor:
    """`mix_groups`, compiled; size may also be larger than y, which counts as zero beyond its end."""
    from degrid.kernels.smoothing_numba import mix_groups

    use_torch_threads()
    # No view of another tensor, which could not be changed in place where a Function returns it.
    shape = len(y), y.shape[1], *size
    out = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
    # A copy: memory shared with numpy can no longer be freed, as FSDP does with that of parameters.
    mixing = weight.detach().clone(memory_format=torch.contiguous_format).numpy()
    mix_groups(channels_last(y), mixing, rate, out.permute(0, 2, 3, 1).numpy())
    return out


def _products(y: Tensor, grad: Tensor, rate: int) -> Tensor:
    """The gradient of the weight, [r^2,r^2]: the sum over blocks and channels of pixel j of y times pixel i of grad."""
    from degrid.kernels.smoothing_numba import group_products

    use_torch_threads()
    return torch.from_numpy(group_products(channels_last(y), channels_last(grad), rate)).float()


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
        return _compiled_gradient(grad, x, sides[0])
    return _gradient_with_torch(grad, x, sides)


def _compiled_gradient(grad: Tensor, x: Tensor, size: int) -> Tensor:
    from degrid.kernels.smoothing_numba import shared_filter_gradient

    use_torch_threads()
    return torch.from_numpy(shared_filter_gradient(channels_last(grad), channels_last(x), size)).float()


def _gradient_with_torch(grad: Tensor, x: Tensor, sides: tuple[int, ...]) -> Tensor:
    """The twin, which supports second derivatives."""
    each = depthwise_gradient(grad, x, sides)
    return each.to(torch.promote_types(x.dtype, torch.float32)).sum((0, 1))


def depthwise_gradient(grad: Tensor, x: Tensor, sides: tuple[int, ...]) -> Tensor:
    """As `shared_filter_gradient`, for one filter per channel: [C,1,k,k], in the type of x."""
    make = {1: gradients.conv1d_weight, 2: gradients.conv2d_weight, 3: gradients.conv3d_weight}[len(sides)]
    channels, padding = x.shape[1], tuple(side // 2 for side in sides)
    made: Tensor = make(x, (channels, 1, *sides), grad.to(x.dtype), padding=padding, groups=channels)  # type: ignore[no-untyped-call]
    return made
