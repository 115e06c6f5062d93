"""Every r x r block of a map mixed within itself, by one matrix for all channels and places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
        if torch.is_grad_enabled():  # to be differentiated again
            out = _with_torch(y, weight, ctx.rate, ctx.size)
            first, second = torch.autograd.grad(out, (y, weight), grad, create_graph=True, allow_unused=True)
            return first, second, None, None
        for_y = _mixed(grad, weight.T, ctx.rate, y.shape[-2:]) if ctx.needs_input_grad[0] else None
        for_weight = _products(y, grad, ctx.rate) if ctx.needs_input_grad[1] else None
        return for_y, for_weight, None, None


def _mixed(y: Tensor, weight: Tensor, rate: int, size: tuple[int, ...]) -> Tensor:
    """`mix_groups`, compiled; size may also be larger than y, which counts as zero beyond its end."""
    from degrid.kernels.group_mixing_numba import mix_groups

    use_torch_threads()
    # No view of another tensor, which could not be changed in place where a Function returns it.
    shape = len(y), y.shape[1], *size
    out = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
    # A copy: memory that numpy has seen can no longer be taken away, as FSDP does with that of parameters.
    mixing = weight.detach().clone(memory_format=torch.contiguous_format).numpy()
    mix_groups(channels_last(y), mixing, rate, out.permute(0, 2, 3, 1).numpy())
    return out


def _products(y: Tensor, grad: Tensor, rate: int) -> Tensor:
    """The gradient of the weight, [r^2,r^2]: the sum over blocks and channels of pixel j of y times pixel i of grad."""
    from degrid.kernels.group_mixing_numba import group_products

    use_torch_threads()
    return torch.from_numpy(group_products(channels_last(y), channels_last(grad), rate)).float()
