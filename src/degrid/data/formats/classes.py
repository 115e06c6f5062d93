"""The class table stored beside the images."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
import re
from dataclasses import replace
from pathlib import Path

from degrid.data.formats.class_rows import ClassRow, labels_and_rule
from degrid.data.formats.class_text import is_header, rows_of_lines, rows_of_table
from degrid.data.formats.class_values import VALUE_FILES, read_values_table
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.tools.label_files import label_file, named_lines, tool_classes
from degrid.files import read_text, walk, write_text
from degrid.image import IMAGE_SUFFIXES
from degrid.lookup import some
from degrid.types import LabelSpace, UserError

_TABLES = ("classes.csv", "classes.tsv", "class_dict.csv", "class_dict_seg.csv", "label_class_dict.csv")
_NAME_FILES = ("classes.txt", "class.txt", "class_names.txt", "classnames.txt", "codes.txt", "obj.names")
# Other names that look like lists of classes.
_LIKE_TABLES = re.compile(
    r"(.*\.names|(class(es)?|class_?names|labels?|label_?map|names|categories|id2label|palette|legend"
    r"|klassen?|legende|kategorien|clases|classi|categor[ií]as|catégories|etiquetas|étiquettes|类别|類別|классы"
    r"|(class_?|label_?)?colou?rs|(.*[-_ ])?colou?r_?map)"
    r"\.(csv|tsv|json|ya?ml|txt|names|xml|pbtxt|xlsx?))",
    re.IGNORECASE,
)


_MOST_FOLDERS = 50
"""Folders searched for a table that is in none of the usual places."""


def class_table(root: Path, but: str = "") -> tuple[LabelSpace | None, MaskRule | None]:
    """Read classes from classes.csv, class_dict.csv (id,name,r,g,b) and the like, or from a text file of names.

    Rows with the id 255 list the colours of void, and rows named void, ignore or unlabelled are void. Without an id
    column, all rows are numbered from 0, those of void, too. Ids with gaps, or from 1 on, are those in the masks, and
    the classes are numbered anew. Columns r,g,b may be missing. Without such a file, the one that an annotation tool
    wrote counts, such as labelmap.txt, then one in JSON or YAML, such as id2label.json, and then one such as
    labels.csv or colors.txt, if it holds names with ids or colours.

    Args:
        but: a file of this name does not count, since an annotation tool wrote it for its own numbers.
    Returns:
        The classes and the rule for reading their masks; (None, None) if there is no table.
    Raises:
        UserError: the columns differ, a value is not a number, an id is there twice, or two tables name other classes.
    """
    files = [file for file in _own_tables(root) if file.name != but]
    if files:
        found = [_classes_in(file) for file in files]
        other = next((file for file, classes in zip(files, found, strict=True) if classes[0] != found[0][0]), None)
        if other and {found[0][0].names} != {classes[0].names for classes in found}:
            raise UserError(f"{files[0]} and {other.name} beside it name different classes; keep the right one")
        _refuse_other_ids(files[0], found[0][0], but)
        return found[0]
    tools_file = label_file(root)
    if tools_file:
        return tool_classes(tools_file)
    values = _values_in(root, but)
    return _by_content(root) if values[0] is None else values


def _refuse_other_ids(file: Path, labels: LabelSpace, but: str) -> None:
    """Refuse a further table in which the same names have other ids.

    Raises:
        UserError: there is one.
    """
    others = [_by_content(file.parent)]
    with contextlib.suppress(UserError):  # it may be anything
        others.append(_values_in(file.parent, but))
    for other, rule in others:
        if other and rule and not rule.in_order and {*other.names} == {*labels.names} and other.names != labels.names:
            raise UserError(f"{file} and {rule.said} beside it number the classes differently; keep the right one")


def _values_in(root: Path, but: str) -> tuple[LabelSpace | None, MaskRule | None]:
    """The classes that a JSON or YAML file names."""
    for file in (root / name for name in VALUE_FILES if name != but):
        found = read_values_table(file) if file.is_file() else None
        if found:
            return labels_and_rule(found[0], file.name, file, found[1])
    return None, None


def _by_content(root: Path) -> tuple[LabelSpace | None, MaskRule | None]:
    """The classes of a file that is called like a table of them, and holds names with ids or colours.

    Nothing where several such files name different classes.
    """
    names = sorted(file for file in _files_in(root) if _LIKE_TABLES.fullmatch(file.name))
    files = [file for file in names if file.suffix.lower() in (".csv", ".tsv", ".txt")]
    found = [classes for file in files if (classes := _classes_by_content(file))]
    if not found or any(labels != found[0][0] for labels, _ in found):
        return None, None
    labels, rule = found[0]
    return labels, replace(rule, notes=(f"the classes are those of {rule.said}", *rule.notes))


def _classes_by_content(file: Path) -> tuple[LabelSpace, MaskRule] | None:
    """The classes in a file that may also hold something else, such as labels of whole images."""
    with contextlib.suppress(UserError):
        lines = named_lines(file)
        headed = bool(lines) and is_header(lines[0])
        rows, in_order = _read_table(file) if headed else rows_of_lines(lines)
        of_images = any(Path(row.name).suffix.lower() in IMAGE_SUFFIXES for row in rows)
        if rows and not of_images and (not in_order or all(row.colors or row.void for row in rows)):
            return labels_and_rule(rows, file.name, file, in_order)
    return None


def _own_tables(root: Path) -> list[Path]:
    """The tables of classes in a folder, whatever the case of their names; the first counts."""
    names = (*_TABLES, *_NAME_FILES)
    files = [file for file in _files_in(root) if file.name.lower() in names]
    return sorted(files, key=lambda file: names.index(file.name.lower()))


def _files_in(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:  # unlike Path.iterdir, this does not stat each of many files
        return [root / entry.name for entry in entries if entry.is_file()]


def _classes_in(file: Path) -> tuple[LabelSpace, MaskRule]:
    rows, in_order = _read_table(file) if file.name.lower() in _TABLES else _read_names(file)
    return labels_and_rule(rows, file.name, file, in_order)


def unread_tables(root: Path) -> str:
    """What to do with files that look like lists of classes, where no table is read; empty where there are none."""
    names = sorted(file.name for file in _files_in(root) if _LIKE_TABLES.fullmatch(file.name))
    if names:
        return f"{some(names, 3)} is not read: classes.csv (id,name,r,g,b), classes.txt or classes.json name them"
    folders = [*root.absolute().parents[:2], *(folder for folder, _ in itertools.islice(walk(root), _MOST_FOLDERS))]
    elsewhere = [folder / name for folder in folders for name in (*_TABLES, *_NAME_FILES) if (folder / name).is_file()]
    return f"{elsewhere[0]} is not read: it belongs in {root}" if elsewhere else ""


def _read_names(file: Path) -> tuple[list[ClassRow], bool]:
    lines = named_lines(file)
    if not lines:
        raise UserError(f"{file} is empty; expected one class name per line")
    return _read_table(file) if is_header(lines[0]) and len(lines) > 1 else rows_of_lines(lines)


def _read_table(file: Path) -> tuple[list[ClassRow], bool]:
    lines = read_text(file).splitlines()
    try:
        rows, in_order = rows_of_table(lines)
    except (ValueError, csv.Error) as error:
        rows, in_order = rows_of_lines([line.strip() for line in lines if line.strip()])  # perhaps without a header
        if any(re.search(r"[,;\t|]", row.name) for row in rows):
            raise UserError(f"{file}: expected the columns id,name,r,g,b with whole numbers ({error})") from error
    if all(row.void for row in rows):
        raise UserError(f"{file} names no class; expected the columns id,name,r,g,b and one row per class")
    return rows, in_order


def table_of(root: Path) -> Path | None:
    """The file in a folder that names classes, by its usual names; None where there is none."""
    places = (root / name for name in (*_TABLES, *_NAME_FILES))
    return next((place for place in places if place.is_file()), None) or label_file(root)


def table_by_content(root: Path) -> Path | None:
    """The only file in a folder that is called like a table of classes and holds names with ids or colours."""
    _, rule = _by_content(root)
    return root / rule.said if rule else None


def has_table(root: Path) -> bool:
    """Whether a folder holds a table with a row for each class."""
    return any((root / name).is_file() for name in _TABLES)


def table_in(folder: Path, labels: LabelSpace) -> Path | None:
    """The table of these classes in a folder, or None.

    Raises:
        UserError: the folder holds a table of other classes, or one that cannot be read.
    """
    found = next((folder / name for name in (*_TABLES, *_NAME_FILES) if (folder / name).is_file()), None)
    if found:
        there = class_table(folder)[0]
        if there is None or there.names != labels.names:
            raise UserError(f"{found} names classes other than those of the data; choose another folder to write to")
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
