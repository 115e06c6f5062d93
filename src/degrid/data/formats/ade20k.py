"""ADE20K's scene parsing benchmark: its classes and its layout."""

from __future__ import annotations

import csv
import re
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import Pair, pair_up, read_text
from degrid.types import IGNORE_INDEX, LabelSpace, UserError, voc_palette

_NAME = "ADEChallengeData2016"
ADE_CLASSES = 150
ADE_RULE = MaskRule({0: IGNORE_INDEX, IGNORE_INDEX: IGNORE_INDEX, **{raw + 1: raw for raw in range(ADE_CLASSES)}})
"""From ADE20K's ids to train ids: 0, "other", is void; 1 to 150 are the classes 0 to 149."""


class Ade20k(DataFormat):
    """ADEChallengeData2016: images and annotations, each with training and validation."""

    wanted: ClassVar[str] = "ADEChallengeData2016 with images and annotations (ADE20K)"

    @cached_property
    def base(self) -> Path:
        """The folder with images and annotations."""
        return next((place for place in (self.path / _NAME, self.path) if (place / "annotations").is_dir()), self.path)

    @cached_property
    def _found(self) -> dict[str, tuple[list[Pair], list[Path]]]:
        """Pairs, and masks without an image, of each split."""
        images, masks = self.base / "images", self.base / "annotations"
        return {
            split: pair_up(images / folder, masks / folder)
            for split, folder in (("train", "training"), ("val", "validation"))
            if (images / folder).is_dir() and (masks / folder).is_dir()
        }

    @property
    def pairs(self) -> dict[str, list[Pair]]:
        """The images of each split, with their masks."""
        return {split: pairs for split, (pairs, _) in self._found.items()}

    def reason(self) -> str:
        """See `DataFormat`. Other data may be laid out alike, and their id 0 is not void."""
        names = [pair.name for pairs in self.pairs.values() for pair in pairs]
        if not names:
            return ""
        if self.base.name == _NAME:
            return f"a folder called {_NAME}"
        table = _table(self.base)
        if table:
            return table.name
        return (
            "files called ADE_train_.., ADE_val_.."
            if all(n.startswith(("ADE_train_", "ADE_val_")) for n in names)
            else ""
        )

    def layout(self) -> Layout:
        """See `DataFormat`.

        Raises:
            UserError: objectInfo150 beside the data is of another form.
        """
        labels, rule = class_table(self.base)
        if labels is None or len(labels) == ADE_CLASSES:
            labels, rule = labels or LabelSpace(_names(self.base), voc_palette(ADE_CLASSES)), ADE_RULE
        orphans = [mask for _, lost in self._found.values() for mask in lost]
        return Layout(self.base, self.pairs, labels, rule, orphans)


def _table(base: Path) -> Path | None:
    return next((file for end in ("txt", "csv") if (file := base / f"objectInfo150.{end}").is_file()), None)


def _names(base: Path) -> tuple[str, ...]:
    """The first name of each class in objectInfo150; without that file "object 1" to "object 150".

    "class 0" would not do: names of that form mark classes that were counted in the masks, whose ids are not remapped.
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
