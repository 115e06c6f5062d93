"""What a network keeps from one run to the next, inside and outside of its modules."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from degrid.engine.inference.adapted import Adapted

_DEPTH = 3
"""How deep in lists, dictionaries and objects a network's state is searched for."""
_ENTRIES = 100
"""Most entries of each of them that are examined."""


def weights(model: nn.Module) -> list[tuple[object, object]]:
    """Weights and buffers, with their values."""
    return [(each, _sums(each)) for each in (*model.parameters(), *model.buffers())]


def kept(model: nn.Module) -> list[tuple[object, object]]:
    """What else a network could keep from one run to the next: attributes, and what is in them."""
    own = (module for module in model.modules() if not isinstance(module, Adapted))
    return [pair for module in own for value in vars(module).values() for pair in _inside(value, _DEPTH)]


def counters(model: nn.Module) -> list[object]:
    """The single numbers and words that a network keeps, as counts of images are; not those of its batch norms."""
    own = [module for module in model.modules() if not isinstance(module, Adapted | _BatchNorm)]
    values = [value for module in own for held in vars(module).values() for value, _ in _inside(held, _DEPTH)]
    found: list[object] = [value for value in values if isinstance(value, _SINGLE)]
    tensors = [value for value in values if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta]
    return found + [value.item() for value in tensors]


def numbers_outside(model: nn.Module) -> list[object]:
    """The single numbers and words that the classes of a network hold, the modules that these are written in, or the
    functions that it has.

    No copy of the network has its own.
    """
    held = _in_closures(model)
    for kind in {every: None for module in model.modules() for every in type(module).__mro__}:
        if kind.__module__.partition(".")[0] not in _WITHOUT_COUNTS:
            held += _around(kind)
    kinds = *_SINGLE, dict, list, deque
    found = [inner for value in held if isinstance(value, kinds) for inner, _ in _inside(value, 1)]
    return [value for value in found if isinstance(value, _SINGLE)]


def _in_closures(model: nn.Module) -> list[object]:
    """What the functions hold that modules have as attributes."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return [each for value in values if isinstance(value, FunctionType) for each in _enclosed(value)]


def _around(kind: type) -> list[object]:
    """What a class holds, and what its methods may read of the module that it is written in."""
    own = list(vars(kind).values())
    functions = [value for value in own if isinstance(value, FunctionType)]
    return own + [each.__globals__.get(name) for each in functions for name in each.__code__.co_names]


_SINGLE = (bool, int, float, str)
_WITHOUT_COUNTS = ("builtins", "torch", "degrid", "timm", "torchvision", "transformers", "segmentation_models_pytorch")
"""Libraries whose classes do not count images."""


def _inside(value: object, depth: int) -> Iterator[tuple[object, object]]:
    """A value and what it holds, with their versions."""
    yield value, _version(value)
    held: Iterable[object] = ()
    if isinstance(value, dict):
        held = value.values()
    elif isinstance(value, list | tuple | deque | set):
        held = value
    elif isinstance(value, FunctionType):
        held = _enclosed(value)
    elif not isinstance(value, Tensor | nn.Module | type | FunctionType | ModuleType):
        held = [*getattr(value, "__dict__", {}).values(), *_in_slots(value)]
    if depth:
        for each in list(itertools.islice(held, _ENTRIES)):
            yield from _inside(each, depth - 1)


def _enclosed(function: FunctionType) -> list[object]:
    """What the closure of a function holds."""
    found: list[object] = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is empty
            found.append(cell.cell_contents)
    return found


def _in_slots(value: object) -> list[object]:
    """What an object holds that has no dictionary of its own."""
    names = [name for kind in type(value).__mro__ for name in _names_of_slots(kind)]
    return [getattr(value, name) for name in names if hasattr(value, name)]


def _names_of_slots(kind: type) -> tuple[str, ...]:
    names = vars(kind).get("__slots__", ())
    if kind.__module__.partition(".")[0] in _WITHOUT_COUNTS:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)


def shares_functions(model: nn.Module) -> bool:
    """Whether functions of a network reach its own modules or what these hold: a copy has the very same functions, so
    that a hook of the copy writes into the original."""
    held = {id(module) for module in model.modules()}
    functions: list[object] = []
    for module in model.modules():
        own = vars(module).values()
        held.update(id(value) for value in own if not isinstance(value, _SHARED))
        functions += [*own, *module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(_reaches(function, held, _DEPTH) for function in functions if isinstance(function, FunctionType))


_SHARED = (type(None), bool, int, float, str, tuple, type, FunctionType, ModuleType, torch.dtype, torch.device)
"""What a copy and its original may have in common without any harm."""


def _reaches(function: FunctionType, held: set[int], depth: int) -> bool:
    """Whether a function can get at one of these objects, by its closure, its defaults or the names of its module."""
    values: list[object] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    values += [function.__globals__.get(name) for name in function.__code__.co_names]
    values += _enclosed(function)
    if any(id(value) in held for value in values):
        return True
    inner = (value for value in values if isinstance(value, FunctionType))
    return depth > 0 and any(_reaches(each, held, depth - 1) for each in inner)


def _sums(tensor: Tensor) -> object:
    """Numbers that change with a tensor's values, also where `.data` or NumPy hide the change from its version."""
    sums: list[str] = []
    with torch.no_grad(), contextlib.suppress(Exception):  # not every type of numbers has sums
        sums.append(str(tensor.sum().item()))
        sums.append(str(torch.linalg.vector_norm(tensor).item()))
    return sums or None


def _version(value: object) -> object:
    """What changes with the value, though the object remains; None: nothing."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    return len(value) if isinstance(value, list | dict | deque | set) else None


def differ(before: list[tuple[object, object]], after: list[tuple[object, object]]) -> bool:
    """Whether something else is there, or the same in another version."""
    return len(before) != len(after) or any(
        old is not new or version != other for (old, version), (new, other) in zip(before, after, strict=True)
    )
