"""Feature maps that are computed again in the backward pass rather than kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from degrid.kernels.support import traced

Map = Callable[[Tensor], Tensor]


def gradients_wanted(*tensors: Tensor) -> bool:
    """Whether any of them needs a gradient, and backward passes of our own can be used."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors) and not traced(*tensors)


def as_convolved(x: Tensor) -> Tensor:
    """x in the type that autocast gives a convolution's input, so that it is kept once, in that type."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))
    return x


def apply_recomputed(x: Tensor, make: Map, adjoint: Map, function: Map) -> Tensor:
    """function(make(x)), which keeps x for the backward pass where it would keep make(x).

    Args:
        x: [N,C,H,W]; under autocast it is cast as for a convolution.
        make: linear, and cheap beside `function`.
        adjoint: from a gradient for make(x) to one for x, in operations that can be differentiated.
        function: such as a convolution.
    """
    x = as_convolved(x)
    if not gradients_wanted(x):
        return function(make(x))
    return apply_and_forget(_Made.apply(x, make, adjoint), (x,), make, function)


class _Made(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, make: Map, adjoint: Map) -> Tensor:
        ctx.adjoint = adjoint
        return make(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.adjoint(grad), None, None


def apply_and_forget(made: Tensor, parts: tuple[Tensor, ...], again: Callable[..., Tensor], function: Map) -> Tensor:
    """function(made), which keeps `parts` for the backward pass where it would keep `made`.

    Args:
        made: again(*parts).
        parts: tensors, at least one of which needs a gradient.
        again: makes `made` anew.
        function: of one map, such as a convolution.
    """
    kept = _Kept.apply(*parts)
    # Numbers rather than the map, which the hooks would keep alive.
    place, shape, stride = made.data_ptr(), made.shape, made.stride()

    def pack(saved: Tensor) -> Tensor | tuple[Tensor]:
        same = saved.data_ptr() == place and saved.shape == shape and saved.stride() == stride
        return (kept,) if same else saved

    def unpack(packed: Tensor | tuple[Any]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return again(*packed[0].grad_fn.saved_tensors)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return function(made)


class _Kept(torch.autograd.Function):
    """An empty tensor whose grad_fn holds others as an operation would hold them.

    That way changing them in place is noticed, and hooks on saved tensors (activation checkpoints, offloading) see
    them.
    """

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(*parts)
        return parts[0].new_empty(0)
