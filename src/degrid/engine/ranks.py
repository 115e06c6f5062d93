"""The processes of `torch.distributed`: which one this is, its part of the work, and sums over all of them."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def rank_and_count() -> tuple[int, int]:
    """This process's number, from 0, and how many there are: (0, 1) if `torch.distributed` is not initialised."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def own_items(count: int) -> range:
    """Which of `count` items this process works on: rank, rank + processes, ..."""
    rank, processes = rank_and_count()
    return range(rank, count, processes)


def summed_over_ranks(counts: Tensor) -> Tensor:
    """The sum over all processes, the same in each; `counts` itself if there is only one.

    Every process must call it. Integers add up to the same bits in whatever order.

    Args:
        counts: on the CPU, of one shape in all processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return counts
    # NCCL reduces on the GPU only; a group that also has Gloo takes what is in the CPU's memory.
    device = "cpu" if "cpu:" in dist.get_backend_config() else "cuda"
    total = counts.to(device, copy=True)
    dist.all_reduce(total)
    return total.cpu()
