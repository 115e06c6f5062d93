"""Pairs of image and mask files, and the small files that say how they are divided and what their classes are."""

from __future__ import annotations

import csv
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from degrid.data.masks import MaskRule
from degrid.image import IMAGE_SUFFIXES
from degrid.types import LabelSpace, UserError, voc_palette

MASK_ENDINGS = (
    "_mask",
    "_masks",
    "_label",
    "_labels",
    "_gt",
    "_seg",
    "_segmentation",
    "-mask",
    "-label",
    "_L",
)
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}

DIVIDED = "no split given: every fifth image or so, by its name, is kept for validation"


@dataclass(frozen=True)
class Pair:
    """An image file, its mask (None where it is missing), and its name in the dataset."""

    name: str
    image: Path
    mask: Path | None


@dataclass
class Layout:
    """A recognised dataset.

    labels: None where the masks must be scanned to find the classes; rule: None likewise.
    orphans: masks without an image. note: what was decided for the user, in words.
    """

    kind: str
    root: Path
    splits: dict[str, list[Pair]]
    labels: LabelSpace | None = None
    rule: MaskRule | None = None
    orphans: list[Path] = field(default_factory=list)
    note: str = ""


def read_list(file: Path, root: Path | None = None) -> list[Pair]:
    """Pairs from lines of "/image /mask", the paths starting at `root`; a line with an image alone has no mask.

    Args:
        root: where the leading slash points; by default the list's folder, or the nearest one above it in which the
            first image exists.
    Raises:
        UserError: missing or empty, a line of another form, or no folder in which the first image exists.
    """
    if not file.is_file():
        raise UserError(f"no list file at {file}")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise UserError(f"the list {file} is empty")
    first = lines[0].split()[0].lstrip("/")
    if root is None:
        root = next((place for place in file.resolve().parents if (place / first).exists()), None)
        if root is None:
            raise UserError(f"{file}: {first} is in none of the folders above the list; give the root in dataset.yaml")
    pairs = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if len(parts) > 2:
            raise UserError(f'{file}, line {number}: expected "/image /mask", got "{line}"')
        image = root / parts[0].lstrip("/")
        mask = root / parts[1].lstrip("/") if len(parts) == 2 and parts[1] != parts[0] else None
        pairs.append(Pair(Path(parts[0].lstrip("/")).with_suffix("").as_posix(), image, mask))
    return pairs


def is_pair_list(file: Path) -> bool:
    """Whether a text file's first line names an image and a mask."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].split()
    return len(lines) == 2 and all(Path(part).suffix.lower() in IMAGE_SUFFIXES for part in lines)


def pair_up(image_folder: Path, mask_folder: Path) -> tuple[list[Pair], list[Path]]:
    """Pair the images of one folder with the masks of another by name; and the masks left over."""
    return match_names(images_in(image_folder), image_folder, images_in(mask_folder), mask_folder)


def match_names(
    images: list[Path], image_root: Path, masks: list[Path], mask_root: Path
) -> tuple[list[Pair], list[Path]]:
    """Pair files by their names below the roots, allowing for endings such as _mask; and the masks left over."""

    def key(file: Path, root: Path) -> str:
        return file.relative_to(root).with_suffix("").as_posix()

    by_name = {key(mask, mask_root): mask for mask in masks}
    pairs, used = [], set()
    for image in images:
        name = key(image, image_root)
        base = next((name.removesuffix(e) for e in ("_image", "_img", "_sat") if name.endswith(e)), name)
        candidates = [
            name,
            *(stem + ending for stem in dict.fromkeys((name, base)) for ending in ("", *MASK_ENDINGS)),
        ]
        mask = next((by_name[candidate] for candidate in candidates if candidate in by_name), None)
        used.add(mask)
        pairs.append(Pair(name, image, mask))
    return pairs, [mask for mask in masks if mask not in used]


def images_in(folder: Path) -> list[Path]:
    """All image files below a folder, in order."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())


def split_files(folder: Path) -> dict[str, list[str]]:
    """Names from train.txt, val.txt, ..; one per line. Files with other names, such as trainaug.txt, are splits too."""
    found = {}
    for file in sorted(folder.glob("*.txt")):
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        is_split = file.stem in SPLIT_NAMES or folder.name == "Segmentation"
        if is_split and lines and not is_pair_list(file):
            found[SPLIT_NAMES.get(file.stem, file.stem)] = lines
    return found


def divided(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """About one image in five for validation, chosen by its name, so that the choice is the same everywhere."""
    val = [pair for pair in pairs if zlib.crc32(pair.name.encode()) % 5 == 0]
    if not val and len(pairs) > 1:
        val = pairs[-1:]
    chosen = {pair.name for pair in val}
    train = [pair for pair in pairs if pair.name not in chosen] or val
    return {"train": train, "val": val or train}


def label_file(root: Path) -> LabelSpace | None:
    """Classes from classes.csv (id,name,r,g,b) or from a text file with one name per line."""
    table = root / "classes.csv"
    if table.exists():
        try:
            with table.open(encoding="utf-8", newline="") as stream:
                rows = sorted(csv.DictReader(stream), key=lambda row: int(row["id"]))
            names = tuple(row["name"].strip() for row in rows)
            colors = tuple((int(row["r"]), int(row["g"]), int(row["b"])) for row in rows)
            if [int(row["id"]) for row in rows] != list(range(len(rows))):
                raise UserError(f"{table}: ids must run from 0 without a gap")
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{table}: expected the columns id,name,r,g,b with whole numbers ({error!r})") from error
        return LabelSpace(names, colors)
    for name in ("classes.txt", "class_names.txt", "codes.txt"):
        if (root / name).exists():
            lines = [line.strip() for line in (root / name).read_text(encoding="utf-8").splitlines()]
            names = tuple(line for line in lines if line and line != "__ignore__")
            return LabelSpace(names, voc_palette(len(names)))
    return None
