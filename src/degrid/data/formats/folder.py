"""Folders of images and masks whose file names say what belongs together."""

from __future__ import annotations

from pathlib import Path

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import SPLIT_NAMES, DataFormat, Layout, split_of
from degrid.data.formats.masks import MaskRule
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
from degrid.data.formats.tools.label_files import label_file, tool_classes
from degrid.types import LabelSpace, UserError

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages", "photos")
_MASK_FOLDERS = (
    "masks mask labels label annotations annotation annots gt ground_truth groundtruth segmentation segmentations "
    "SegmentationClass"
)
MASK_FOLDERS = tuple(_MASK_FOLDERS.split())
# Endings of a mask folder beside the image folder: train and trainannot, train and train_labels.
_FOLDER_ENDINGS = ("_labels", "_label", "_masks", "_mask", "annot", "_annot")


class SplitFolders(DataFormat):
    """train/images and train/masks, or train and train_labels, and so on."""

    wanted = "train/images and train/masks, or train and train_labels"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        splits: dict[str, list[Pair]] = {}
        orphans: list[Path] = []
        reasons = []
        folders = _folders(path)
        for name in [name for name in folders if name.lower() in SPLIT_NAMES]:
            beside = next((folders[name + ending] for ending in _FOLDER_ENDINGS if name + ending in folders), None)
            both = _image_and_mask_folders(folders[name]) or (beside and (folders[name], beside))
            if both:
                splits[split_of(name)], lost = pair_up(*both)
                orphans += lost
                reasons.append(" and ".join(folder.relative_to(path).as_posix() for folder in both))
        return Layout(", ".join(reasons), path, splits, *_classes(path), orphans) if splits else None


class Folders(DataFormat):
    """images/ and masks/, divided by sub-folders, by train.txt and val.txt, or not at all."""

    wanted = "images/ and masks/ (or labels/, annotations/) with files of the same names"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        folders = _image_and_mask_folders(path)
        if folders is None:
            return None
        pairs, orphans = pair_up(*folders)
        listed = {split: select(names, pairs, folders[0]) for split, names in split_files(path).items()}
        splits = listed or _by_top_folder(pairs) or divided(pairs)
        used = {pair.name for split in splits.values() for pair in split}
        left_out = sum(pair.name not in used for pair in pairs)
        notes = [f"{left_out} images are in none of the {'lists' if listed else 'splits'}"] if left_out else []
        if not listed and not _by_top_folder(pairs):
            notes = [DIVIDED]
        reason = " and ".join(folder.name for folder in folders)
        return Layout(reason, path, splits, *class_table(path), orphans, notes)


def _by_top_folder(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """The pairs in folders that are called as splits are."""
    splits: dict[str, list[Pair]] = {}
    for pair in pairs:
        top, _, below = pair.name.partition("/")
        if below and top.lower() in SPLIT_NAMES:
            splits.setdefault(split_of(top), []).append(pair)
    return splits


class SideBySide(DataFormat):
    """NAME.jpg beside NAME_mask.png, divided by folders called as splits (as Roboflow's masks are) or not at all."""

    wanted = "NAME.jpg beside NAME_mask.png"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        files = images_in(path)
        stems = {file.with_suffix("") for file in files}
        # cat_mask.png is a mask because there is a cat.jpg.
        masks = {
            file
            for file in files
            for ending in MASK_ENDINGS
            if file.stem.endswith(ending) and file.with_name(file.stem.removesuffix(ending)) in stems
        }
        pairs, orphans = match_names([file for file in files if file not in masks], path, sorted(masks), path)
        matched = [(pair.image.name, pair.mask.name) for pair in pairs if pair.mask]
        if not matched or 2 * len(matched) < len(pairs):
            return None  # a few names that happen to fit are no dataset
        splits = _by_top_folder(pairs)
        left_out = len(pairs) - sum(map(len, splits.values()))
        notes = ([f"{left_out} images are in none of the splits"] if left_out else []) if splits else [DIVIDED]
        reason = " beside ".join(matched[0])
        return Layout(reason, path, splits or divided(pairs), *_classes(path), orphans, notes)


def _classes(path: Path) -> tuple[LabelSpace | None, MaskRule | None]:
    """The classes that a table in the folder names, or one in each folder of a split, as Roboflow's _classes.csv.

    Raises:
        UserError: see `class_table`; or the splits' tables name other classes.
    """
    labels, rule = class_table(path)
    folders = [folder for name, folder in _folders(path).items() if name.lower() in SPLIT_NAMES]
    files = [file for folder in folders if (file := label_file(folder))]
    if labels is not None or not files:
        return labels, rule
    found = [tool_classes(file) for file in files]
    other = next((file for file, classes in zip(files, found, strict=True) if classes != found[0]), None)
    if other:
        raise UserError(f"{files[0]} and {other} name other classes; the splits of one dataset need the same")
    return found[0]


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
