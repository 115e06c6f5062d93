"""PASCAL VOC: its classes, and its layout, which the exports of annotation tools share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from degrid.data.formats.classes import class_table
from degrid.data.formats.folder_names import IMAGE_FOLDERS
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.lists import Lists
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pair_lists import select, split_files
from degrid.data.formats.pairs import (
    Pair,
    divided,
    images_in,
    labelled,
    no_images,
    splits_or_divided,
    unread_note,
    with_val,
)
from degrid.data.formats.tools.label_files import label_file
from degrid.types import IGNORE_INDEX, LabelSpace, voc_palette

_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)
VOC = LabelSpace(tuple(_NAMES.split()), voc_palette(21))
_PLAIN = MaskRule.plain(VOC)
VOC_RULE = MaskRule(_PLAIN.ids, {**_PLAIN.colors, (224, 224, 192): IGNORE_INDEX}, "VOC")
"""255 is void, and so is the colour that VOC's palette gives it."""
# Best first; labelme exports the last.
_MASKS = ("SegmentationClassAug", "SegmentationClass", "SegmentationClassPNG")

_LISTS = "ImageSets/Segmentation"
_FOLDER = re.compile(r"VOC20(0[5-9]|1[0-2])")
_IMAGE = re.compile(r"20(0[5-9]|1[0-2])_\d+")


def voc_base(root: Path) -> Path | None:
    """The folder with JPEGImages: `root`, or VOC2012 and the like below it; None where there is none."""
    places = (root, *sorted(root.glob("VOC20*")), *sorted(root.glob("VOCdevkit/VOC20*")))
    return next((place for place in places if (place / "JPEGImages").is_dir()), None)


class Voc(DataFormat):
    """JPEGImages and SegmentationClass, with the lists of ImageSets/Segmentation as splits.

    CVAT ("Segmentation mask 1.1") and Datumaro name the classes in labelmap.txt beside these, labelme in
    class_names.txt, PaddleX in labels.txt.
    """

    wanted = "JPEGImages and SegmentationClass (VOC)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: there are masks and no images at all.
        """
        folders = _mask_folders(voc_base(path))
        if not folders:
            _refuse_masks_alone(path)
            return None
        base = folders[0].parent
        # Later entries win, so that the best folder comes last.
        masks = {name: file for folder in reversed(folders) for name, file in _by_name(folder).items()}
        images = _by_name(base / "JPEGImages")
        splits = _splits(base, images, masks) or _of_pairs(base)
        if splits:
            # Tools list images on which nothing was drawn, too.
            # VOC's own lists are of images with a segmentation; others list all images.
            whole = not label_file(base) and split_files(base / _LISTS, any_name=True)
            splits, left_out = (splits, []) if whole else labelled(splits)
            splits, notes = _with_val(splits)
            notes += left_out
        else:
            # JPEGImages holds many photographs without a segmentation; only those with one count.
            splits, notes = divided([Pair(name, images[name], masks[name]) for name in sorted(masks) if name in images])
        labels, rule = class_table(base)
        if labels is None and _is_voc(base, images):
            labels, rule = VOC, VOC_RULE
        notes = [*notes, *unread_note(base / "JPEGImages")]
        orphans = [mask for name, mask in masks.items() if name not in images]
        reason = " and ".join(["JPEGImages", *(folder.name for folder in folders)])
        how_to_add = "a list ImageSets/Segmentation/{split}.txt"
        return Layout(reason, base, splits, labels, rule, orphans, notes, how_to_add)


def _with_val(splits: dict[str, list[Pair]]) -> tuple[dict[str, list[Pair]], list[str]]:
    """The splits, where one list that is everything is divided, and train without another list is, too; and notes."""
    splits, notes = splits_or_divided(splits)
    return with_val(splits) if {*splits} <= {"train", "test"} and not notes else (splits, notes)


def _refuse_masks_alone(path: Path) -> None:
    masks = next(iter(_mask_folders(path)), None)
    if masks and not any((path / name).is_dir() for name in IMAGE_FOLDERS):
        raise no_images(masks, path / "JPEGImages")


def _by_name(folder: Path) -> dict[str, Path]:
    """The files by their paths in the folder without suffix, which lists name: CVAT keeps sub-folders."""
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in images_in(folder)}


def _is_voc(base: Path, names: Iterable[str]) -> bool:
    """Whether the images are VOC's own, by the folder's name or by theirs; other images have other classes."""
    return bool(_FOLDER.match(base.name)) or all(map(_IMAGE.fullmatch, names))


def _mask_folders(base: Path | None) -> list[Path]:
    return [base / name for name in _MASKS if (base / name).is_dir()] if base else []


def _splits(base: Path, images: dict[str, Path], masks: dict[str, Path]) -> dict[str, list[Pair]]:
    """The pairs that each list of ImageSets/Segmentation names, or train.txt and the like elsewhere; empty without
    lists."""
    pairs = [Pair(name, image, masks.get(name)) for name, image in images.items()]
    lists = split_files(base / _LISTS, any_name=True)
    others = (*sorted((base / "ImageSets").glob("Segmentation*/")), base / "ImageSets", base / "ImageSets/Main", base)
    lists = lists or next((found for folder in others if (found := split_files(folder))), {})
    return {split: select(names, pairs, base / "JPEGImages") for split, names in lists.items()}


def _of_pairs(base: Path) -> dict[str, list[Pair]]:
    """The splits of lists with lines "/JPEGImages/a.jpg /SegmentationClassAug/a.png", as of ImageSets/SegmentationAug;
    empty without such lists."""
    places = (base, *sorted((base / "ImageSets").glob("*/")))
    found = next(filter(None, (Lists(base).find(place) for place in places)), None)
    splits = found.splits if found else {}
    return {split: [pair for pair in pairs if isinstance(pair, Pair)] for split, pairs in splits.items()}
