"""PASCAL Context: labels of whole scenes for the images of VOC 2010."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from degrid.data.formats.benchmarks.common import benchmark, from_one
from degrid.data.formats.benchmarks.voc import voc_base
from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pair_lists import select, split_files
from degrid.data.formats.pairs import divided, pair_up
from degrid.data.formats.tools.label_files import read_numbered_names
from degrid.types import IGNORE_INDEX, LabelSpace, UserError, voc_palette

_NAMES = (
    "aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling chair cloth "
    "computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light motorbike mountain "
    "mouse person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow sofa table track train "
    "tree truck tvmonitor wall water window wood"
)
CONTEXT = LabelSpace(tuple(_NAMES.split()), voc_palette(60)[1:])
"""The 59 classes in alphabetical order, as mmsegmentation numbers them from 1."""
# Their ids among the 459 classes, which are numbered alphabetically, too.
_OF_459 = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159),
    *(162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368),
    *(397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
_RULE_459 = MaskRule(
    {
        **dict.fromkeys((*range(460), IGNORE_INDEX), IGNORE_INDEX),
        **{raw: train for train, raw in enumerate(_OF_459)},
    },
    said="PASCAL Context",
    exact=True,
)
# The folders of labels, and the file that names their classes; "" for the order above.
_FOLDERS = (
    ("SegmentationClassContext", ""),
    ("59_context_labels", "59_labels.txt"),
    ("33_context_labels", "33_labels.txt"),
)


class PascalContext(DataFormat):
    """JPEGImages of VOC 2010 and SegmentationClassContext, or 59_context_labels and 59_labels.txt (also with 33).

    0 is void. Of the 459 classes in trainval (.mat), these 59 are read, or those of the user's table.
    """

    wanted = "JPEGImages and SegmentationClassContext, 59_context_labels, or trainval (PASCAL Context)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: the file of names is missing.
        """
        base = voc_base(path)
        if base is None:
            return None
        for folder, names in _FOLDERS:
            place = next((top / folder for top in (base, path) if (top / folder).is_dir()), None)
            if place is not None:
                return self._read(base, place, names)
        place = next((top / "trainval" for top in (base, path) if any((top / "trainval").glob("*.mat"))), None)
        found = self._read(base, place, "") if place else None
        return found and _of_459(found, path)

    def _read(self, base: Path, folder: Path, names: str) -> Layout | None:
        pairs, orphans = pair_up(base / "JPEGImages", folder)
        pairs = [pair for pair in pairs if pair.mask]  # JPEGImages holds many photographs without these labels
        lists = base / "ImageSets"
        names_of = split_files(lists / "SegmentationContext") or split_files(lists / "Main")
        have = {pair.name for pair in pairs}
        chosen = {
            split: select([name for name in listed if name in have], pairs, base / "JPEGImages")
            for split, listed in names_of.items()
        }
        splits, notes = (chosen, list[str]()) if any(chosen.values()) else divided(pairs)
        if (base / "SegmentationClass").is_dir():
            notes.append("SegmentationClass, with VOC's classes, is not read; for these: --data VOC=FOLDER")
        labels = _named(folder.parent / names) if names else CONTEXT
        rule = from_one(len(labels), names or "PASCAL Context")
        return benchmark(f"JPEGImages and {folder.name}", base, splits, labels, rule, notes, orphans)


def _of_459(found: Layout, path: Path) -> Layout:
    """The layout of labels with 459 ids, more than a label can hold: ids that are not classes are void."""
    own, rule = class_table(path)
    if own is None or rule is None or rule.said == "labels.txt":
        found.labels, found.rule = CONTEXT, _RULE_459
        found.notes.append(
            f"of the 459 classes, the benchmark's {len(CONTEXT)} are read, and the others are void; for others, list "
            "up to 255 in classes.csv (id,name) with their ids in labels.txt"
        )
        return found
    found.labels = own
    found.rule = replace(rule, ids={**dict.fromkeys(range(460), IGNORE_INDEX), **rule.ids}, exact=True)
    return found


def _named(file: Path) -> LabelSpace:
    """The classes that the file of names numbers from 1; a row 0 is void."""
    if not file.is_file():
        raise UserError(f"{file.parent} holds labels without names; put {file.name} of the benchmark there")
    rows = [row for row in read_numbered_names(file) if row.value]
    if [row.value for row in rows] != list(range(1, len(rows) + 1)):
        raise UserError(f'{file}: expected lines "1: aeroplane", "2: ..", numbered without a gap')
    return LabelSpace(tuple(row.name for row in rows), voc_palette(len(rows) + 1)[1:])
