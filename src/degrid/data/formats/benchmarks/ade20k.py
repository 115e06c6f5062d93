"""ADE20K's scene parsing benchmark: its classes and its layout."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import Pair, pair_folders
from degrid.files import read_text
from degrid.types import IGNORE_INDEX, LabelSpace, UserError, voc_palette

_NAME = "ADEChallengeData2016"
_SPLITS = {"train": "training", "val": "validation"}
ADE_CLASSES = 150
ADE_RULE = MaskRule({0: IGNORE_INDEX, IGNORE_INDEX: IGNORE_INDEX, **{raw + 1: raw for raw in range(ADE_CLASSES)}})
"""From ADE20K's ids to train ids: 0, "other", is void; 1 to 150 are the classes 0 to 149."""


class Ade20k(DataFormat):
    """ADEChallengeData2016: images and annotations, each with training and validation."""

    wanted = "ADEChallengeData2016 with images and annotations (ADE20K)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: objectInfo150 beside the data is of another form.
        """
        base = next((place for place in (path / _NAME, path) if (place / "annotations").is_dir()), path)
        splits, orphans = ade_pairs(base)
        reason = _reason(base, [pair.name for pairs in splits.values() for pair in pairs])
        if not reason:
            return None
        labels, rule = class_table(base)
        if labels is None or len(labels) == ADE_CLASSES:
            labels, rule = labels or LabelSpace(_names(base), voc_palette(ADE_CLASSES)), ADE_RULE
        return Layout(reason, base, splits, labels, rule, orphans)


def ade_pairs(base: Path) -> tuple[dict[str, list[Pair]], list[Path]]:
    """The images of each split with their masks, and the masks without an image."""
    return pair_folders({split: (base / "images" / f, base / "annotations" / f) for split, f in _SPLITS.items()})


def _reason(base: Path, names: list[str]) -> str:
    """What distinguishes the benchmark from other data laid out alike, whose id 0 is not void; "" if nothing does."""
    if not names:
        return ""
    if base.name == _NAME:
        return f"a folder called {_NAME}"
    table = _table(base)
    if table:
        return table.name
    return "files called ADE_train_.." if all(name.startswith(("ADE_train_", "ADE_val_")) for name in names) else ""


def _table(base: Path) -> Path | None:
    return next((file for end in ("txt", "csv") if (file := base / f"objectInfo150.{end}").is_file()), None)


def _names(base: Path) -> tuple[str, ...]:
    """The first name of each class in objectInfo150; without that file "object 1" to "object 150".

    Not "class 0": that prefix marks classes guessed by scanning masks, whose ids are not remapped.
    """
    file = _table(base)
    if file is None:
        return tuple(f"object {raw}" for raw in range(1, ADE_CLASSES + 1))
    text = read_text(file)
    delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    header = [cell.strip() for cell in rows[0]] if rows else []
    try:
        index, name = header.index("Idx"), header.index("Name")
        names = {int(row[index]): re.split("[,;]", row[name])[0].strip() for row in rows[1:]}
    except (ValueError, IndexError) as error:
        raise UserError(f"{file}: expected the columns Idx and Name, and a row per class ({error})") from error
    if sorted(names) != list(range(1, ADE_CLASSES + 1)):
        raise UserError(f"{file}: expected the classes 1 to {ADE_CLASSES}, got {len(names)} classes")
    return tuple(names[raw] for raw in range(1, ADE_CLASSES + 1))
