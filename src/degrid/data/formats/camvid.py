"""CamVid: its eleven classes, and the layout of SegNet's authors."""

from __future__ import annotations

from typing import ClassVar

from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import pair_up
from degrid.types import LabelSpace

CAMVID = LabelSpace(
    (
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    (
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)


class CamVid(DataFormat):
    """train and trainannot, and so on, as SegNet's authors laid it out: 11 classes; 11 is void."""

    wanted: ClassVar[str] = "train and trainannot (CamVid)"

    def _splits(self) -> list[str]:
        names = ("train", "val", "test")
        return [name for name in names if (self.path / name).is_dir() and (self.path / f"{name}annot").is_dir()]

    def reason(self) -> str:
        """See `DataFormat`."""
        return ", ".join(f"{split} and {split}annot" for split in self._splits())

    def layout(self) -> Layout:
        """See `DataFormat`."""
        found = {split: pair_up(self.path / split, self.path / f"{split}annot") for split in self._splits()}
        orphans = [mask for _, lost in found.values() for mask in lost]
        splits = {split: pairs for split, (pairs, _) in found.items()}
        return Layout(self.path, splits, CAMVID, MaskRule.plain(CAMVID, void=(11,)), orphans)
