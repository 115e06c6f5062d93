"""Fully sharded data parallelism (FSDP2): each process keeps a part of every weight, gradient and optimiser state.

A block's weights are whole only while it computes. What is saved, validated and published is whole.

Source: ZeRO stage 3, Rajbhandari et al. (arXiv 1910.02054); Zhao et al. (arXiv 2304.11277).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from degrid.contracts import copied

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(root: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Leave each process its part of every parameter, in place; weights take the contiguous memory layout.

    Args:
        root: called in training, where it adds up the gradients of all processes and divides them by their number.
        blocks: modules in it whose weights are made whole one after the other; the others stay whole during a step.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    root.to(memory_format=torch.contiguous_format)
    mesh = init_device_mesh(next(root.parameters()).device.type, (dist.get_world_size(),))
    for module in (*blocks, root):
        fully_shard(module, mesh=mesh)


def skeleton(module: nn.Module) -> nn.Module:
    """A copy without values, to be made before `shard`; see `whole_copy`."""
    return copied(module).to("meta")


def whole_copy(bare: nn.Module, sharded: nn.Module) -> nn.Module:
    """A module with all weights of a sharded one; every process must call it.

    Args:
        bare: its `skeleton`, which stays as it is.
    """
    made = copy.deepcopy(bare).to_empty(device=next(sharded.parameters()).device)
    values = {**dict(sharded.named_parameters()), **dict(sharded.named_buffers())}
    with torch.no_grad():
        for name, target in (*made.named_parameters(), *made.named_buffers()):
            target.copy_(whole(values[name].detach()))
    return made


def whole(value: Any) -> Any:
    """Values, in nested tables or lists or not, whose tensors are whole; every process must call it."""
    if isinstance(value, Mapping):
        return {key: whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [whole(each) for each in value]
    return value.full_tensor() if is_part(value) else value


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as this process's part, where the tensor in whose place it comes is sharded."""
    if not is_part(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Each process has the whole value: none has to be sent.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def parts_for(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of whole tensors as `module.load_state_dict` takes it."""
    own = module.state_dict()
    return {name: part_of(value, own[name]) if name in own else value for name, value in values.items()}


def shard_state(optimizer: torch.optim.Optimizer) -> None:
    """Leave each process its part of a state that was loaded as a whole."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = part_of(value, parameter)


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, in the same memory; another tensor itself."""
    return tensor.to_local() if is_part(tensor) else tensor


def is_part(value: object) -> TypeGuard[DTensor]:
    """Whether this is a tensor of which each process has a part. Importing their module takes half a second."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)
