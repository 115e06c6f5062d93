"""Frozen batch norm, computed as part of the convolution before it."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from degrid.acceleration.fold import (
    computes_plainly,
    example_image,
    of_other_sides,
    reason_to_leave,
    timm_batch_norm,
    wiring_of,
)
from degrid.acceleration.recompute import as_convolved
from degrid.acceleration.training import active, convolved, fast_rate, gradients
from degrid.contracts import ExchangeableConv2d, FoldingConv2d, MadeClass, members_of_made, unchanged
from degrid.kernels.support import traced
from degrid.lookup import in_a_line, loaded
from degrid.types import UserError

Norm = nn.modules.batchnorm._BatchNorm


def freeze_batch_norm(model: nn.Module, fold: bool = True, example: Tensor | None = None) -> int:
    """Fix the statistics, scale and shift of every batch norm, in place; a later `model.train()` changes none of them.

    Names in the state dict stay the same, and so does what the network computes, up to rounding. Smooth the network
    first: a folded convolution can no longer be smoothed.

    Args:
        fold: compute a batch norm that alone reads a convolution's output together with that convolution, whose weight
            is multiplied by s and whose bias becomes t: s = scale / sqrt(variance + epsilon), t = shift - mean * s.
            Every forward pass takes both from the batch norm anew, and the gradient reaches the weight, so that
            training, loading and saving see two layers as before. The output between them is not kept for the backward
            pass. All other batch norms stay layers of their own.
        example: an input of the network, to find those pairs, in which parts of it are looked at, too; by default noise
            of two sizes, [1,3,64,64] and [1,3,160,224], 0 to 255. One that takes other paths at larger sizes needs one
            of the size that it is trained with.
    Returns:
        The number of batch norms frozen.
    Raises:
        UserError: the model has no batch norm, cannot run on the example, or has batch norms that TorchScript compiled.
    Source: DeepLab v2 and v3 (stage 2) train with frozen batch norm.
    """
    traced_norms = _in_torchscript(model)
    norms = [each for each in model.modules() if isinstance(each, Norm) and not isinstance(each, FrozenBatchNorm)]
    if not norms and not traced_norms:
        raise UserError("there is no batch norm to freeze in this model")
    pairs = conv_bn_pairs(model, example) if fold and norms else []
    for norm in norms:
        norm.__class__ = _frozen(type(norm))  # type: ignore[arg-type]
        norm.eval()
    for each in (*norms, *traced_norms):
        for parameter in each.parameters(recurse=False):
            parameter.requires_grad_(False)
    for conv, norm in pairs:
        if _can_fold(conv, norm):
            conv.__class__ = _folding(type(conv))  # type: ignore[arg-type]
            # Not a submodule, so that it keeps its place and names. A deep copy refers to the copied batch norm.
            conv.__dict__["folded_norm"] = norm
            norm.__class__ = _folded(type(norm))  # type: ignore[arg-type]
    return len(norms) + len(traced_norms)


def _in_torchscript(model: nn.Module) -> list[nn.Module]:
    """The batch norms that were traced in evaluation mode, and have no other.

    Raises:
        UserError: some were compiled such that they change with `model.train()`.
    """
    compiled = {name: each for name, each in model.named_modules() if isinstance(each, torch.jit.ScriptModule)}
    changing = [name for name, each in compiled.items() if _follows_mode(each)]
    if changing:
        raise UserError(
            f"cannot freeze the batch norms of {changing[-1] or 'this model'}: TorchScript compiled them, and in "
            "training they normalise by the batch; freeze the network before it is compiled, or train it uncompiled"
        )
    return [each for each in compiled.values() if "running_var" in dict(each.named_buffers(recurse=False))]


def _follows_mode(compiled: Any) -> bool:
    """Whether a compiled module has batch norms that read their mode, or were traced in training mode."""
    graph = getattr(compiled, "inlined_graph", None)  # parts of a traced module have none
    if graph is None:
        return False
    modes = [list(node.inputs())[5] for node in graph.findAllNodes("aten::batch_norm")]
    return any(mode.toIValue() is not False for mode in modes)


class FrozenBatchNorm(MadeClass):
    """A batch norm that stays in evaluation mode."""

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        """Evaluation mode, whatever `mode` says."""
        return super().train(False)


@cache
def _frozen(kind: type[Norm]) -> Any:
    """The frozen subclass of a class of batch norm, which may be timm's with an activation."""
    return type(f"Frozen{kind.__name__}", (FrozenBatchNorm, kind), members_of_made(_frozen, kind))


def _can_fold(conv: nn.Conv2d, norm: Norm) -> bool:
    """Whether both have a known forward, and the batch norm has statistics."""
    kind = type(conv)
    same: tuple[Any, ...] = loaded("timm.layers.conv2d_same", "Conv2dSame")
    plain = (
        computes_plainly(kind)
        or any(kind.forward is each.forward for each in same)
        or isinstance(conv, ExchangeableConv2d)
    )
    known = type(norm).forward in {each.forward for each in (Norm, nn.SyncBatchNorm, *timm_batch_norm())}
    called = type(norm).__call__ is kind.__call__ is nn.Module.__call__
    return plain and known and called and norm.running_mean is not None and not isinstance(conv, FoldingConv2d)


@cache
def _folded(kind: type[nn.Module]) -> Any:
    """A frozen batch norm whose work is done by the convolution; only timm's activation remains."""

    def forward(self: Any, input: Tensor) -> Tensor:
        return cast(Tensor, self.act(self.drop(input)) if isinstance(self, timm_batch_norm()) else input)

    members = {**members_of_made(_folded, kind), "forward": forward, "unfolded": kind}
    return type(f"Folded{kind.__name__}", (kind,), members)


@cache
def _folding(kind: type[nn.Conv2d]) -> Any:
    """The subclass of a class of convolution that also does the work of the batch norm after it."""

    def take_apart(self: Any) -> None:
        norm = self.__dict__.pop("folded_norm")
        norm.__class__ = norm.unfolded
        self.__class__ = kind

    def forward(self: Any, input: Tensor) -> Tensor:
        x = input  # called so by nn.Conv2d
        scale, shift = scale_and_shift(self.folded_norm)
        bias = shift if self.bias is None else torch.addcmul(shift, self.bias, scale)
        scale = scale.reshape(-1, 1, 1, 1)
        if isinstance(self, ExchangeableConv2d):
            twin = _twin(kind, self, bias=bias)
            twin.exchange(
                lambda x, rate, margin=0: _scaled_convolution(
                    as_convolved(x), self.weight, scale, None, self.geometry(rate, margin)
                )
            )
            return kind.forward(twin, x)
        if kind.forward is nn.Conv2d.forward and not (isinstance(self.padding, str) or self.padding_mode != "zeros"):
            geometry = self.stride, self.padding, self.dilation, self.groups
            return _scaled_convolution(as_convolved(x), self.weight, scale, bias, geometry)
        weight = self.weight * scale
        if kind.forward is nn.Conv2d.forward:
            return cast(Tensor, self._conv_forward(x, weight, bias))
        # timm's Conv2dSame reads weight and bias from the layer.
        return kind.forward(_twin(kind, self, weight=weight, bias=bias), x)

    members = {**members_of_made(_folding, kind), "forward": forward, "take_apart": take_apart}
    return type(f"Folding{kind.__name__}", (FoldingConv2d, kind), members)


def _twin(kind: type[nn.Conv2d], layer: nn.Conv2d, **parameters: Tensor) -> Any:
    """A layer of class `kind` that shares everything with `layer` except these parameters, which may be computed."""
    twin = kind.__new__(kind)
    twin.__dict__.update(layer.__dict__)
    twin._parameters = {**layer._parameters, **parameters}  # type: ignore[dict-item]
    return twin


def _scaled_convolution(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]
) -> Tensor:
    """conv2d(x, weight * scale, bias), which keeps the weight for the backward pass instead of its scaled copy.

    scale is [out,1,1,1]. The scaled weight is computed in the weight's type, then cast to that of x.
    """
    if traced(x, weight):  # compilers see what can be computed again by themselves
        return _convolved(x, weight, scale, bias, geometry)
    return cast(Tensor, _ScaledConvolution.apply(x, weight, scale, bias, geometry))


def _convolved(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
    return torch.conv2d(x, (weight * scale).to(x.dtype), None if bias is None else bias.to(x.dtype), *geometry)


class _ScaledConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]
    ) -> Tensor:
        """See `_scaled_convolution`."""
        ctx.save_for_backward(x, weight, scale)
        ctx.bias_type = None if bias is None else bias.dtype
        ctx.fast = active()
        ctx.rate = fast_rate(x, weight, *geometry) if ctx.fast else None
        ctx.geometry = geometry
        if ctx.rate is not None:
            return convolved(x, weight * scale, bias, ctx.rate, ctx.fast)
        return _convolved(x, weight, scale, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, weight and bias."""
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3]]
        scaled = (weight * scale).to(x.dtype)
        found: Any
        if ctx.rate is not None:
            found = gradients(grad, x, scaled, ctx.rate, wanted, ctx.fast)
        else:
            found = torch.ops.aten.convolution_backward(
                grad, x, scaled, [len(weight)], stride, padding, dilation, False, [0, 0], groups, wanted
            )
        of_x, of_scaled, of_bias = found
        of_weight = of_scaled.to(weight.dtype) * scale if wanted[1] else None
        return of_x, of_weight, None, of_bias.to(ctx.bias_type) if wanted[2] else None, None


def scale_and_shift(norm: Norm) -> tuple[Tensor, Tensor]:
    """The factor and the summand of each channel that follow from the running statistics; without gradient."""
    with torch.no_grad():
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = torch.rsqrt(variance + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        shift = -mean * scale
        return scale, shift if norm.bias is None else shift + norm.bias


def conv_bn_pairs(model: nn.Module, example: Tensor | None = None) -> list[tuple[nn.Conv2d, Norm]]:
    """Pairs of a convolution and the batch norm that reads its output, found by running the network once.

    A pair counts if the batch norm's input is always the very tensor that the convolution returned, and nothing else
    ever reads that tensor: only then can the two be computed as one. Neither has hooks, and nothing else reads their
    weights. The network runs without gradients in evaluation mode and, with its batch norms in evaluation mode, in
    training mode, where it may do more; it is `unchanged` afterwards. See `freeze_batch_norm` for the example, and for
    what is raised.
    """
    first = example_image(model, 64) if example is None else example
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    try:
        with unchanged(model):
            wiring = wiring_of(model, first)
            model.train()
            for norm in norms:
                norm.eval()
            wiring = wiring_of(model, first, wiring)
            larger = example_image(model, 160, 224) if example is None else first
            for other in (*of_other_sides(larger), *([larger] if example is None else [])):
                with suppress(Exception):  # it may accept one size only
                    wiring = wiring_of(model, other, wiring)
            return [
                (conv, norm)
                for norm in norms
                for conv in wiring.sources.get(norm, ())
                if conv is not None and len(wiring.sources[norm]) == 1 and not reason_to_leave(conv, norm, wiring)
            ]
    except Exception as error:  # a user's network may raise anything
        raise UserError(
            f"could not run {type(model).__name__} on an image of {tuple(first.shape)} to see which convolution each "
            f"batch norm follows ({in_a_line(error)}); give an example that it can take, or "
            "leave the batch norms unfolded (fold=False)"
        ) from error
