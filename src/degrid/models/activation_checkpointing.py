"""Memory of training: residual blocks that keep their input only, and compute the rest again when it is needed."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from degrid.types import UserError

T = TypeVar("T")

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def checkpoint_activations(model: nn.Module) -> int:
    """Let every block of the network keep its input only, and run it again in the backward pass; in place.

    Outputs, gradients, dropout masks and statistics of batch norm are what they were; names in the state dict stay. It
    costs one more forward pass of the blocks, about a third of a step, and saves most of the activations.

    A block is a module of two or more convolutions or linear layers that stands in a row of modules, or beside another
    of its class, and holds no block itself: a residual unit of any encoder. Blocks with hooks on their inner modules
    stay as they are, since the hooks would run twice.

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
        raise UserError(
            f"no blocks to checkpoint in this {type(model).__name__}: expected a row of modules, each of two or more "
            "convolutions"
        )
    return len(found)


def recomputed(owner: nn.Module, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What `function` gives, without keeping what it takes on the way: that is computed again for the gradient.

    Args:
        owner: the module whose layers the function runs; its batch norms count the batch once.
        function: of tensors.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _counted_already(owner)

    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The innermost blocks, in order; see `checkpoint_activations`."""
    found: dict[nn.Module, None] = {}  # a set that keeps the order

    def visit(module: nn.Module) -> bool:
        """Note the blocks inside; whether there are any."""
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
    inner = [each for each in module.modules() if each is not module]
    layers = sum(isinstance(each, nn.Conv2d | nn.Linear) for each in inner)
    hooked = any(each._forward_hooks or each._forward_pre_hooks for each in inner)
    return (
        layers > 1 and not isinstance(module, _CONTAINERS) and not hooked and not isinstance(module, CheckpointedBlock)
    )


class CheckpointedBlock(nn.Module):
    """A block that keeps its input only and computes the rest again; see `checkpoint_activations`."""


@functools.cache
def _checkpointed(kind: type[nn.Module]) -> Any:
    """A subclass that forgets what it computed until the backward pass."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return kind.forward(self, *args, **kwargs)
        return recomputed(self, functools.partial(kind.forward, self), *args, **kwargs)

    return type(f"Checkpointed{kind.__name__}", (CheckpointedBlock, kind), {"forward": forward})


@contextmanager
def _counted_already(block: nn.Module) -> Iterator[None]:
    """The second run of a block: its batch norms have counted this batch.

    They normalise by its statistics as before, with a momentum of 0, which leaves the running ones exactly as they are.
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
