"""PASCAL Context: labels of whole scenes for the images of VOC 2010."""

from __future__ import annotations

from pathlib import Path

from degrid.data.formats.benchmarks.common import benchmark, from_one
from degrid.data.formats.benchmarks.voc import voc_base
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.pairs import DIVIDED, divided, pair_up, select, split_files
from degrid.data.formats.tools.label_files import read_numbered_names
from degrid.types import LabelSpace, UserError, voc_palette

_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow table dog horse motorbike person pottedplant sheep sofa "
    "train tvmonitor bag bed bench book building cabinet ceiling cloth computer cup door fence floor flower food grass "
    "ground keyboard light mountain mouse curtain platform sign plate road rock shelves sidewalk sky snow bedclothes "
    "track tree truck wall water window wood"
)
CONTEXT = LabelSpace(tuple(_NAMES.split()), voc_palette(60)[1:])
"""The 59 classes in the order of Detail's API and mmsegmentation, whose files have the ids 1 to 59."""
# The folders of labels, and the file that names their classes; "" for the order above.
_FOLDERS = (
    ("SegmentationClassContext", ""),
    ("59_context_labels", "59_labels.txt"),
    ("33_context_labels", "33_labels.txt"),
)


class PascalContext(DataFormat):
    """JPEGImages of VOC 2010 and SegmentationClassContext, or 59_context_labels and 59_labels.txt (also with 33).

    0, all other things, is void. The labels of 459 classes (.mat) are too many to train on.
    """

    wanted = "JPEGImages and SegmentationClassContext, or 59_context_labels (PASCAL Context)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: the file of names is missing, or there are only the labels of 459 classes.
        """
        base = voc_base(path)
        if base is None:
            return None
        for folder, names in _FOLDERS:
            place = next((top / folder for top in (base, path) if (top / folder).is_dir()), None)
            if place is not None:
                return self._read(base, place, names)
        if any((top / "trainval").is_dir() and any((top / "trainval").glob("*.mat")) for top in (base, path)):
            raise UserError(
                f"{path} holds the 459 classes of PASCAL Context, and degrid has at most 255: add 59_context_labels "
                "and 59_labels.txt of the benchmark"
            )
        return None

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
        notes = [] if any(chosen.values()) else [DIVIDED]
        if (base / "SegmentationClass").is_dir():
            notes.append("SegmentationClass, with VOC's classes, is not read; for these: --data VOC=FOLDER")
        labels = _named(folder.parent / names) if names else CONTEXT
        rule = from_one(len(labels), names or "PASCAL Context")
        splits = chosen if any(chosen.values()) else divided(pairs)
        return benchmark(f"JPEGImages and {folder.name}", base, splits, labels, rule, notes, orphans)


def _named(file: Path) -> LabelSpace:
    """The classes that the file of names numbers from 1; a row 0 is void."""
    if not file.is_file():
        raise UserError(f"{file.parent} holds labels without names; put {file.name} of the benchmark there")
    rows = [row for row in read_numbered_names(file) if row.value]
    if [row.value for row in rows] != list(range(1, len(rows) + 1)):
        raise UserError(f'{file}: expected lines "1: aeroplane", "2: ..", numbered without a gap')
    return LabelSpace(tuple(row.name for row in rows), voc_palette(len(rows) + 1)[1:])
