"""Recognise how a dataset lies on disk: which image goes with which mask, in which split, with which classes."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from degrid.data.formats.benchmarks import find_ade, find_camvid, find_cityscapes, find_coco, find_voc
from degrid.data.formats.classes import class_table
from degrid.data.formats.pairs import (
    DIVIDED,
    MASK_ENDINGS,
    SPLIT_NAMES,
    Layout,
    Pair,
    divided,
    images_in,
    is_pair_list,
    match_names,
    pair_up,
    read_list,
    read_names,
    select,
    split_files,
    split_of,
)
from degrid.data.tfrecord.shards import find_records
from degrid.types import UserError

T = TypeVar("T")

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


def recognise(root: Path) -> Layout:
    """The layout of a folder.

    Raises:
        UserError: none of the known ones; the message lists what was looked for.
    """
    benchmarks = (find_coco, find_voc, find_cityscapes, find_camvid, find_ade)
    finders = (*benchmarks, _lists_in, _named_folders, _side_by_side, find_records)
    for find in finders:
        layout = find(root)
        if layout is not None and (any(layout.splits.values()) or layout.records):
            layout.splits, layout.records = _ordered(layout.splits), _ordered(layout.records)
            return layout
    raise UserError(
        f"no images with masks found in {root}. Looked for: images/ and masks/ (or labels/, annotations/) with files "
        "of the same names, also below train/ and val/; NAME.jpg beside NAME_mask.png; list files with /image /mask "
        "lines; VOC, Cityscapes, CamVid, ADE20K and COCO; TFRecord files such as train.tfrecord; dataset.yaml"
    )


def _ordered(splits: dict[str, T]) -> dict[str, T]:
    order = [*(name for name in ("train", "val", "test") if name in splits), *sorted(splits)]
    return {name: splits[name] for name in order}


def _named_folders(root: Path) -> Layout | None:
    """images/ and masks/, divided by sub-folders, by train.txt and val.txt, or not at all; also train/images/ .."""
    return _split_folders(root) or _one_folder(root)


def _split_folders(root: Path) -> Layout | None:
    """train/images and train/masks, or train and train_labels, .."""
    splits: dict[str, list[Pair]] = {}
    orphans: list[Path] = []
    folders = {folder.name: folder for folder in sorted(root.iterdir()) if folder.is_dir()}
    for name, folder in folders.items():
        if name.lower() not in SPLIT_NAMES:
            continue
        beside = next((folders[name + ending] for ending in _FOLDER_ENDINGS if name + ending in folders), None)
        inner = _image_and_mask_folders(folder) or (beside and (folder, beside))
        if inner:
            splits[split_of(name)], lost = pair_up(*inner)
            orphans += lost
    return Layout("folder", root, splits, *class_table(root), orphans) if splits else None


def _one_folder(root: Path) -> Layout | None:
    folders = _image_and_mask_folders(root)
    if folders is None:
        return None
    pairs, orphans = pair_up(*folders)
    layout = Layout("folder", root, {}, *class_table(root), orphans)
    listed = split_files(root)
    tops = {pair.name.split("/")[0].lower() for pair in pairs if "/" in pair.name}
    if listed:
        layout.splits = {split: select(names, pairs, folders[0]) for split, names in listed.items()}
        chosen = {pair.name for split in layout.splits.values() for pair in split}
        unlisted = sum(pair.name not in chosen for pair in pairs)
        if unlisted:
            layout.notes.append(f"{unlisted} images are in none of the lists and are left out")
    elif any(top in SPLIT_NAMES for top in tops):
        for pair in pairs:
            split = SPLIT_NAMES.get(pair.name.split("/")[0].lower())
            if split:
                layout.splits.setdefault(split, []).append(pair)
    else:
        layout.splits, layout.notes = divided(pairs), [DIVIDED]
    return layout


def pairs_by_name(root: Path, file: Path) -> list[Pair] | None:
    """The pairs that a list of bare names selects from the image and mask folders of `root`; None without those."""
    folders = _image_and_mask_folders(root)
    return select(read_names(file), pair_up(*folders)[0], folders[0]) if folders else None


def _side_by_side(root: Path) -> Layout | None:
    """NAME.jpg beside NAME_mask.png."""
    files = images_in(root)
    stems = {file.with_suffix("") for file in files}
    # cat_mask.png is a mask because there is a cat.jpg.
    masks = {
        file
        for file in files
        for ending in MASK_ENDINGS
        if file.stem.endswith(ending) and file.with_name(file.stem.removesuffix(ending)) in stems
    }
    pairs, orphans = match_names([file for file in files if file not in masks], root, sorted(masks), root)
    if 2 * sum(pair.mask is not None for pair in pairs) < max(1, len(pairs)):
        return None  # a few names that happen to fit are no dataset
    return Layout("folder", root, divided(pairs), *class_table(root), orphans, [DIVIDED])


def _lists_in(root: Path) -> Layout | None:
    """train.txt, val.txt with "/image /mask" lines."""
    files = {SPLIT_NAMES[file.stem]: file for file in sorted(root.glob("*.txt")) if file.stem in SPLIT_NAMES}
    if not any(is_pair_list(file) for file in files.values()):
        return None
    # An empty list beside one of pairs is a split that lost its images, which read_list says.
    splits = {split: read_list(file) for split, file in files.items() if is_pair_list(file) or not read_names(file)}
    return Layout("lists", root, splits, *class_table(root))


def _image_and_mask_folders(root: Path) -> tuple[Path, Path] | None:
    folders = {folder.name.lower(): folder for folder in sorted(root.iterdir()) if folder.is_dir()}

    def first(names: tuple[str, ...]) -> Path | None:
        return next((folders[name.lower()] for name in names if name.lower() in folders), None)

    images, masks = first(IMAGE_FOLDERS), first(MASK_FOLDERS)
    return (images, masks) if images and masks else None
