"""The files in which annotation tools name their classes."""

from __future__ import annotations

import csv
import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from degrid.data.formats.class_rows import VOID_NAMES, ClassRow, said_of_gaps
from degrid.data.formats.class_text import rows_of_lines
from degrid.data.formats.masks import Color, MaskRule
from degrid.data.formats.pair_lists import read_names
from degrid.files import blaming, parse_json, read_text
from degrid.image import IMAGE_SUFFIXES
from degrid.types import IGNORE_INDEX, LabelSpace, UserError, voc_palette

BACKGROUND = "background"
_BACKGROUND_WORDS = re.compile(
    "background|bg|bckg|bkg|hintergrund|fond|arrièreplan|fondo|fundo|sfondo|achtergrond|bakgrund|bakgrunn|baggrund|tausta"
    "|tło|pozadí|pozadie|háttér|fundal|фон|背景|배경"
)


def is_background(name: str) -> bool:
    """Whether a class is what tools call pixels without a label."""
    return bool(_BACKGROUND_WORDS.fullmatch(re.sub(r"[\W_]+", "", unicodedata.normalize("NFC", name.lower()))))


class LabelRow(NamedTuple):
    """One class as a tool wrote it: its name, its colour in colour masks, and its value in masks of ids."""

    name: str
    color: Color | None
    value: int


def labels_of(rows: Iterable[LabelRow], file: Path, exact: bool = False) -> tuple[LabelSpace, MaskRule]:
    """Classes in the order of the rows, and the rule for their masks; rows with a name of void are void.

    Where no row has a colour, the rows have VOC's colours in order, as the tools give them. A colour that two rows
    share says nothing in a colour mask, and is left out of the rule.

    Args:
        exact: the file lists the values of the pixels; see `MaskRule`.
    Raises:
        UserError: no class, too many, or a name twice.
    """
    rows = list(rows)
    palette = voc_palette(len(rows))
    plain = all(row.color is None for row in rows)
    if plain:
        rows = [row._replace(color=color) for row, color in zip(rows, palette, strict=True)]
    written = [row.color for row in rows]
    ids: dict[int, int] = {IGNORE_INDEX: IGNORE_INDEX}
    colors: dict[Color, int] = {}
    names: list[str] = []
    shown: list[Color] = []
    for row, default in zip(rows, palette, strict=True):
        train = IGNORE_INDEX if row.name.lower() in VOID_NAMES else len(names)
        ids[row.value] = train
        if row.color is not None and written.count(row.color) == 1:
            colors[row.color] = train
        if train != IGNORE_INDEX:
            names.append(row.name)
            shown.append(row.color or default)
    try:
        labels = LabelSpace(tuple(names), tuple(shown))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return labels, MaskRule(ids, colors, file.name, exact, default_colors=plain)


def with_background(rows: list[LabelRow]) -> list[LabelRow]:
    """The rows, with a black background as value 0 in front where none has that name and none is black.

    Datumaro's CamVid and Cityscapes leave the background that they added out of the file. No other name, such as "bg",
    is one to Datumaro.
    """
    if any(row.name == BACKGROUND or row.color == (0, 0, 0) for row in rows):
        return rows
    color = (0, 0, 0) if any(row.color for row in rows) else None
    return [LabelRow(BACKGROUND, color, 0), *(row._replace(value=row.value + 1) for row in rows)]


def read_labelmap(file: Path) -> list[LabelRow]:
    """labelmap.txt of CVAT and Datumaro: "name:r,g,b:parts:actions" per line; the colour may be empty."""
    rows: list[LabelRow] = []
    for line in _lines(file):
        name, *rest = line.rsplit(":", 3) if line.count(":") >= 3 else line.split(":")
        color = _color(rest[0].split(","), file, line) if rest and rest[0].strip() else None
        rows.append(LabelRow(name.strip(), color, len(rows)))
    return rows


def background_first(rows: list[LabelRow]) -> list[LabelRow]:
    """The rows as `with_background`, with the background in front; numbered by their places."""
    rows = with_background(rows)
    ordered = sorted(rows, key=lambda row: row.name != BACKGROUND and row.color != (0, 0, 0))
    return [row._replace(value=value) for value, row in enumerate(ordered)]


def read_label_colors(file: Path) -> list[LabelRow]:
    """label_colors.txt of CVAT and Datumaro, and of CamVid: "r g b name" per line; the colour may be missing."""
    rows: list[LabelRow] = []
    for line in _lines(file):
        found = re.fullmatch(r"(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)", line)
        color = _color(found.groups()[:3], file, line) if found else None
        rows.append(LabelRow(found[4] if found else line, color, len(rows)))
    return rows


def read_dataset_meta(file: Path) -> list[LabelRow]:
    """dataset_meta.json of Datumaro: labels, and segmentation_colors of those in label_map."""
    with blaming(f"{file}: expected labels, label_map and segmentation_colors"):
        meta = parse_json(read_text(file))
        colors = dict(zip(meta.get("label_map", {}).values(), meta.get("segmentation_colors", []), strict=False))
        names = [str(name) for name in meta["labels"]]
    return [
        LabelRow(name, _color(colors[name], file, name) if name in colors else None, value)
        for value, name in enumerate(names)
    ]


def read_pixel_values(file: Path) -> list[LabelRow]:
    """_classes.csv of Roboflow's semantic masks: the columns "Pixel Value" and "Class"."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(read_text(file).splitlines()) if any(row)]
    if not rows or [cell.lower() for cell in rows[0]] != ["pixel value", "class"]:
        raise UserError(f"{file}: expected the columns Pixel Value, Class; got {', '.join(rows[0] if rows else ())}")
    return [LabelRow(", ".join(row[1:]), None, _number(row[0], file)) for row in rows[1:]]


def read_class_mapping(file: Path) -> list[LabelRow]:
    """class_mapping.csv of Darwin (V7): the columns class_name and class_color, a value or "r g b"."""
    rows: list[LabelRow] = []
    for row in csv.DictReader(read_text(file).splitlines()):
        name, color = row.get("class_name"), (row.get("class_color") or "").split()
        if not name or len(color) not in (1, 3):
            raise UserError(f'{file}: expected the columns class_name and class_color (a value, or "r g b"); got {row}')
        rgb = _color(color, file, name) if len(color) == 3 else None
        rows.append(LabelRow(name, rgb, len(rows) if rgb else _number(color[0], file)))
    return rows


def named_lines(file: Path) -> list[str]:
    """The lines of a list of names, without comments, and the "__ignore__" in front that labelme counts as -1.

    Further below it is a class of its own number to PaddleSeg's labelme2seg.py, and void here.
    """
    written = read_names(file)
    lines = [line for line in written if not re.match(r"#(?![0-9a-fA-F]{6}\b)", line)] or written
    return lines[1:] if lines[:1] == ["__ignore__"] else lines


def read_numbered_names(file: Path) -> list[LabelRow]:
    """labels.txt of PaddleX and PaddleSeg: a name per line, or "id: name"; and PaddleX's class_name_to_id.txt."""
    rows, _ = _numbered_names(file)
    return sorted((LabelRow(row.name, next(iter(row.colors), None), row.number) for row in rows), key=lambda r: r.value)


def _numbered_names(file: Path) -> tuple[list[ClassRow], bool]:
    """See `rows_of_lines`."""
    _lines(file)
    return rows_of_lines([line for line in named_lines(file) if not line.startswith("#")])


LABEL_FILES: dict[str, Callable[[Path], list[LabelRow]]] = {
    "labelmap.txt": read_labelmap,
    "label_colors.txt": lambda file: with_background(read_label_colors(file)),
    "dataset_meta.json": lambda file: with_background(read_dataset_meta(file)),
    "_classes.csv": read_pixel_values,
    "class_mapping.csv": read_class_mapping,
    "labels.txt": read_numbered_names,
    "class_name_to_id.txt": read_numbered_names,
}
"""Readers by the name of the file; where a folder has several, the first counts."""
# Those that list the values of pixels.
_VALUES = ("_classes.csv", "class_mapping.csv")
_NUMBERED = ("labels.txt", "class_name_to_id.txt", *_VALUES)


def label_file(folder: Path) -> Path | None:
    """The file of an annotation tool that names the classes of this folder."""
    files = (folder / name for name in LABEL_FILES)
    return next((file for file in files if file.is_file() and not _lists_images(file)), None)


def _lists_images(file: Path) -> bool:
    """Whether a labels.txt names label images, as other programs' lists of that name do."""
    lines = read_names(file) if file.name == "labels.txt" else []
    return any(Path(line).suffix.lower() in IMAGE_SUFFIXES for line in lines)


def tool_classes(file: Path) -> tuple[LabelSpace, MaskRule]:
    """The classes that a tool's file names, and the rule for reading their masks.

    Raises:
        UserError: the file is empty or of another form.
    """
    rows = LABEL_FILES[file.name](file)
    # Darwin lists either values or colours.
    labels, rule = labels_of(rows, file, exact=file.name in _VALUES and any(row.color is None for row in rows))
    in_order = file.name == "labels.txt" and _numbered_names(file)[1]
    return labels, dataclasses.replace(rule, in_order=in_order, renumbered=_numbered_anew(rows, file))


def _numbered_anew(rows: Iterable[LabelRow], file: Path) -> str:
    """A sentence on values with gaps, as PaddleX leaves them where a label was deleted; empty where there are none."""
    values = [row.value for row in rows if row.name.lower() not in VOID_NAMES]
    return said_of_gaps(values, file.name) if file.name in _NUMBERED else ""


def _lines(file: Path) -> list[str]:
    lines = [line for line in read_names(file) if not line.startswith("#")]
    if not lines:
        raise UserError(f"{file} is empty; expected one class per line")
    return lines


def _color(values: Iterable[object], file: Path, where: str) -> Color:
    written = [str(value).strip() for value in values]
    if len(written) != 3 or not all(value.isdecimal() and int(value) <= 255 for value in written):
        raise UserError(f'{file}: "{where}": a colour is three whole numbers from 0 to 255; got {", ".join(written)}')
    return int(written[0]), int(written[1]), int(written[2])


def _number(written: str, file: Path) -> int:
    if not written.isdecimal():
        raise UserError(f'{file}: expected whole numbers as values of pixels, got "{written}"')
    return int(written)
