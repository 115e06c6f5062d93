"""Learning rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from degrid.lookup import lookup, settings_for
from degrid.types import UserError

Schedule = Callable[[int], float]
"""From the optimiser step, counted from 0, to the learning rate."""


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


def step_schedule(lr: float, step_every: int, step_factor: float) -> Schedule:
    """Learning rate at a step: lr, multiplied by `step_factor` after each `step_every` steps.

    Source: DeepLab v1 (arXiv 1412.7062) section 4: a tenth after every 2000 steps.
    """
    return lambda step: float(lr * step_factor ** (step // step_every))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "poly": poly_schedule,
    "cosine": cosine_schedule,
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
        UserError: an unknown schedule or option, or a function that returns no function.
    """
    make = lookup(SCHEDULES, name, "schedule")
    settings = {"lr": lr, "steps": steps, "power": power, "step_every": step_every, "step_factor": step_factor}
    at = make(**settings_for(make, settings, options or {}, f'schedule "{name}"'))
    if not callable(at):
        raise UserError(f'schedule "{name}": expected a function from the step to its learning rate, got {at!r}')
    return lambda step: at(step) * min(1.0, (step + 1) / (warmup + 1))
