"""Pairs of image and mask files, and how they are divided into splits."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from degrid.bands import is_by_values, is_plain, no_data_of, read_values, to_bytes
from degrid.data.formats.layout import SPLIT_NAMES
from degrid.data.formats.masks import AS_STORED, MaskReading, rgb_like, said_of_turning
from degrid.data.formats.matching import matched, without_image
from degrid.data.formats.photographs import photographs
from degrid.data.formats.read_array import ARRAY_SUFFIXES
from degrid.data.formats.read_mask import read_mask, read_palette
from degrid.data.formats.source import RawSample, Source
from degrid.files import parse_json, read_text, walk
from degrid.image import IMAGE_SUFFIXES, open_image, read_jpeg
from degrid.lookup import counted, some
from degrid.types import RGB, Bands, UserError

AnySource = TypeVar("AnySource", bound=Source)
MASK_SUFFIXES = IMAGE_SUFFIXES | ARRAY_SUFFIXES
"""Endings of the files that count as masks, in lower case."""
_UNREAD = ".heic .heif .jxl .dng .cr2 .cr3 .nef .arw .orf .raf .rw2 .psd .svg .dcm .nii .nii.gz .nrrd .mha .exr .hdr"


@dataclass(frozen=True)
class Pair(Source):
    """An image file, its mask file (None where it has none), and its name in the dataset."""

    name: str
    image: Path
    mask: Path | None
    how: MaskReading = field(default=AS_STORED, kw_only=True)
    unreadable: ClassVar[str] = ""

    def read_image(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """See `Source`."""
        if is_by_values(self.image):
            return to_bytes(read_values(self.image, size), RGB, self.image)
        pixels = read_jpeg(self.image)
        return rgb_like(open_image(self.image), size or (0, 0)) if pixels is None else pixels

    def read_values(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """See `Source`."""
        return read_values(self.image, size)

    def is_plain(self) -> bool:
        """See `Source`."""
        return is_plain(self.image)

    def no_data(self) -> float | None:
        """See `Source`."""
        return no_data_of(self.image)

    def read_label(self) -> np.ndarray:
        """See `Source`."""
        if self.mask is None:
            raise UserError(f"{self.image} has no mask; degrid data check lists all such images")
        return read_mask(self.mask, self.how, self.image)

    def turned(self, size: tuple[int, ...]) -> str:
        """See `Source`."""
        return said_of_turning(self.image, size)

    def check(self, bands: Bands = RGB) -> RawSample:
        """See `Source`."""
        luma = read_jpeg(self.image, luma=True) if bands == RGB else None
        label = None if luma is None else self.read_label()
        if luma is None or label is None or luma.shape[:2] != label.shape[:2]:
            return super().check(bands)
        return RawSample(self.name, luma, label)

    def places(self) -> tuple[str, str]:
        """See `Source`."""
        return str(self.image), str(self.mask or "")

    def missing(self) -> str:
        """See `Source`."""
        if not os.path.exists(self.image):  # a list may hold names that no file can have
            return "image"
        return "" if self.mask and os.path.exists(self.mask) else "label"

    def image_file(self) -> bytes:
        """See `Source`; empty where the file is not there."""
        return self.image.read_bytes() if os.path.isfile(self.image) else b""

    def image_length(self) -> int:
        """See `Source`."""
        try:
            return os.stat(self.image).st_size
        except (OSError, ValueError):  # a list may hold names that no file can have
            return 0

    def palette(self) -> np.ndarray | None:
        """See `Source`."""
        as_stored = type(self).read_label is Pair.read_label and not self.how.by_color
        return read_palette(self.mask) if self.mask and as_stored else None

    def reading(self, how: MaskReading) -> Pair:
        """See `Source`."""
        return dataclasses.replace(self, how=how)


def pair_up(image_folder: Path, mask_folder: Path) -> tuple[list[Pair], list[Path]]:
    """Pair the images of one folder with the masks of another by name; also returns the masks left over.

    Where none fit, folders that all images, or all masks, lie in are passed over, as in annotations/trimaps/a.png.
    """
    images, masks = images_in(image_folder) or files_in(image_folder, ".npy"), masks_in(mask_folder)
    found = match_names(images, image_folder, masks, mask_folder)
    if not images or not masks or any(pair.mask for pair in found[0]):
        return found
    inside = match_names(images, _around(images), masks, _around(masks))
    return inside if any(pair.mask for pair in inside[0]) else found


def _around(files: Sequence[Path]) -> Path:
    """The folder that all files are in."""
    return Path(os.path.commonpath([file.parent for file in files]))


def pair_folders(folders: Mapping[str, tuple[Path, Path]]) -> tuple[dict[str, list[Pair]], list[Path]]:
    """`pair_up` for the folders of each split, where both are there."""
    found = {split: pair_up(*both) for split, both in folders.items() if all(folder.is_dir() for folder in both)}
    return {split: pairs for split, (pairs, _) in found.items()}, [mask for _, lost in found.values() for mask in lost]


def match_names(
    images: list[Path], image_root: Path, masks: list[Path], mask_root: Path
) -> tuple[list[Pair], list[Path]]:
    """Pair files by their names below the roots, see `matched`; also returns the masks left over."""
    image_names = _below(images, image_root)
    mask_names = dict(zip(_below(masks, mask_root), masks, strict=True))
    found = matched(image_names, mask_names)
    pairs = [
        Pair(os.path.splitext(name)[0], image, mask_names[found[name]] if name in found else None)
        for name, image in zip(image_names, images, strict=True)
    ]
    return pairs, [mask_names[name] for name in without_image(mask_names, found)]


def _below(files: Sequence[Path], root: Path) -> list[str]:
    """The paths of files below a folder, with "/"; `Path.relative_to` would take as long as everything else here."""
    start = "" if str(root) == "." else os.path.join(root, "")
    return [str(file).removeprefix(start).replace(os.sep, "/") for file in files]


def images_in(folder: Path) -> list[Path]:
    """Image files in a folder and its sub-folders, sorted, without the hidden files of macOS and Jupyter."""
    return _files_in(folder, IMAGE_SUFFIXES)


def masks_in(folder: Path) -> list[Path]:
    """Image files and files of arrays; see `images_in`."""
    return _files_in(folder, MASK_SUFFIXES)


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Files with this ending, in lower case; see `images_in`."""
    return _files_in(folder, (suffix,))


def json_in(folder: Path) -> Iterator[tuple[Path, Any]]:
    """The values of all JSON files, see `images_in`, without those of damaged ones."""
    for file in files_in(folder, ".json"):
        with contextlib.suppress(ValueError):
            yield file, parse_json(read_text(file))


def any_mask(folder: Path) -> bool:
    """Whether `masks_in` would find any."""
    return any(True for _ in _found_in(folder, MASK_SUFFIXES))


def _files_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    # In the order of paths, which compare part by part: "a/b" comes before "a-b".
    return [Path(file) for file in sorted(_found_in(folder, suffixes), key=lambda file: file.split(os.sep))]


def _found_in(folder: Path, suffixes: Collection[str]) -> Iterator[str]:
    for _, files in walk(folder):
        for entry in files:
            if os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file():
                yield entry.path


def unread_note(*folders: Path) -> list[str]:
    """Sentences on the images in these folders, and below, that are not read; none where there are none."""
    found = [entry for folder in dict.fromkeys(folders) for _, files in walk(folder) for entry in files]
    names = (entry.name.lower() for entry in found)
    suffixes = (".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1] for name in names)
    unread = frozenset(_UNREAD.split())
    count = Counter(suffix for suffix in suffixes if suffix in unread)
    shown = ", ".join(f"{number} {suffix}" for suffix, number in count.most_common())
    lost = [entry.path for entry in found if entry.is_symlink() and not os.path.exists(entry.path)]
    said = [f"files of kinds that are not read as images are left out: {shown}; save them as JPEG or PNG"] * bool(count)
    if lost:
        said.append(
            f"{counted(len(lost), 'link', 'lead')} to files that are not here, and are left out: {some(lost, 3)}"
        )
    return said


NO_SPLITS, ONE_LIST, NO_VAL = "the data name no splits", "the data have one list", 'the data have no split "val"'
"""The beginning of notes on data that were divided."""


def by_chance(notes: Sequence[str]) -> bool:
    """Whether these are notes on data that were divided."""
    return any(note.startswith((NO_SPLITS, ONE_LIST, NO_VAL)) for note in notes)


def divided(sources: Sequence[AnySource], why: str = NO_SPLITS) -> tuple[dict[str, list[AnySource]], list[str]]:
    """Keep about one image in five for validation, chosen by its name so that the choice is always the same.

    Args:
        why: with which the note on that begins.
    """
    if len(sources) < 2:
        return {"train": [*sources], "val": [*sources]}, [f"{why}: the only image is trained on and validated with"]
    made_of = photographs([source.name for source in sources])
    names = list(dict.fromkeys(made_of))
    if len(names) < 2:
        return {"train": [*sources], "val": [*sources]}, [
            f"{why}: all images are changed copies of one by their names, which is trained on and validated with"
        ]
    chosen = [name for name in names if zlib.crc32(os.fsencode(name)) % 5 == 0]
    kept = {*(chosen[: max(1, len(names) // 3)] or names[-1:])}  # of few images, chance may choose most, or none
    val = [source for source, name in zip(sources, made_of, strict=True) if name in kept]
    train = [source for source, name in zip(sources, made_of, strict=True) if name not in kept] or val
    which = "its name, is" if len(val) == 1 else "their names, are"
    note = f"{why}: {len(val):,} of {counted(len(sources), 'image')}, chosen by {which} kept for validation"
    if len(names) < len(sources):
        note += "; changed copies of one image, as the names say, stay together"
    return {"train": train, "val": val}, [note]


def no_images(masks: Path, images: Path) -> UserError:
    """The error for an export of masks without the images, which belong in a folder that is not there."""
    return UserError(
        f'{masks} holds masks, but the images are missing; put them in {images}, or export them, too ("Save images" in '
        "CVAT)"
    )


def labelled(splits: dict[str, list[Pair]]) -> tuple[dict[str, list[Pair]], list[str]]:
    """The splits without the images that have no mask, and the note that counts these.

    For tools that write no mask where nothing was drawn. Splits without any mask are left out; but val is not, which
    would be replaced by a part of train.
    """
    kept = {split: [pair for pair in pairs if pair.mask] for split, pairs in splits.items()}
    if kept.get("train") and not kept.get("val", True):
        kept["val"] = splits["val"]
    number = sum(map(len, splits.values())) - sum(map(len, kept.values()))
    note = f"{counted(number, 'image', 'have')} no mask, since the tool writes none where nothing was drawn: left out"
    return {split: pairs for split, pairs in kept.items() if pairs}, [note] if number else []


def splits_or_divided(
    splits: Mapping[str, Sequence[AnySource]],
) -> tuple[dict[str, list[AnySource]], list[str]]:
    """The splits, where a single one without the name of a split is everything and is divided; and the note on that.

    Annotation tools write one list, such as "default".
    """
    if len(splits) != 1 or (only := next(iter(splits))) in SPLIT_NAMES.values():
        return {split: list(sources) for split, sources in splits.items()}, []
    return divided(splits[only], f'{ONE_LIST}, "{only}"')


def with_val(splits: dict[str, list[AnySource]]) -> tuple[dict[str, list[AnySource]], list[str]]:
    """The splits, where a part of "train" is kept for validation if nothing is there for that; and the note on it."""
    if "val" in splits or "train" not in splits:
        return splits, []
    both, notes = divided(splits["train"], f'{NO_VAL} beside "train"')
    return {**splits, **both}, notes
