"""Parameter groups, optimisers and the poly schedule of the DeepLab papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from degrid.lookup import lookup
from degrid.types import UserError

OPTIMIZERS = ("sgd", "adamw")


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    head_factor: float = 10.0,
    head_bias_factor: float = 20.0,
    decay_all: bool = False,
) -> list[dict[str, object]]:
    """Five groups: encoder weights and rest, head weights, batch norm and biases.

    Each has "name", "factor" (its learning rate over the base rate) and "weight_decay". Decay acts on the weights of
    convolutions and linear layers only, not on biases, batch norm or smoothing parameters, unless `decay_all` is set.
    Parameters under `model.head` are the head's; all others count as encoder, smoothing parameters included.
    Frozen parameters are left out.

    Source: DeepLab v2 (arXiv 1606.00915) and Wang & Ji 2018: encoder 1x, head weights 10x, head biases 20x.
    Their heads had no batch norm; here it learns at the rate of the head weights.
    """
    decayed = {
        id(parameter)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        for parameter in [module.weight]
    }
    top = dict(model.named_children()).get("head")
    head = {id(parameter) for parameter in top.parameters()} if top is not None else set()
    norm_parameters = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm)
        for parameter in module.parameters(recurse=False)
    }
    rest = weight_decay if decay_all else 0.0
    rows: dict[str, tuple[float, float]] = {
        "encoder weights": (1.0, weight_decay),
        "encoder rest": (1.0, rest),
        "head weights": (head_factor, weight_decay),
        "head norm": (head_factor, rest),
        "head biases": (head_bias_factor, rest),
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in rows}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        key = id(parameter)
        if key not in head:
            group = "encoder weights" if key in decayed else "encoder rest"
        elif key in decayed:
            group = "head weights"
        else:
            group = "head norm" if key in norm_parameters else "head biases"
        members[group].append(parameter)
    return [
        {"name": name, "params": members[name], "factor": factor, "weight_decay": decay}
        for name, (factor, decay) in rows.items()
        if members[name]
    ]


def make_optimizer(name: str, groups: Iterable[dict[str, object]], lr: float, momentum: float) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over `parameter_groups`."""
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    raise UserError(f'unknown optimiser "{name}"; known: {", ".join(OPTIMIZERS)}')


def poly_schedule(lr: float, steps: int, power: float = 0.9) -> Callable[[int], float]:
    """Learning rate at a step: lr * (1 - step / steps) ** power.

    Source: DeepLab v2 (arXiv 1606.00915) section 4.1.2; power 0.9.
    """

    def at(step: int) -> float:
        return float(lr * max(0.0, 1 - step / steps) ** power)

    return at


def cosine_schedule(lr: float, steps: int) -> Callable[[int], float]:
    """Learning rate at a step: lr * (1 + cos(pi * step / steps)) / 2.

    Source: Loshchilov & Hutter (arXiv 1608.03983), equation 5, without restarts.
    """

    def at(step: int) -> float:
        return lr * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2

    return at


def step_schedule(lr: float, every: int, factor: float) -> Callable[[int], float]:
    """Learning rate at a step: lr times `factor` after each `every` steps.

    Source: DeepLab v1 (arXiv 1412.7062) section 4: a tenth after every 2000 steps.
    """

    def at(step: int) -> float:
        return float(lr * factor ** (step // every))

    return at


SCHEDULES = ("poly", "cosine", "step")


def schedule(
    name: str, lr: float, steps: int, *, power: float = 0.9, warmup: int = 0, every: int = 2000, factor: float = 0.1
) -> Callable[[int], float]:
    """Learning rate at a step, from 0, by the schedule's name, rising linearly over the first `warmup` steps.

    Args:
        power: of poly; 0 is a constant rate. every, factor: of step.
    Raises:
        UserError: an unknown schedule.
    """
    known: dict[str, Callable[[], Callable[[int], float]]] = {
        "poly": lambda: poly_schedule(lr, steps, power),
        "cosine": lambda: cosine_schedule(lr, steps),
        "step": lambda: step_schedule(lr, every, factor),
    }
    at = lookup(known, name, "schedule")()
    return lambda step: at(step) * min(1.0, (step + 1) / (warmup + 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that follows it: average <- d * average + (1 - d) * model, buffers included.

    d grows from 0.1 to `decay` as (1 + n) / (10 + n) with the number n of updates, so that the random
    weights of the start are soon forgotten.
    """

    def follow(averages: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        updates = int(count)
        keep = min(decay, (1 + updates) / (10 + updates))
        if torch.is_floating_point(averages[0]):
            torch._foreach_lerp_(averages, current, 1 - keep)
        else:  # counters of batch norm
            for average, value in zip(averages, current, strict=True):
                average.copy_(value)

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=True)  # type: ignore[arg-type]
