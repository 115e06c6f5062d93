"""Rows of a table of classes from text: columns with a header, or lines of names with ids and colours."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence

from degrid.data.formats.class_rows import ClassRow, says_void
from degrid.data.formats.masks import Color
from degrid.types import IGNORE_INDEX

_BETWEEN, _NUMBER = r"\s*[\s,;:=|]\s*", r"(\d+|#[0-9a-fA-F]{6})"
# Markers that lines of a list may begin with: hyphen, star, bullet, dash, or a number.
_MARK = re.compile(r"(?:[-*\u2022\u2013]|(\d+)[.)])\s+(?=\S)")
_IN_BRACKETS = re.compile(r"(?:rgb)?[\[(]\s*(\d+[\s,;]+\d+[\s,;]+\d+)\s*[\])]")  # colours
_FORMS = ((4, 0), (1, 3), (0, 4), (1, 1), (0, 2), (3, 0), (0, 3), (1, 0), (0, 1))
"""How many numbers may stand before and after a name, where a colour such as #804080 is one."""


def written_color(written: str) -> Color | None:
    """A colour such as "#FA3253", "250 50 83", "(250, 50, 83)" or "rgb(250, 50, 83)"; None for other texts."""
    found = re.fullmatch(r"\s*#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})\s*", written)
    if found:
        return int(found[1], 16), int(found[2], 16), int(found[3], 16)
    numbers = re.fullmatch(r"(?:rgb)?[\s(\[]*(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[\s)\]]*", written)
    if numbers is None or any(int(number) > 255 for number in numbers.groups()):
        return None
    return int(numbers[1]), int(numbers[2]), int(numbers[3])


def rows_of_lines(lines: Sequence[str]) -> tuple[list[ClassRow], bool]:
    """One class per line: a name, or a name with its id, its colour or both, in the same way in every line.

    Ids and colours stand before or after the name, between any marks: "2 crack", "crack: 2", "128 64 128 road",
    "0,road,128,64,128", "road #804080", "road: (128, 64, 128)", "2. crack". The marks of a list ("- crack")
    count for nothing. A single line with commas lists all names.

    Returns:
        The rows, and whether there are no ids, so that the order counts.
    """
    if lines and all(map(_MARK.match, lines)):
        lines = [_MARK.sub(lambda mark: f"{mark[1]} " if mark[1] else "", line, count=1) for line in lines]
    if len(lines) == 1 and "," in lines[0]:
        lines = [name.strip() for name in lines[0].split(",")]
    bare = [_IN_BRACKETS.sub(r"\1", line) for line in lines]
    for before, after in _FORMS:
        rows = _in_form(bare, before, after)
        if rows:
            return [row for row, _ in rows], not rows[0][1]
    return [ClassRow(number, line) for number, line in enumerate(lines)], True


def _in_form(lines: Sequence[str], before: int, after: int) -> list[tuple[ClassRow, bool]]:
    """The rows, and whether they have ids, where all lines have that many numbers before and after the name; else none.

    Names that end in numbers, such as "lane 1" and "lane 2", have no ids.
    """
    parts = [_NUMBER + _BETWEEN] * before + [r"(?P<name>[^\s,;:=|]|\S.*[^\s,;:=|])"] + [_BETWEEN + _NUMBER] * after
    form = re.compile("".join(parts))
    rows = []
    for place, found in enumerate(map(form.fullmatch, lines)):
        row = _row_of(found["name"], [n for k, n in enumerate(found.groups()) if k != before], place) if found else None
        if row is None:
            return []
        rows.append(row)
    names, numbers = {row.name for row, _ in rows}, {row.number for row, _ in rows}
    return rows if before or len(names) == len(numbers) == len(rows) else []


def _row_of(name: str, numbers: Sequence[str], place: int) -> tuple[ClassRow, bool] | None:
    """A row, and whether it has an id; None if the numbers are neither an id nor a colour."""
    has_id = len(numbers) in (2, 4) or (len(numbers) == 1 and not numbers[0].startswith("#"))
    shown = " ".join(numbers[has_id:])
    color = written_color(shown)
    if (shown and color is None) or (has_id and numbers[0].startswith("#")):
        return None
    return ClassRow(int(numbers[0]) if has_id else place, name, (color,) if color else ()), has_id


# What people call the columns, in lower case without "value", the likeliest first.
_NAMES = (
    "name|class name|classname|label name|category name|category|class|label|"
    "bezeichnung|klasse|nombre|clase|nom|classe|nome|名称|类别|名稱|類別|名前|クラス|название|класс"
)
_IDS = (
    "id|class id|classid|category id|label id|index|idx|value|pixel|mask|class|label|category|code|number|no|no.|nr|"
    "nummer|gray|grey|grayscale|greyscale|train id|trainid|wert|valor|valeur|编号|值"
)
_COLORS = "color|colour|rgb|hex|rgb color|color hex|hex color|farbe|couleur|colore|cor|颜色|顏色|色|цвет"
_RGB = ("r|red|rot|rouge|rojo", "g|green|grün|vert|verde", "b|blue|blau|bleu|azul")


def rows_of_table(lines: Sequence[str]) -> tuple[list[ClassRow], bool]:
    """The rows of a table with a header, in columns divided by commas, semicolons or tabs.

    Without ids, all rows are numbered from 0, those of void, too, as programs number them; 255 is void besides.
    Empty rows, as spreadsheets leave them below a table, are passed over.

    Returns:
        See `rows_of_lines`.
    Raises:
        ValueError: there is no column of names, or a value is not a whole number or no colour.
    """
    cells = [row for row in _cells(lines) if any(value.strip() for value in row.values())]
    columns = list(cells[0]) if cells else []
    name = _column(_NAMES, columns)
    if cells and not name:
        raise ValueError(f"no column of names among {', '.join(columns)}")
    others = [column for column in columns if column != name and not _is_of_words(column, cells)]
    number = _column(_IDS, others)
    _refuse_other_numbers(cells, [] if number else others)
    rows: list[ClassRow] = []
    for row in cells:
        color = _color_in(row)
        value = _whole(row[number]) if number else len(rows)
        rows.append(ClassRow(value, row[name].strip(), (color,) if color else (), ignored=says_void(row)))
    return (rows, False) if number else ([*rows, *_also_void(rows)], True)


def _is_of_words(column: str, cells: Sequence[Mapping[str, str]]) -> bool:
    """Whether a column that may hold names or ids, such as "category", holds no ids."""
    return column in _NAMES.split("|") and not all(row[column].strip().isdigit() for row in cells)


def _refuse_other_numbers(cells: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """Refuse a table whose order would count while another column numbers the rows in another order."""
    for column in columns:
        said = [row[column].strip() for row in cells]
        numbered = all(re.fullmatch(r"\d{1,5}", each) for each in said) and len({*said}) == len(said) > 1
        if numbered and column not in "|".join(_RGB).split("|") and [*map(int, said)] != [*range(len(said))]:
            raise ValueError(f'are the numbers in the column "{column}" the ids? Call it id, or leave it out')


def is_header(line: str) -> bool:
    """Whether a line names the columns of a table of classes."""
    columns = [*next(_cells([line, re.sub(r"[^,;\t]+", "x", line)]), {})]
    name = _column(_NAMES, columns)
    return (
        len(columns) > 1 and bool(name) and bool(_column(f"{_IDS}|{_COLORS}|{'|'.join(_RGB)}", [*{*columns} - {name}]))
    )


def _also_void(rows: Sequence[ClassRow]) -> list[ClassRow]:
    """A row that makes 255 void, if another row is void."""
    void = next((row for row in rows if row.void), None)
    return [ClassRow(IGNORE_INDEX, void.name)] if void and len(rows) <= IGNORE_INDEX else []


def _cells(lines: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows by column, whose names are in small letters and without "value"."""
    delimiter = max(",;\t", key=lines[0].count) if lines else ","
    for row in csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True, restval=""):
        named = ((re.sub(r"[\s_-]+", " ", key).strip().lower(), value) for key, value in row.items() if key)
        yield {key.removesuffix(" value"): value for key, value in named}


def _column(called: str, columns: Sequence[str]) -> str:
    return next((column for column in called.split("|") if column in columns), "")


def _color_in(row: Mapping[str, str]) -> Color | None:
    """The colour of a row; None where no column holds it.

    Raises:
        ValueError: it is no colour.
    """
    rgb = [_column(names, [*row]) for names in _RGB]
    one = _column(_COLORS, [*row])
    if any(rgb):
        if not all(rgb):
            raise ValueError("a colour has the columns r, g and b")
        written = " ".join(str(_whole(row[column])) for column in rgb)
    elif one:
        written = row[one]
    else:
        return None
    color = written_color(written)
    if color is None:
        raise ValueError(f"colour {written}: expected 0 to 255, three times, or #804080")
    return color


def _whole(written: str) -> int:
    """A whole number, which spreadsheets may write as 3.0.

    Raises:
        ValueError: it is not one.
    """
    number = float(written)
    if number != int(number):
        raise ValueError(f"{written} is not a whole number")
    return int(number)
