"""Which folders hold images and which hold their masks, by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from degrid.data.formats.layout import SPLIT_NAMES
from degrid.data.formats.matching import is_called_images, is_for_images, is_for_masks
from degrid.data.formats.pairs import any_mask, pair_up

IMAGE_FOLDERS = (
    *("images", "image", "imgs", "img", "img_dir", "JPEGImages", "photos", "original"),
    *("rgb_anon", "inputs", "input", "x", "imagesTr"),
)
_MASK_FOLDERS = (
    "masks mask labels label annotations annotation annots ann_dir gt gts ground_truth groundtruth segmentation "
    "segmentations SegmentationClass"
)
# The first of several is used: beside manual ones, "mask" is the field of view, as in HRF.
MASK_FOLDERS = (
    *(
        "1st_manual",
        "manual1",
        "manual",
        *_MASK_FOLDERS.split(),
        "ground truth",
        "targets",
        "target",
        "lab",
        "labs",
        "y",
        "labelsTr",
    ),
)


def folders_in(root: Path) -> dict[str, Path]:
    """The folders in one, by their names."""
    if not root.is_dir():
        return {}
    with os.scandir(root) as entries:  # unlike Path.iterdir, this does not stat each of many files
        names = sorted(entry.name for entry in entries if entry.is_dir())
    return {name: root / name for name in names}


def image_and_mask_folders(root: Path, form: str = "{}") -> tuple[Path, Path] | None:
    """The folder of images and the first that holds masks; their names have words of `form` around the usual ones.

    Without such names, those whose names have words for images and for masks, as `by_words` finds them.
    """
    images, masks = (called(root, names, form) for names in (IMAGE_FOLDERS, MASK_FOLDERS))
    with_masks = next(filter(any_mask, masks), None)
    if images and with_masks:
        return images[0], with_masks
    return by_words([*folders_in(root).values()]) if form == "{}" else None


def by_words(folders: Sequence[Path]) -> tuple[Path, Path] | None:
    """The folder of images and that of their masks, by words in their names and files of the same names.

    None where several would do.
    """
    masks = [folder for folder in folders if is_for_masks(folder.name) and any_mask(folder)]
    others = [folder for folder in folders if not is_for_masks(folder.name)] if masks else []
    ranks = ([folder for folder in others if is_called(folder.name)] for is_called in (is_called_images, is_for_images))
    images = next(filter(None, ranks), others)
    found = [(each, labels) for each in images for labels in masks if _belong_together(each, labels)]
    return found[0] if len(found) == 1 else None


def _belong_together(images: Path, masks: Path) -> bool:
    """Whether most images have a mask, and most masks an image."""
    pairs, orphans = pair_up(images, masks)
    matched = sum(pair.mask is not None for pair in pairs)
    return 0 < len(pairs) <= 2 * matched and len(orphans) <= matched


def by_split_words(root: Path) -> list[tuple[str, Path, Path]]:
    """Splits with their folders of images and of masks, by words in the names: Task1_Training_Input and
    Task1_Training_GroundTruth; none without "train"."""
    groups: dict[str, list[Path]] = {}
    for name, folder in folders_in(root).items():
        words = {SPLIT_NAMES.get(word) for word in re.findall(r"[^\W\d_]+", name.lower())} - {None}
        for split in words if len(words) == 1 else ():
            groups.setdefault(str(split), []).append(folder)
    found = [(split, *both) for split, folders in groups.items() if (both := by_words(folders))]
    return found if any(split == "train" for split, *_ in found) else []


def called(root: Path, names: Sequence[str], form: str = "{}") -> list[Path]:
    """The folders of these names, in the order of the names."""
    folders: Mapping[str, Path] = {name.lower(): folder for name, folder in folders_in(root).items()}
    return [folders[written] for name in names if (written := form.format(name.lower())) in folders]
