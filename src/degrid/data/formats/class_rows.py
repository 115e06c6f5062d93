"""The classes, and the rule for reading their masks, from the rows of a table of classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from degrid.data.formats.masks import Color, MaskRule
from degrid.types import IGNORE_INDEX, LabelSpace, UserError, voc_palette

VOID_NAMES = (
    "void",
    "ignore",
    "ignored",
    "__ignore__",
    "unlabelled",
    "unlabeled",
    "don't care",
    "dont care",
    "dontcare",
)
"""Rows of these names, in any case, are void."""


# What a row with the id 255 may be called.
_MAY_BE_VOID = re.compile(
    "void|ignor|label|unknown|undefined|border|boundar|edge|contour|outline|care|data|none|nan|outside|excl|unclass|^$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ClassRow:
    """One row of a table.

    Attributes:
        number: the class's place in the table, or the id that the table gives it; 255 is void.
        name: of the class.
        colors: in colour masks; the first is the one to show it in. Without any it has VOC's colour.
        ids: in masks of ids; None: its number.
        ignored: a column of the table says that it is void; see `says_void`.
    """

    number: int
    name: str
    colors: tuple[Color, ...] = ()
    ids: tuple[int, ...] | None = None
    ignored: bool = False

    @property
    def values(self) -> tuple[int, ...]:
        """Its values in masks of ids."""
        return (self.number,) if self.ids is None else self.ids

    @property
    def void(self) -> bool:
        """Whether it is no class."""
        return self.number == IGNORE_INDEX or self.ignored or self.name.lower() in VOID_NAMES


def says_void(row: Mapping[Any, object]) -> bool:
    """Whether a column called ignore, void or the like, in any spelling, says yes."""
    said = (str(value).strip().lower() for key, value in row.items() if _SAYS_VOID.fullmatch(str(key)))
    return any(value in ("1", "true", "yes", "y", "x") for value in said)


_SAYS_VOID = re.compile(r"(is[ _-]?)?(void|ignored?)([ _-]?in[ _-]?eval)?", re.IGNORECASE)


def labels_and_rule(
    rows: Sequence[ClassRow], said: str, where: object, in_order: bool = False
) -> tuple[LabelSpace, MaskRule]:
    """The classes, numbered from 0 in the order of their numbers, and the rule. Void rows are no classes.

    A colour that two rows share says nothing in a colour mask, and is left out of the rule.

    Args:
        said, in_order: see `MaskRule`.
        where: the table, for messages.
    Raises:
        UserError: no class, too many, a name or an id twice, or 255 has a name that says neither class nor void.
    """
    rows = sorted(rows, key=lambda row: row.number)
    _refuse_ids_of_two(rows, where)
    rows = _with_white(rows, where)
    classes = [row for row in rows if not row.void]
    default = not any(row.colors for row in rows)
    palette = voc_palette(IGNORE_INDEX + 1)
    shown = tuple(
        row.colors[0] if row.colors else palette[row.number if 0 <= row.number < IGNORE_INDEX else index % IGNORE_INDEX]
        for index, row in enumerate(classes)
    )
    try:
        labels = LabelSpace(tuple(row.name for row in classes), shown)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    train = {row.number: index for index, row in enumerate(classes)}
    ids = {IGNORE_INDEX: IGNORE_INDEX}
    for row in rows:
        ids.update(dict.fromkeys(row.values, train.get(row.number, IGNORE_INDEX)))
    rule = MaskRule(
        ids,
        MaskRule.plain(labels).colors if default else _colors(rows, train),
        said,
        exact=any(row.ids is not None for row in rows),
        says_void=any(row.number == IGNORE_INDEX for row in rows),
        default_colors=default,
        notes=tuple(_void_note(rows, said)),
        renumbered=said_of_gaps([row.number for row in classes], said),
        in_order=in_order,
    )
    return labels, rule


def _refuse_ids_of_two(rows: Sequence[ClassRow], where: object) -> None:
    owners: dict[int, ClassRow] = {}
    for row in rows:
        for value in row.values:
            other = owners.setdefault(value, row)
            if other is not row and not (other.void and row.void):
                both = f'"{other.name}" and "{row.name}"'
                raise UserError(f"{where}: the id {value} belongs to both {both}; give each its own")


def _with_white(rows: Sequence[ClassRow], where: object) -> list[ClassRow]:
    """The rows, of which one with the id 255 is the last class if it has the name of one.

    Raises:
        UserError: its name may be that of a class or that of void.
    """
    found: list[ClassRow] = []
    for row in rows:
        if row.number == IGNORE_INDEX and re.match("back|other", row.name, re.IGNORECASE):
            raise UserError(
                f'{where}: 255 normally means void, but the table calls it "{row.name}"; call it void if it is not a '
                "class; otherwise give it the next id and list the values of all classes "
                "in dataset.yaml: ids: [0, .., 255]"
            )
        is_class = row.number == IGNORE_INDEX and not _MAY_BE_VOID.search(row.name)
        last = found[-1].number + 1 if found else 0
        found.append(replace(row, number=last, ids=(IGNORE_INDEX,)) if is_class and last < IGNORE_INDEX else row)
    return found


def _colors(rows: Sequence[ClassRow], train: dict[int, int]) -> dict[Color, int]:
    """The train id of each colour that belongs to one class or to void only."""
    found: dict[Color, set[int]] = {}
    for row in rows:
        for color in row.colors:
            found.setdefault(color, set()).add(train.get(row.number, IGNORE_INDEX))
    return {color: min(meant) for color, meant in found.items() if len(meant) == 1}


def _void_note(rows: Sequence[ClassRow], said: str) -> list[str]:
    void = [f"{row.number} ({row.name})" for row in rows if row.void and row.number != IGNORE_INDEX]
    return [f"{said}: {', '.join(void)} is void, which is no class"] if void else []


def said_of_gaps(ids: Sequence[int], said: str) -> str:
    """A sentence on classes whose ids are not 0, 1, 2, ..; empty where they are.

    Args:
        said: the table, for the sentence.
    """
    if [*ids] == [*range(len(ids))]:
        return ""
    return f"{said}: the ids {', '.join(map(str, ids))} become 0 to {len(ids) - 1}"
