"""Folders of images and masks whose file names say what belongs together."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import SPLIT_NAMES, DataFormat, Layout, split_of
from degrid.data.formats.pairs import (
    DIVIDED,
    MASK_ENDINGS,
    Pair,
    divided,
    images_in,
    match_names,
    pair_up,
    read_names,
    select,
    split_files,
)

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages", "photos")
MASK_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "label",
    "annotations",
    "annotation",
    "annots",
    "gt",
    "ground_truth",
    "groundtruth",
    "segmentation",
    "segmentations",
    "SegmentationClass",
)
# Endings of a mask folder beside the image folder: train and trainannot, train and train_labels.
_FOLDER_ENDINGS = ("_labels", "_label", "_masks", "_mask", "annot", "_annot")


class SplitFolders(DataFormat):
    """train/images and train/masks, or train and train_labels, and so on."""

    wanted: ClassVar[str] = "train/images and train/masks, or train and train_labels"

    @cached_property
    def _found(self) -> dict[str, tuple[Path, Path]]:
        """The folders of images and of masks, by the name of the split's folder."""
        found = {}
        folders = _folders(self.path)
        for name, folder in folders.items():
            if name.lower() not in SPLIT_NAMES:
                continue
            beside = next((folders[name + ending] for ending in _FOLDER_ENDINGS if name + ending in folders), None)
            inner = _image_and_mask_folders(folder) or (beside and (folder, beside))
            if inner:
                found[name] = inner
        return found

    def reason(self) -> str:
        """See `DataFormat`."""
        below = [
            " and ".join(folder.relative_to(self.path).as_posix() for folder in two) for two in self._found.values()
        ]
        return ", ".join(below)

    def layout(self) -> Layout:
        """See `DataFormat`."""
        found = {split_of(name): pair_up(*folders) for name, folders in self._found.items()}
        orphans = [mask for _, lost in found.values() for mask in lost]
        return Layout(
            self.path, {split: pairs for split, (pairs, _) in found.items()}, *class_table(self.path), orphans
        )


class Folders(DataFormat):
    """images/ and masks/, divided by sub-folders, by train.txt and val.txt, or not at all."""

    wanted: ClassVar[str] = "images/ and masks/ (or labels/, annotations/) with files of the same names"

    def reason(self) -> str:
        """See `DataFormat`."""
        return " and ".join(folder.name for folder in _image_and_mask_folders(self.path) or ())

    def layout(self) -> Layout:
        """See `DataFormat`."""
        folders = _image_and_mask_folders(self.path)
        assert folders
        pairs, orphans = pair_up(*folders)
        splits, notes = self._divided(pairs, folders[0])
        return Layout(self.path, splits, *class_table(self.path), orphans, notes)

    def _divided(self, pairs: list[Pair], images: Path) -> tuple[dict[str, list[Pair]], list[str]]:
        """The splits, and what was decided about them."""
        listed = split_files(self.path)
        if listed:
            splits = {split: select(names, pairs, images) for split, names in listed.items()}
            chosen = {pair.name for split in splits.values() for pair in split}
            unlisted = sum(pair.name not in chosen for pair in pairs)
            return splits, [f"{unlisted} images are in none of the lists and are left out"] if unlisted else []
        splits = {}
        for pair in pairs:
            top, _, below = pair.name.partition("/")
            split = SPLIT_NAMES.get(top.lower()) if below else None
            if split:
                splits.setdefault(split, []).append(pair)
        if not splits:
            return divided(pairs), [DIVIDED]
        others = len(pairs) - sum(map(len, splits.values()))
        return splits, [f"{others} images are in the folder of no split and are left out"] if others else []


class SideBySide(DataFormat):
    """NAME.jpg beside NAME_mask.png."""

    wanted: ClassVar[str] = "NAME.jpg beside NAME_mask.png"

    @cached_property
    def _found(self) -> tuple[list[Pair], list[Path]]:
        files = images_in(self.path)
        stems = {file.with_suffix("") for file in files}
        # cat_mask.png is a mask because there is a cat.jpg.
        masks = {
            file
            for file in files
            for ending in MASK_ENDINGS
            if file.stem.endswith(ending) and file.with_name(file.stem.removesuffix(ending)) in stems
        }
        images = [file for file in files if file not in masks]
        return match_names(images, self.path, sorted(masks), self.path)

    def reason(self) -> str:
        """See `DataFormat`. A few names that happen to fit are no dataset: half the images must have a mask."""
        pairs, _ = self._found
        matched = [pair for pair in pairs if pair.mask]
        if not matched or 2 * len(matched) < len(pairs):
            return ""
        first = matched[0]
        return f"{first.image.name} beside {first.mask.name if first.mask else ''}"

    def layout(self) -> Layout:
        """See `DataFormat`."""
        pairs, orphans = self._found
        return Layout(self.path, divided(pairs), *class_table(self.path), orphans, [DIVIDED])


def pairs_by_name(root: Path, file: Path) -> list[Pair] | None:
    """The pairs that a list of bare names selects from the image and mask folders of `root`; None without those."""
    folders = _image_and_mask_folders(root)
    return select(read_names(file), pair_up(*folders)[0], folders[0]) if folders else None


def _folders(root: Path) -> dict[str, Path]:
    return {folder.name: folder for folder in sorted(root.iterdir()) if folder.is_dir()} if root.is_dir() else {}


def _image_and_mask_folders(root: Path) -> tuple[Path, Path] | None:
    folders = {name.lower(): folder for name, folder in _folders(root).items()}

    def first(names: tuple[str, ...]) -> Path | None:
        return next((folders[name.lower()] for name in names if name.lower() in folders), None)

    images, masks = first(IMAGE_FOLDERS), first(MASK_FOLDERS)
    return (images, masks) if images and masks else None
