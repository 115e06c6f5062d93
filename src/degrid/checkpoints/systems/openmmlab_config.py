"""Configurations of OpenMMLab, which its trainings keep as Python text beside the weights; the text is never run."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from degrid.types import LabelSpace, UserError, voc_palette

_MAX_TEXT = 1 << 20  # characters; whole configurations have about 10,000


def configuration(meta: object) -> dict[str, Any]:
    """The assignments of the configuration in a checkpoint's `meta`; empty where there is none that can be read."""
    text = meta.get("config", meta.get("cfg")) if isinstance(meta, Mapping) else None
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        return {}
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=value):
                found[name] = _literal(value)
    return found


def classes(meta: object, count: int) -> LabelSpace | None:
    """The classes that a checkpoint's `meta` names; None where it names none, or another number of them."""
    if not isinstance(meta, Mapping):
        return None
    inner = meta.get("dataset_meta")  # since 1.0
    names, palette = meta.get("CLASSES"), meta.get("PALETTE")
    if isinstance(inner, Mapping):
        names, palette = inner.get("classes"), inner.get("palette")
    if not isinstance(names, list | tuple) or len(names) != count:
        return None
    colors: Any = voc_palette(count)
    if isinstance(palette, list | tuple) and len(palette) == count:
        colors = palette
    try:
        return LabelSpace(tuple(names), tuple(map(tuple, colors)))
    except (TypeError, UserError):
        return None


def section(settings: object, *keys: str) -> dict[str, Any]:
    """A dictionary in dictionaries; empty where there is none."""
    for key in keys:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings if isinstance(settings, dict) else {}


def numbers(value: object, kind: type[int] | type[float] = int) -> tuple[Any, ...] | None:
    """Whole numbers, or with `float` any; None where it is no list of them."""
    kinds = (int,) if kind is int else (int, float)
    if not isinstance(value, list | tuple) or not all(type(part) in kinds for part in value):
        return None
    return tuple(map(kind, value))


def _literal(node: ast.expr) -> Any:
    """What plain text stands for: numbers, text, lists and dictionaries; None for what would have to be run."""
    match node:
        case ast.Constant(value):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
        case ast.List(parts) | ast.Tuple(parts):
            return [_literal(part) for part in parts]
        case ast.Dict(keys, values):
            pairs = zip(keys, values, strict=True)
            return {key.value: _literal(value) for key, value in pairs if isinstance(key, ast.Constant)}
        case ast.Call(ast.Name("dict"), [], keywords):
            return {keyword.arg: _literal(keyword.value) for keyword in keywords if keyword.arg}
    return None
