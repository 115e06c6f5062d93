"""The class table stored beside the images."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from degrid.data.formats.masks import Color, MaskRule
from degrid.data.formats.pairs import read_names, read_text
from degrid.data.formats.tools.label_files import VOID_NAMES, label_file, tool_classes
from degrid.files import write_text
from degrid.types import IGNORE_INDEX, LabelSpace, UserError, voc_palette

_TABLES = ("classes.csv", "class_dict.csv")
_NAME_FILES = ("classes.txt", "class_names.txt", "codes.txt")


def class_table(root: Path) -> tuple[LabelSpace | None, MaskRule | None]:
    """Read classes from classes.csv or class_dict.csv (id,name,r,g,b), or from a text file with one name per line.

    Rows with the id 255 list the colours of void. Without an id column, rows are numbered from 0 and rows named void,
    ignore or unlabelled are void. Without such a file, the one that an annotation tool wrote counts, such as
    labelmap.txt.

    Returns:
        The classes and the rule for reading their masks; (None, None) if there is no table.
    Raises:
        UserError: the columns differ, a value is not a number, or the ids have gaps.
    """
    for name in _TABLES:
        if (root / name).is_file():
            return _read_table(root / name)
    for name in _NAME_FILES:
        if (root / name).is_file():
            names = tuple(line for line in read_names(root / name) if line != "__ignore__")
            if not names:
                raise UserError(f"{root / name} is empty; expected one class name per line")
            labels = LabelSpace(names, voc_palette(len(names)))
            return labels, MaskRule.plain(labels, said=name)
    tools_file = label_file(root)
    return tool_classes(tools_file) if tools_file else (None, None)


def _read_table(file: Path) -> tuple[LabelSpace, MaskRule]:
    classes: list[tuple[int, str, Color]] = []
    void: dict[Color, int] = {}
    try:
        for row in csv.DictReader(read_text(file).splitlines()):
            name, color = row["name"].strip(), _color(row)
            is_void = int(row["id"]) == IGNORE_INDEX if "id" in row else name.lower() in VOID_NAMES
            if is_void:
                void[color] = IGNORE_INDEX
            else:
                classes.append((int(row.get("id", len(classes))), name, color))
    except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: expected the columns id,name,r,g,b with whole numbers ({error!r})") from error
    classes.sort()
    if not classes:
        raise UserError(f"{file} names no class; expected the columns id,name,r,g,b and one row per class")
    if [row[0] for row in classes] != list(range(len(classes))):
        raise UserError(f"{file}: ids must run from 0 without a gap; {IGNORE_INDEX} is void")
    labels = LabelSpace(tuple(row[1] for row in classes), tuple(row[2] for row in classes))
    rule = MaskRule.plain(labels)
    return labels, MaskRule(rule.ids, {**void, **rule.colors}, file.name)


def _color(row: Mapping[str, str]) -> Color:
    red, green, blue = (int(row[key]) for key in "rgb")
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"colour {red},{green},{blue}: expected 0 to 255")
    return red, green, blue


def table_in(folder: Path, labels: LabelSpace) -> Path | None:
    """The table of these classes in a folder, or None.

    Raises:
        UserError: the folder holds a table of other classes, or one that cannot be read.
    """
    found = next((folder / name for name in (*_TABLES, *_NAME_FILES) if (folder / name).is_file()), None)
    if found:
        there = class_table(folder)[0]
        if there is None or there.names != labels.names:
            raise UserError(f"{found} names other classes than the data have; choose another folder to write to")
    return found


def write_class_table(folder: Path, labels: LabelSpace) -> Path:
    """Write classes.csv for the data in a folder, unless it already holds a table of the same classes.

    Returns:
        The table's file.
    Raises:
        UserError: as `table_in`, or the folder is not writable.
    """
    found = table_in(folder, labels)
    if found:
        return found
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(("id", "name", "r", "g", "b"))
    rows.writerows((index, name, *labels.colors[index]) for index, name in enumerate(labels.names))
    write_text(folder / _TABLES[0], stream.getvalue())
    return folder / _TABLES[0]
