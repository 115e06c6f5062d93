"""Activation checkpointing: residual blocks keep only their input in training, and run again for the gradient."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from degrid.contracts import MadeClass, members_of_made
from degrid.types import UserError

T = TypeVar("T")

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def checkpoint_activations(model: nn.Module) -> int:
    """Let every block of the network keep only its input, and run again in the backward pass; in place.

    Outputs, gradients, dropout masks, batch norm statistics and names in the state dict stay the same. Most activations
    need no memory; the second forward pass of the blocks makes a training step about a third longer.

    A block is a module of at least two convolutions or linear layers that contains no block itself and stands in a
    container such as nn.Sequential, or beside another module of its class: a residual unit of any encoder. Blocks with
    hooks on their inner modules are left alone, since the hooks would run twice.

    Returns:
        The number of blocks.
    Raises:
        UserError: no such block.
    Source: Chen et al. (arXiv 1604.06174).
    """
    found = blocks(model)
    for block in found:
        block.__class__ = _checkpointed(type(block))  # type: ignore[arg-type]
    if not found:
        expected = "expected a row of modules, each of two or more convolutions"
        raise UserError(f"no blocks to checkpoint in this {type(model).__name__}: {expected}")
    return len(found)


def recomputed(owner: nn.Module, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """The function's result, without its intermediate results, which are computed again for the gradient.

    Args:
        owner: the module whose layers the function runs; its batch norms count the batch only once.
        function: of tensors, which are the other arguments.
    """
    return checkpoint(
        function, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _counted_already(owner)), **kwargs
    )


def blocks(model: nn.Module) -> list[nn.Module]:
    """The innermost blocks, in order; see `checkpoint_activations`."""
    found: dict[nn.Module, None] = {}  # a set that keeps the order

    def visit(module: nn.Module) -> bool:
        """Collect the blocks inside; True if there are any."""
        children = list(module.children())
        classes = Counter(type(child) for child in children)
        any_inside = False
        for child in children:
            if visit(child):
                any_inside = True
            elif (isinstance(module, _CONTAINERS) or classes[type(child)] > 1) and _is_block(child):
                found[child] = None
                any_inside = True
        return any_inside

    visit(model)
    return list(found)


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, (*_CONTAINERS, CheckpointedBlock)):
        return False
    inner = [each for each in module.modules() if each is not module]
    hooked = any(each._forward_hooks or each._forward_pre_hooks for each in inner)
    return not hooked and sum(isinstance(each, nn.Conv2d | nn.Linear) for each in inner) > 1


class CheckpointedBlock(MadeClass):
    """A block that keeps only its input; see `checkpoint_activations`."""


@functools.cache
def _checkpointed(kind: type[nn.Module]) -> Any:
    """The subclass of a class of blocks that forgets what it computed until the backward pass."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or _transformed(args):
            return kind.forward(self, *args, **kwargs)
        return recomputed(self, functools.partial(kind.forward, self), *args, **kwargs)

    members = {**members_of_made(_checkpointed, kind), "forward": forward}
    return type(f"Checkpointed{kind.__name__}", (CheckpointedBlock, kind), members)


def _transformed(args: tuple[Any, ...]) -> bool:
    """Whether torch.func or torch.fx run the block; they cannot handle saved tensors."""
    return torch._C._are_functorch_transforms_active() or any(isinstance(arg, torch.fx.Proxy) for arg in args)


@contextmanager
def _counted_already(block: nn.Module) -> Iterator[None]:
    """Run a block for the second time, without its batch norms counting the batch again.

    They normalise by its statistics as before, but with a momentum of 0, which leaves the running statistics unchanged.
    """
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
    kept = [(norm, norm.momentum, norm._buffers.get("num_batches_tracked")) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            norm._buffers["num_batches_tracked"] = None
        yield
    finally:
        for norm, momentum, counted in kept:
            norm.momentum = momentum
            norm._buffers["num_batches_tracked"] = counted
