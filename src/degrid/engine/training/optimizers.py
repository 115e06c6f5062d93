"""Parameter groups, optimisers and learning rate schedules by name, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from degrid.contracts import DressedConv, check_apart
from degrid.engine.training.sharding import is_part, own_part
from degrid.lookup import lookup, make_part
from degrid.types import UserError

WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    head_factor: float = 10.0,
    head_bias_factor: float = 20.0,
    decay_all: bool = False,
    smoothing_factor: float = 1.0,
) -> list[dict[str, object]]:
    """The trainable parameters in up to six groups: those of the encoder (weights, rest), of the head (weights, batch
    norm, biases), and of smoothing, wherever it is.

    Each group has "name", "factor" (its learning rate over the base rate) and "weight_decay". Decay acts on the weights
    of convolutions and linear layers only, not on biases, batch norm or smoothing parameters, unless `decay_all` is
    set. Parameters of a child module called "head" are the head's; all others count as encoder.

    Source: DeepLab v2 (arXiv 1606.00915) and Wang & Ji 2018: encoder and smoothing 1x, head weights 10x, head
    biases 20x. Their heads had no batch norm; here it learns at the rate of the head weights.
    """
    rest = weight_decay if decay_all else 0.0
    rows = {
        "encoder weights": (1.0, weight_decay),
        "encoder rest": (1.0, rest),
        "head weights": (head_factor, weight_decay),
        "head norm": (head_factor, rest),
        "head biases": (head_bias_factor, rest),
        "smoothing": (smoothing_factor, rest),
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in rows}
    find = _finder(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            members[find(id(parameter))].append(parameter)
    return [
        {"name": name, "params": members[name], "factor": factor, "weight_decay": decay}
        for name, (factor, decay) in rows.items()
        if members[name]
    ]


def _ids(modules: Iterable[nn.Module]) -> set[int]:
    """The identities of the modules' own parameters."""
    return {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}


def _finder(model: nn.Module) -> Callable[[int], str]:
    """The names of the parameters' groups, by the identity of each."""
    weights = {id(module.weight) for module in model.modules() if isinstance(module, WEIGHTED)}
    norms = _ids(module for module in model.modules() if isinstance(module, NORMS))
    head = _ids(module for name, child in model.named_children() if name == "head" for module in child.modules())
    layers = (module for module in model.modules() if isinstance(module, DressedConv))
    smoothing = {id(parameter) for layer in layers for parameter in layer.operator_parameters()}

    def find(parameter: int) -> str:
        if parameter in smoothing:
            return "smoothing"
        if parameter not in head:
            return "encoder weights" if parameter in weights else "encoder rest"
        if parameter in weights:
            return "head weights"
        return "head norm" if parameter in norms else "head biases"

    return find


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def make_optimizer(
    name: str,
    groups: Iterable[dict[str, object]],
    lr: float,
    momentum: float,
    options: Mapping[str, object] | None = None,
) -> torch.optim.Optimizer:
    """An optimiser by name.

    Args:
        name: a row of OPTIMIZERS, or "module:Class" such as "torch.optim:RMSprop", which is called with the groups,
            those of lr and momentum that it takes, and all options.
        groups: see `parameter_groups`.
        options: further arguments, such as {"nesterov": True}.
    Raises:
        UserError: an unknown optimiser or option, a value that it does not accept, or something that makes no
            optimiser.
    """
    make = lookup(OPTIMIZERS, name, "optimiser")
    given: dict[str, object] = {"lr": lr, "momentum": momentum}
    groups = list(groups)
    whole = not any(is_part(each) for group in groups for each in cast(list[Tensor], group["params"]))
    if name in OPTIMIZERS and whole and not {"fused", "foreach", "differentiable"} & {*(options or {})}:
        # One pass over the parameters: 2 to 5 times as fast, on a CPU, too. SGD has none for sharded ones.
        given["fused"] = True
    made = make_part(partial(make, groups), given, options or {}, f'optimiser "{name}"')
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(f'optimiser "{name}": expected a torch.optim.Optimizer, got {type(made).__name__}')
    return made


Schedule = Callable[[int], float]
"""Returns the learning rate for an optimiser step, counted from 0."""


def poly_schedule(lr: float, steps: int, power: float = 0.9) -> Schedule:
    """Learning rate at a step: lr * (1 - step / steps) ** power; a power of 0 keeps it constant.

    Source: DeepLab v2 (arXiv 1606.00915) section 4.1.2; power 0.9.
    """
    return lambda step: float(lr * max(0.0, 1 - step / steps) ** power)


def cosine_schedule(lr: float, steps: int) -> Schedule:
    """Learning rate at a step: lr * (1 + cos(pi * step / steps)) / 2.

    Source: Loshchilov & Hutter (arXiv 1608.03983), equation 5, without restarts.
    """
    return lambda step: lr * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def cosine_restarts_schedule(
    lr: float, steps: int, period: int | None = None, growth: float = 2.0, least: float = 0.0
) -> Schedule:
    """Learning rate at a step: from lr down to `least` as a half cosine, again and again.

    Args:
        period: steps of the first descent; by default such that three of them fill `steps`, which ends at `least`.
        growth: how much longer each descent is than the one before, 1 or more.
        least: the lowest rate, 0 to lr.
    Raises:
        UserError: a number outside its range.
    Source: SGDR, Loshchilov & Hutter (arXiv 1608.03983), equation 5; T_0, T_mult and eta_min there.
    """
    length = steps / (1 + growth + growth * growth) if period is None else float(period)
    if not (length > 0 and growth >= 1 and 0 <= least <= lr):
        raise UserError(
            'setting "optim.schedule_options": cosine_restarts expects a period of at least 1 step, a growth of at '
            f"least 1, and a least rate from 0 to lr; got {period}, {growth:g} and {least:g}"
        )

    def at(step: int) -> float:
        begin, span = (step // length * length if growth == 1 and step < steps else 0.0), length
        while step >= begin + span - 1e-9 and step < steps:
            begin, span = begin + span, span * growth
        return least + (lr - least) * (1 + math.cos(math.pi * min(1.0, (step - begin) / span))) / 2

    return at


def step_schedule(lr: float, step_every: int, step_factor: float) -> Schedule:
    """Learning rate at a step: lr, multiplied by `step_factor` after each `step_every` steps.

    Source: DeepLab v1 (arXiv 1412.7062) section 4: a tenth after every 2000 steps.
    """
    return lambda step: float(lr * step_factor ** (step // step_every))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "poly": poly_schedule,
    "cosine": cosine_schedule,
    "cosine_restarts": cosine_restarts_schedule,
    "step": step_schedule,
}


def schedule(
    name: str,
    lr: float,
    steps: int,
    *,
    power: float = 0.9,
    warmup: int = 0,
    step_every: int = 2000,
    step_factor: float = 0.1,
    options: Mapping[str, object] | None = None,
) -> Schedule:
    """A schedule by name, rising linearly over the first `warmup` steps.

    Args:
        name: a row of SCHEDULES, or "module:function", which is called with those of lr, steps, power,
            step_every and step_factor that it has parameters for, and with all options.
        steps: optimiser steps of the whole training.
        power: of poly. step_every, step_factor: of step.
        options: further arguments.
    Raises:
        UserError: an unknown schedule or option, a value that it does not accept, or a function that returns no
            function.
    """
    make = lookup(SCHEDULES, name, "schedule")
    settings = {"lr": lr, "steps": steps, "power": power, "step_every": step_every, "step_factor": step_factor}
    at = make_part(make, settings, options or {}, f'schedule "{name}"')
    if not callable(at):
        raise UserError(f'schedule "{name}": expected a function from the step to its learning rate, got {at!r}')
    return lambda step: at(step) * min(1.0, (step + 1) / (warmup + 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that follows it: average <- d * average + (1 - d) * model, buffers included.

    The first update copies the model. Then d grows from 0.18 to `decay` as (1 + n) / (10 + n) with the number n of
    updates before, so that the random initial weights are forgotten.
    """

    def follow(averages: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        updates = int(count)
        keep = min(decay, (1 + updates) / (10 + updates))
        if torch.is_floating_point(averages[0]):
            torch._foreach_lerp_([*map(own_part, averages)], [*map(own_part, current)], 1 - keep)
        else:  # batch norm's counters
            for average, value in zip(averages, current, strict=True):
                average.copy_(value)

    average = AveragedModel(model, multi_avg_fn=follow, use_buffers=True)  # type: ignore[arg-type]
    check_apart(model, average)
    return average
