"""Batch norm that stays as it was loaded."""

from __future__ import annotations

from functools import cache

from torch import nn

from degrid.types import UserError


def freeze_batch_norm(model: nn.Module) -> int:
    """Fix statistics, scale and shift of every batch norm, whatever `model.train()` says later; in place.

    Names in the state dict stay. Gives the number of layers frozen.

    Raises:
        UserError: the model has no batch norm.
    Source: DeepLab v2 and v3 (stage 2) train with frozen batch norm.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not hasattr(module, "frozen_batch_norm"):
            module.__class__ = _frozen(type(module))  # type: ignore[assignment,arg-type]
            module.eval()
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            count += 1
    if not count:
        raise UserError("there is no batch norm to freeze in this model")
    return count


@cache
def _frozen(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose train() leaves it in evaluation mode; subclasses such as timm's keep their activation."""

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        return nn.Module.train(self, False)

    return type(f"Frozen{kind.__name__}", (kind,), {"train": train, "frozen_batch_norm": True})
