"""Random number generators: where they are, and how their states are restored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
"""The classes whose objects draw random numbers."""


def state_of(generator: Any) -> Any:
    """Where a generator is: a value that compares equal if and only if it has drawn nothing since."""
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    if isinstance(generator, random.Random):
        return generator.getstate()
    drawn: Any = _kept(generator)
    return tuple(_plain(drawn))


def _plain(state: dict[str, Any]) -> Iterator[Any]:
    for value in state.values():
        if isinstance(value, dict):
            yield from _plain(value)
        else:
            yield value.tobytes() if isinstance(value, np.ndarray) else value


def _kept(generator: Any) -> Any:
    """What `_put_back` needs."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return (
        generator.bit_generator.state
        if isinstance(generator, np.random.Generator)
        else generator.get_state(legacy=False)
    )


def _put_back(generator: Any, kept: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(kept)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = kept
    else:
        generator.set_state(kept)


def of_everybody(device: torch.device | None = None) -> list[Any]:
    """The generators that functions draw from which are given none: those of Python, NumPy and PyTorch.

    Args:
        device: whose generator to name beside that of the CPU.
    """
    found: list[Any] = [random.random.__self__, np.random.rand.__self__, torch.default_generator]  # type: ignore[attr-defined]
    if device is not None and device.type == "cuda":
        found.append(
            torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
        )
    return found


@contextmanager
def drawing_nothing(generators: list[Any]) -> Iterator[None]:
    """Afterwards the generators continue from where they were; those that drew nothing are not touched."""
    before = [(each, state_of(each), _kept(each)) for each in generators]
    try:
        yield
    finally:
        for generator, state, kept in before:
            if state_of(generator) != state:
                _put_back(generator, kept)


drawing_for_itself = drawing_nothing(of_everybody())
"""Decorates what builds or traces networks: what its caller draws afterwards is as if it had not run."""
