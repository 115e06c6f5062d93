"""PASCAL VOC: its classes, and its layout, which labelme's exports share."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import DIVIDED, Pair, divided, images_in, select, split_files
from degrid.types import LabelSpace, voc_palette

_VOC_NAMES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
VOC = LabelSpace(tuple(_VOC_NAMES), voc_palette(21))
# The best first; labelme exports the last.
_MASKS = ("SegmentationClassAug", "SegmentationClass", "SegmentationClassPNG")


def voc_base(root: Path) -> Path | None:
    """The folder with JPEGImages: `root`, or VOC2012 and the like below it; None where there is none."""
    places = (root, *sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*")))
    return next((place for place in places if (place / "JPEGImages").is_dir()), None)


class Voc(DataFormat):
    """JPEGImages and SegmentationClass, with the lists of ImageSets/Segmentation as splits."""

    wanted: ClassVar[str] = "JPEGImages and SegmentationClass (VOC)"

    @cached_property
    def _base(self) -> Path:
        return voc_base(self.path) or self.path

    @cached_property
    def _mask_folders(self) -> list[Path]:
        return [self._base / name for name in _MASKS if (self._base / name).is_dir()]

    def reason(self) -> str:
        """See `DataFormat`."""
        if not (self._base / "JPEGImages").is_dir() or not self._mask_folders:
            return ""
        return " and ".join(["JPEGImages", *(folder.name for folder in self._mask_folders)])

    def layout(self) -> Layout:
        """See `DataFormat`."""
        photographs = self._base / "JPEGImages"
        # Later entries win, so that the best folder comes last.
        masks = {file.stem: file for folder in reversed(self._mask_folders) for file in images_in(folder)}
        images = {file.stem: file for file in images_in(photographs)}
        lists = split_files(self._base / "ImageSets" / "Segmentation", any_name=True)
        pairs = [Pair(name, image, masks.get(name)) for name, image in images.items()]
        splits = {split: select(names, pairs, photographs) for split, names in lists.items()}
        # JPEGImages holds many photographs without a segmentation: only those with one count.
        splits = splits or divided(
            [Pair(name, images[name], mask) for name, mask in sorted(masks.items()) if name in images]
        )
        labels, rule = class_table(self._base)
        if labels is None:
            labels, rule = VOC, MaskRule.plain(VOC)
        orphans = [mask for name, mask in masks.items() if name not in images]
        return Layout(self._base, splits, labels, rule, orphans, [] if lists else [DIVIDED])
