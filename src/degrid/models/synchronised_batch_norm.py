"""Batch norm by the statistics of the batches of all processes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from degrid.contracts import MadeClass, members_of_made
from degrid.types import UserError

Norm = nn.modules.batchnorm._BatchNorm


def synchronise_batch_norm(model: nn.Module) -> int:
    """Let every batch norm of a network use the mean and variance of all processes' batches in training, in place.

    Unlike `torch.nn.SyncBatchNorm` it also works on the CPU, and on subclasses of batch norm that do something more
    after it, as timm's do. With one process nothing changes; names in the state dict stay the same.

    Returns:
        The number of batch norms.
    Raises:
        UserError: the model has none.
    """
    norms = [each for each in model.modules() if isinstance(each, Norm) and not isinstance(each, SynchronisedBatchNorm)]
    if not norms:
        raise UserError("there is no batch norm to synchronise in this model; set train.batch_norm=train")
    for norm in norms:
        norm.__class__ = _synchronised(type(norm))  # type: ignore[arg-type]
    return len(norms)


class SynchronisedBatchNorm(MadeClass):
    """A batch norm that counts the batches of all processes as one."""


@cache
def _synchronised(kind: type[Norm]) -> Any:
    """The synchronised subclass of a class of batch norm, which may be timm's with an activation."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return kind.forward(self, x)
        mean, variance, count = _statistics(x)
        _update(self, mean.detach(), variance.detach(), count)
        shape = (1, -1, *[1] * (x.ndim - 2))
        standardised = (x - mean.reshape(shape)) * torch.rsqrt(variance + self.eps).reshape(shape)
        # The class's own forward adds scale and shift, and what a subclass does after them.
        kept = self.running_mean, self.running_var
        self.running_mean, self.running_var = torch.zeros_like(mean), torch.full_like(mean, 1 - self.eps)
        self.training = False
        try:
            return kind.forward(self, standardised.to(x.dtype))
        finally:
            self.training = True
            self.running_mean, self.running_var = kept

    members = {**members_of_made(_synchronised, kind), "forward": forward}
    return type(f"Synchronised{kind.__name__}", (SynchronisedBatchNorm, kind), members)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Over all processes: mean and biased variance per channel, float32 [C], and how many values a channel has, which
    stays a tensor so that a GPU is not waited for."""
    x = x.float()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    own = x.new_tensor([x.numel() / x.shape[1]])
    summed = _Summed.apply(torch.cat([x.sum(axes), own]))
    count = summed[-1].detach()
    mean = summed[:-1] / count
    deviations = (x - mean.reshape(1, -1, *[1] * (x.ndim - 2))).square().sum(axes)
    return mean, _Summed.apply(deviations) / count, count


def _update(norm: Any, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """The running statistics of a batch norm after a batch, as PyTorch computes them."""
    if norm.running_mean is None or not norm.track_running_stats:
        return
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * count / (count - 1).clamp_min(1), momentum)


class _Summed(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        """See the class."""
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The sum of the processes' gradients."""
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total
