"""What a network keeps from one run to the next, inside and outside of its modules."""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum
from numbers import Number
from types import CodeType, FunctionType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from degrid.chance import GENERATORS, state_of
from degrid.engine.inference.adapted import Adapted

_DEPTH = 3
"""How deep in lists, dictionaries and objects a network's state is searched for."""
_ENTRIES = 100
"""Largest number of entries of each that are examined."""


def weights(model: nn.Module) -> list[tuple[object, object]]:
    """Weights and buffers, with their values."""
    return [(each, _sums(each)) for each in (*model.parameters(), *model.buffers())]


def kept(model: nn.Module) -> list[tuple[object, object]]:
    """What else a network could keep from one run to the next: attributes, and what is in them."""
    own = (module for module in model.modules() if not isinstance(module, Adapted))
    return [pair for module in own for value in vars(module).values() for pair in _inside(value, _DEPTH)]


def counters(model: nn.Module) -> list[object]:
    """The numbers and words that a network keeps, as counts of images are; not those of its batch norms, or of large
    maps."""
    own = [module for module in model.modules() if not isinstance(module, Adapted | _BatchNorm)]
    values = [value for module in own for held in vars(module).values() for value, _ in _inside(held, _DEPTH)]
    return [each for value in values for each in _few(value)]


def _few(value: object) -> list[object]:
    """The value if it is a single one, the numbers of a small tensor or array, or the state of a generator."""
    if isinstance(value, _SINGLE):
        return [value]
    if isinstance(value, GENERATORS):
        return [state_of(value)]
    if isinstance(value, Tensor):
        plain = value.layout is torch.strided and not (value.is_meta or value.is_quantized)
        return [value.tolist()] if plain and value.numel() <= _FEW else []
    return [value.tolist()] if isinstance(value, np.ndarray) and value.size <= _FEW else []


def numbers_outside(model: nn.Module) -> list[object]:
    """The single numbers and words that the classes of a network hold, the modules that these are written in, or the
    functions that it has.

    No copy of the network has its own.
    """
    held = _outside(model)
    kinds = *_SINGLE, dict, list, deque
    found = [inner for value in held if isinstance(value, kinds) for inner, _ in _inside(value, 1)]
    drawn = [state_of(value) for value in held if isinstance(value, GENERATORS)]
    return [value for value in found if isinstance(value, _SINGLE)] + drawn


def places(model: nn.Module) -> list[object]:
    """Where the iterators and files are that a network could read on from at every image.

    What cannot be looked into, as a generator function, is in another place every time.
    """
    values = [value for pair in kept(model) for value in pair[:1]] + _outside(model)
    return [_place(value) for value in values if isinstance(value, Iterator | io.IOBase)]


def _place(value: Iterator[object] | io.IOBase, depth: int = _DEPTH) -> object:
    if isinstance(value, io.IOBase):
        with contextlib.suppress(OSError, ValueError):  # it is closed, or a pipe
            return value.tell()
        return None
    if hasattr(value, "__dict__"):
        return None  # its content is examined separately
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 announces that itertools will have no such thing
            parts = value.__reduce__()
    except TypeError:
        return object()
    if depth == 0 or isinstance(value, _CALLING):
        return object()
    return [_place(each, depth - 1) if isinstance(each, Iterator) else _size(each) for each in _flat(parts)]


_CALLING = type(iter(int, 1))
"""An iterator over what a function gives, which may get it from anywhere."""


def _flat(parts: object) -> Iterator[object]:
    if isinstance(parts, tuple):
        for each in parts:
            yield from _flat(each)
    else:
        yield parts


def _size(value: object) -> object:
    return value if isinstance(value, _SINGLE) else len(value) if isinstance(value, list) else id(value)


def _outside(model: nn.Module) -> list[object]:
    """The objects that functions, classes and their modules hold."""
    held = _in_closures(model)
    for kind in {every: None for module in model.modules() for every in type(module).__mro__}:
        if _counts(kind):
            held += _around(kind)
    return held


def _in_closures(model: nn.Module) -> list[object]:
    """The objects held by functions that modules have as attributes."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return [each for value in values if isinstance(value, FunctionType) for each in _enclosed(value)]


def _around(kind: type) -> list[object]:
    """The objects that a class holds, and those that its methods may read from their module."""
    found = list(vars(kind).values())
    seen: set[FunctionType] = set()
    functions = [value for value in found if isinstance(value, FunctionType)]
    for _ in range(_DEPTH):  # what its methods read, what the functions read that these call, ..
        seen.update(functions)
        read = [value for each in functions for value in _read_by(each)]
        found += read
        functions = [each for each in read if isinstance(each, FunctionType) and each not in seen and _counts(each)]
    return found


def _read_by(function: FunctionType) -> list[object]:
    """The objects that a function finds by name in its module and in its closure."""
    return [function.__globals__.get(name) for name in _names_in(function.__code__)] + _enclosed(function)


def _names_in(code: CodeType) -> list[str]:
    """Also those in the functions that it makes."""
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return [*code.co_names, *(name for each in inner for name in _names_in(each))]


def _counts(kind: type | FunctionType) -> bool:
    """Whether it does not belong to a library that is known not to count images."""
    return (kind.__module__ or "").partition(".")[0] not in _WITHOUT_COUNTS


_SINGLE = (Number, np.generic, str, bytes, Enum)
_FEW = 64
"""Largest number of values of a tensor or array that may be counts."""
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
    """The objects in the closure of a function."""
    found: list[object] = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is empty
            found.append(cell.cell_contents)
    return found


def _in_slots(value: object) -> list[object]:
    """The objects held by an object without a dictionary of its own."""
    names = [name for kind in type(value).__mro__ for name in _names_of_slots(kind)]
    return [getattr(value, name) for name in names if hasattr(value, name)]


def _names_of_slots(kind: type) -> tuple[str, ...]:
    names = vars(kind).get("__slots__", ()) if _counts(kind) else ()
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
"""Types of objects that a copy and its original may share without harm."""


def _reaches(function: FunctionType, held: set[int], depth: int) -> bool:
    """Whether a function can reach one of these objects: by its closure, defaults or module's names."""
    values: list[object] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    values += _read_by(function)
    if any(id(value) in held for value in values):
        return True
    inner = (value for value in values if isinstance(value, FunctionType))
    return depth > 0 and any(_reaches(each, held, depth - 1) for each in inner)


def _sums(tensor: Tensor) -> object:
    """Numbers that change with a tensor's values, also where `.data` or NumPy hide the change from its version."""
    sums: list[str] = []
    with torch.no_grad(), contextlib.suppress(Exception):  # not every numeric type has sums
        sums.append(str(tensor.sum().item()))
        sums.append(str(torch.linalg.vector_norm(tensor).item()))
    return sums or None


def _version(value: object) -> object:
    """Something that changes with the value while the object remains; None: nothing does."""
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, GENERATORS):
        return state_of(value)
    return len(value) if isinstance(value, list | dict | deque | set) else None


def differ(before: list[tuple[object, object]], after: list[tuple[object, object]]) -> bool:
    """Whether something else is there, or the same in another version."""
    return len(before) != len(after) or any(
        old is not new or version != other for (old, version), (new, other) in zip(before, after, strict=True)
    )
