"""Arguments fitted to their annotations: what is obviously meant is accepted, anything else is refused by name."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import os
import sys
import types
import typing
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from degrid.lookup import loaded
from degrid.types import UserError

P = ParamSpec("P")
R = TypeVar("R")


class _Later(type):
    """The type of classes that `later` makes."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, loaded(cls.__module__, cls.__name__))


def later(module: str, name: str) -> type:
    """A class for annotations that stands for one whose module is slow to import.

    A value is an instance if the program has loaded that module, and it is one of the class of that name there.
    """
    return _Later(name, (), {"__module__": module})


_SEVERAL = (collections.abc.Iterable, collections.abc.Sequence)
_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "True or False",
    type(None): "None",
    os.PathLike: "a path",
    Path: "a path",
    collections.abc.Callable: "a function",
    collections.abc.Mapping: "a dictionary",
    type: "a class",
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose arguments are fitted to their annotations, see `fitted`, and that runs in PyTorch's usual modes;
    for the verbs that notebooks call.

    Raises:
        UserError: at a call with an argument of another type.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        signature = inspect.signature(function)
        bound = signature.bind(*args, **kwargs)
        hints = typing.get_type_hints(function)
        verb = function.__qualname__.removesuffix(".__init__")
        for name, value in bound.arguments.items():
            if name in hints and signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = fitted(hints[name], value, f"{verb}({name}=...)")
        with _usual_modes():
            return function(*bound.args, **bound.kwargs)

    return call


def _usual_modes() -> ExitStack:
    """A context in which PyTorch records gradients and casts nothing, whatever the caller's `no_grad`,
    `inference_mode` or `autocast` say: receptive fields are gradients, and training needs them."""
    usual = ExitStack()
    torch: Any = sys.modules.get("torch")  # without torch loaded, none of these modes is on
    if torch is not None:
        if torch.is_inference_mode_enabled():
            usual.enter_context(torch.inference_mode(False))
        usual.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                usual.enter_context(torch.autocast(device, enabled=False))
    return usual


def check_fields(options: Any) -> None:
    """Fit the fields of a frozen dataclass to their annotations, as its `__post_init__` begins.

    Raises:
        UserError: a field of another type.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        where = f"{type(options).__name__}({field.name}=...)"
        object.__setattr__(options, field.name, fitted(hints[field.name], getattr(options, field.name), where))


def fitted(hint: Any, value: Any, where: str) -> Any:
    """A value as its annotation wants it.

    A whole number stands for two equal ones, such as the sides of a square, and any number or text for several; lists
    for tuples, 2.0 for 2, 1 for True, and `torch.device("cpu")` and `torch.float32` for their names.

    Args:
        where: the argument, for the message.
    Raises:
        UserError: it is something else.
    """
    try:
        return _fit(hint, value)
    except TypeError:
        shown = repr(value) if len(repr(value)) <= 60 else f"a value of type {type(value).__name__}"
        raise UserError(f"{where}: expected {_in_words(hint)}, got {shown}") from None


def _fit(hint: Any, value: Any) -> Any:
    """See `fitted`; raises TypeError."""
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Any or kind is object:
        return value
    if kind in (typing.Union, types.UnionType):
        return _fit_one(parts, value)
    if kind is tuple:
        return _fit_tuple(parts, value)
    if kind in (int, float, bool):
        return _fit_number(kind, value)
    if kind is str and type(value).__name__ in ("device", "dtype"):
        return str(value).removeprefix("torch.")
    if not isinstance(value, kind):
        raise TypeError
    return _fit_several(kind, parts[0], value) if kind in _SEVERAL else value


def _fit_one(hints: tuple[Any, ...], value: Any) -> Any:
    for hint in hints:
        try:
            return _fit(hint, value)
        except TypeError:
            continue
    raise TypeError


def _fit_several(kind: type, hint: Any, value: Any) -> Any:
    """Iterators, which can be consumed only once, are left as they are."""
    if isinstance(value, bytes):
        raise TypeError
    if kind is collections.abc.Sequence and isinstance(value, str):
        value = [value]
    return [_fit(hint, item) for item in value] if isinstance(value, list | tuple) else value


def _fit_tuple(hints: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    several = hints[-1] is Ellipsis
    if isinstance(value, numbers.Real):
        value = [value] * (1 if several else len(hints))
    if not isinstance(value, collections.abc.Sequence) or isinstance(value, str):
        raise TypeError
    each = [hints[0]] * len(value) if several else hints
    if len(each) != len(value):
        raise TypeError
    return tuple(_fit(hint, item) for hint, item in zip(each, value, strict=True))


def _fit_number(kind: type, value: Any) -> Any:
    """Numbers of other libraries are numbers too; numbers are truth values only if they are 0 or 1."""
    if isinstance(value, bool) and kind is not bool:
        raise TypeError
    if not isinstance(value, numbers.Real):
        raise TypeError
    try:
        number = kind(value)
    except (ValueError, OverflowError):  # no whole number is infinite
        number = None
    if number != value:
        raise TypeError
    return number


def _in_words(hint: Any) -> str:
    kind, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_in_words(part) for part in parts))
    if kind in _SEVERAL:
        return f"several of these: {_in_words(parts[0])}"
    if kind is tuple:
        return "numbers" if parts[-1] is Ellipsis else f"{len(parts)} numbers"
    name = kind.__name__
    return _WORDS.get(kind) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
