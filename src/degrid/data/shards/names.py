"""Names in tar files of WebDataset: a sample's files share a name up to its first dot, and differ behind it."""

from __future__ import annotations

from collections.abc import Collection

from degrid.image import IMAGE_SUFFIXES

LABEL = "seg.png"
"""What follows the name of a sample in that of its label."""
_MASKS = ("seg", "mask", "label", "segmentation", "annotation", "gt", "labels", "semantic", "segmap", "target")


def key_of(name: str) -> str:
    """The name under which a sample is stored: without dots behind its last slash, which would end it."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.replace('%', '%25').replace('.', '%2E')}"


def member_name(key: str) -> str:
    """The name of the sample that is stored so."""
    folder, slash, base = key.rpartition("/")
    return f"{folder}{slash}{base.replace('%2E', '.').replace('%25', '%')}"


def mask_ending(endings: Collection[str]) -> tuple[str, str]:
    """Which endings of a sample's files are the image's and its mask's, such as "jpg" and "seg.png"; empty for none."""
    pictures = [ending for ending in endings if f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES]
    masks = [ending for word in _MASKS for ending in pictures if ending.partition(".")[0] == word]
    if not masks:  # a photograph in JPEG and one PNG beside it
        masks = [ending for ending in pictures if ending == "png"] if len(pictures) == 2 else []
    images = [ending for ending in pictures if "." not in ending and ending not in masks]
    return (images[0], masks[0]) if len(images) == 1 and masks else ("", "")
