"""Recognise how a dataset lies on disk: which image goes with which mask, in which split, with which classes."""

from __future__ import annotations

from pathlib import Path

from degrid.data.known import find_camvid, find_cityscapes, find_voc
from degrid.data.pairs import (
    DIVIDED,
    MASK_ENDINGS,
    SPLIT_NAMES,
    Layout,
    Pair,
    divided,
    images_in,
    is_pair_list,
    label_file,
    match_names,
    pair_up,
    read_list,
    split_files,
)
from degrid.types import UserError

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages", "photos")
MASK_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "label",
    "annotations",
    "annots",
    "gt",
    "segmentation",
    "SegmentationClass",
)


def recognise(root: Path) -> Layout:
    """The layout of a folder.

    Raises:
        UserError: none of the known ones; the message lists what was looked for.
    """
    for find in (find_voc, find_cityscapes, find_camvid, _lists_in, _named_folders, _side_by_side):
        layout = find(root)
        if layout is not None and any(layout.splits.values()):
            order = [
                *(name for name in ("train", "val", "test") if name in layout.splits),
                *sorted(layout.splits),
            ]
            layout.splits = {name: layout.splits[name] for name in order}
            return layout
    raise UserError(
        f"no images with masks found in {root}. Looked for: images/ and masks/ (or labels/, annotations/) with files "
        "of the same names, also below train/ and val/; NAME.jpg beside NAME_mask.png; list files with /image /mask "
        "lines; the VOC, Cityscapes and CamVid layouts; dataset.yaml"
    )


def _named_folders(root: Path) -> Layout | None:
    """images/ and masks/, divided by sub-folders, by train.txt and val.txt, or not at all; also train/images/ .."""
    splits: dict[str, list[Pair]] = {}
    orphans: list[Path] = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        split = SPLIT_NAMES.get(folder.name.lower())
        inner = _image_and_mask_folders(folder) if split and folder.is_dir() else None
        if split and inner:
            splits[split], lost = pair_up(*inner)
            orphans += lost
    if splits:
        return Layout("folder", root, splits, label_file(root), orphans=orphans)
    folders = _image_and_mask_folders(root)
    if folders is None:
        return None
    pairs, orphans = pair_up(*folders)
    layout = Layout("folder", root, {}, label_file(root), orphans=orphans)
    listed = split_files(root)
    tops = {pair.name.split("/")[0].lower() for pair in pairs if "/" in pair.name}
    if listed:
        known = {pair.name: pair for pair in pairs}
        for split, names in listed.items():
            layout.splits[split] = [known.get(n) or Pair(n, folders[0] / f"{n}.jpg", None) for n in names]
    elif any(top in SPLIT_NAMES for top in tops):
        for pair in pairs:
            split = SPLIT_NAMES.get(pair.name.split("/")[0].lower())
            if split:
                layout.splits.setdefault(split, []).append(pair)
    else:
        layout.splits, layout.note = divided(pairs), DIVIDED
    return layout


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
    return Layout("folder", root, divided(pairs), label_file(root), orphans=orphans, note=DIVIDED)


def _lists_in(root: Path) -> Layout | None:
    """train.txt, val.txt with "/image /mask" lines."""
    files = {SPLIT_NAMES[file.stem]: file for file in sorted(root.glob("*.txt")) if file.stem in SPLIT_NAMES}
    splits = {split: read_list(file) for split, file in files.items() if is_pair_list(file)}
    return Layout("lists", root, splits, label_file(root)) if splits else None


def _image_and_mask_folders(root: Path) -> tuple[Path, Path] | None:
    def first(names: tuple[str, ...]) -> Path | None:
        return next((root / name for name in names if (root / name).is_dir()), None)

    images, masks = first(IMAGE_FOLDERS), first(MASK_FOLDERS)
    return (images, masks) if images and masks else None
