"""CamVid: its eleven classes, and the layout of SegNet's authors."""

from __future__ import annotations

import re
from pathlib import Path

from degrid.data.formats.benchmarks.common import with_table
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import pair_folders
from degrid.types import LabelSpace

_CLASSES = (
    ("Sky", (128, 128, 128)),
    ("Building", (128, 0, 0)),
    ("Pole", (192, 192, 128)),
    ("Road", (128, 64, 128)),
    ("Pavement", (60, 40, 222)),
    ("Tree", (128, 128, 0)),
    ("SignSymbol", (192, 128, 128)),
    ("Fence", (64, 64, 128)),
    ("Car", (64, 0, 128)),
    ("Pedestrian", (64, 64, 0)),
    ("Bicyclist", (0, 128, 192)),
)
CAMVID = LabelSpace(tuple(row[0] for row in _CLASSES), tuple(row[1] for row in _CLASSES))
_FRAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_.*")


class CamVid(DataFormat):
    """train and trainannot, and so on, as SegNet's authors laid it out: 11 classes; 11 is void.

    Other data in such folders count as split folders: CamVid is recognised by the folder's name, or by its frames'.
    """

    wanted = "train and trainannot in a folder called CamVid, or with its frames (CamVid)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        splits, orphans = pair_folders({s: (path / s, path / f"{s}annot") for s in ("train", "val", "test")})
        images = (pair.image.name for pairs in splits.values() for pair in pairs)
        if "camvid" not in path.resolve().name.lower() and not any(map(_FRAME.fullmatch, images)):
            return None
        reason = ", ".join(f"{split} and {split}annot" for split in splits)
        return Layout(reason, path, splits, *with_table(path, CAMVID, MaskRule.plain(CAMVID, void=(11,))), orphans)
