"""Rows of a table of classes from JSON and YAML, in the forms in which people and programs write them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from degrid.data.formats.class_rows import VOID_NAMES, ClassRow, says_void
from degrid.data.formats.class_text import written_color
from degrid.data.formats.masks import Color
from degrid.files import parse_json, parse_yaml, read_text
from degrid.types import IGNORE_INDEX

VALUE_FILES = (
    *("classes.json", "classes.yaml", "classes.yml", "class_names.json", "class_names.yaml", "id2label.json"),
    *("label2id.json", "labels.json", "labels.yaml", "labels.yml", "categories.json", "label_map.json", "dataset.json"),
    *("data.yaml", "data.yml"),
    "classes/classes.json",
)
"""Files that may hold such a table; the first that does is used. The last are nnU-Net's and SuperAnnotate's."""
_LARGEST = 1 << 20
"""Bytes; annotations are larger."""
_AROUND = ("classes", "names", "labels", "categories", "id2label", "label2id")
_NAME, _ID = (
    ("name", "title", "class", "label", "class_name"),
    ("id", "value", "index", "class_id", "pixel_value", "gray", "grey", "idx", "code"),
)
_COLOR = ("color", "colour", "rgb", "hex")
# Files of annotations hold categories, too, but their numbers are not those in masks.
_ANNOTATIONS = ("images", "annotations", "shapes")


def read_values_table(file: Path) -> tuple[list[ClassRow], bool] | None:
    """The classes that a JSON or YAML file names, and whether their order alone numbers them.

    None where the file holds something else.

    Raises:
        UserError: it is not UTF-8 text.
    """
    if file.stat().st_size > _LARGEST:
        return None
    with contextlib.suppress(ValueError):
        text = read_text(file)
        value = parse_json(text) if file.suffix.lower() == ".json" else parse_yaml(text)
        found = rows_of_values(value)
        return _on_black(found[0]) if found and file.parent.name == "classes" else found
    return None


def _on_black(rows: Sequence[ClassRow]) -> tuple[list[ClassRow], bool]:
    """SuperAnnotate's classes with the background, which is black in its masks and not in its file."""
    if any((0, 0, 0) in row.colors for row in rows):
        return [*rows], True
    numbered = [dataclasses.replace(row, number=place) for place, row in enumerate(rows, 1)]
    return [ClassRow(0, "background", ((0, 0, 0),)), *numbered], True


def rows_of_values(value: Any) -> tuple[list[ClassRow], bool] | None:
    """The rows, and whether their order alone numbers them; None where the value is no table of classes.

    A list of names; a list of tables with a name, and perhaps an id and a colour; or a table from ids to names, names
    to ids, names to colours, colours to names, or names to tables. All of these may stand under a key such as
    "classes".
    """
    if isinstance(value, Mapping):
        if any(key in value for key in _ANNOTATIONS):
            return None
        inside = next((value[key] for key in _AROUND if isinstance(value.get(key), list | dict)), None)
        return rows_of_values(inside) if inside is not None else _of_table(value)
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(each, str) for each in value):
        return [ClassRow(place, name.strip()) for place, name in enumerate(value)], True
    if not all(isinstance(each, Mapping) for each in value):
        return None
    return _of_parts([(_first(each, _NAME), _first(each, _ID), _first(each, _COLOR)) for each in value], value)


def _of_table(table: Mapping[Any, Any]) -> tuple[list[ClassRow], bool] | None:
    """The rows of a table whose keys are ids, names or colours."""
    pairs = [*table.items()]
    ids, colors = (all(map(test, table)) for test in (_is_number, _color))
    if all(isinstance(value, Mapping) for _, value in pairs):
        return _of_parts([_part_of(key, row, ids) for key, row in pairs], [*table.values()])
    if ids:
        return _of_parts([(value, key, None) for key, value in pairs])
    if all(_is_number(value) for _, value in pairs):
        return _of_parts([(key, value, None) for key, value in pairs])
    if all(_color(value) for _, value in pairs):
        return _of_parts([(key, None, value) for key, value in pairs])
    return _of_parts([(value, None, key) for key, value in pairs]) if colors else None


def _part_of(key: Any, row: Mapping[Any, Any], numbered: bool) -> tuple[Any, Any, Any]:
    """The name, id and colour of a class whose key is its id, or its name."""
    name, number = (_first(row, _NAME), key) if numbered else (key, _first(row, _ID))
    return name, number, _first(row, _COLOR)


def _of_parts(
    parts: Sequence[tuple[Any, Any, Any]], tables: Sequence[Mapping[Any, Any]] = ()
) -> tuple[list[ClassRow], bool] | None:
    """The rows of names, ids and colours, where the last two may be None; `tables`: all that is said of each.

    Numbers that are no ids of masks, as those in a tool's own store, count only by their order.
    """
    names = [name.strip() for name, _, _ in parts if isinstance(name, str) and name.strip()]
    colors = [color for _, _, color in parts]
    shown = [*map(_color, colors)]
    unread = colors.count(None) < shown.count(None)
    if not parts or len(names) < len(parts) or unread:
        return None
    said = _ids_of(parts)
    if said and not _are_ids(said, names):
        if not all(shown):
            return None
        said = []
    void = [*map(says_void, tables)] or [False] * len(names)
    rows = zip(said or range(len(names)), names, shown, void, strict=True)
    return [ClassRow(number, name, (color,) if color else (), ignored=v) for number, name, color, v in rows], not said


def _ids_of(parts: Sequence[tuple[Any, Any, Any]]) -> list[int]:
    return [number for number in (_number(written) for _, written, _ in parts) if number is not None]


def _are_ids(numbers: Sequence[int], names: Sequence[str]) -> bool:
    """Whether these can be the values in masks; those of void may be any."""
    if len({*numbers}) < len(names):
        return False
    both = zip(numbers, names, strict=True)
    return all(0 <= number <= IGNORE_INDEX or name.lower() in VOID_NAMES for number, name in both)


def _first(row: Mapping[Any, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def _is_number(value: Any) -> bool:
    return _number(value) is not None


def _number(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return int(value)
    except ValueError:
        return None


def _color(value: Any) -> Color | None:
    if isinstance(value, str):
        return written_color(value) if _number(value) is None else None
    is_rgb = isinstance(value, list) and len(value) == 3 and all(isinstance(each, int) for each in value)
    return written_color(" ".join(map(str, value))) if is_rgb else None
