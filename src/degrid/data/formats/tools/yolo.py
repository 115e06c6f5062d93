"""Polygons in the text files of YOLO, as ultralytics describes them and Roboflow, CVAT and Label Studio write them.

Source: the published description of the format (docs.ultralytics.com, "Instance Segmentation Datasets").
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from degrid.data.formats.classes import has_table
from degrid.data.formats.layout import SPLIT_NAMES, DataFormat, Layout, split_of
from degrid.data.formats.matching import masks_among
from degrid.data.formats.pair_lists import read_names
from degrid.data.formats.pairs import images_in
from degrid.data.formats.shapes.drawn import OVERLAPS, Drawn, Images, said_of_boxes, with_splits
from degrid.data.formats.shapes.polygon import corners, is_upright_rectangle, polygon_region, rectangle
from degrid.data.formats.shapes.region import Thing
from degrid.data.formats.tools.joined import named_classes
from degrid.data.formats.tools.label_files import LabelRow
from degrid.files import parse_yaml, read_text
from degrid.image import IMAGE_SUFFIXES
from degrid.lookup import counted, some
from degrid.types import UserError

_MOST = 2.0
"""Larger coordinates are not fractions; some tools let outlines reach slightly beyond the image."""
_NAME_FILES = ("classes.txt", "obj.names", "classes.names", "darknet.labels")
_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# This many label files, spread over the dataset, show whether it holds polygons.
_LOOKED_AT = 200


class _Found(NamedTuple):
    """The images of each split, the names of the classes by number, and the file that names them."""

    splits: dict[str, list[Path]]
    names: dict[int, str]
    said: str
    root: Path


class Yolo(DataFormat):
    """images/.. and labels/.. with NAME.txt: per line a class number and x y x y ... as fractions of the image's size.

    Splits and class names are those of data.yaml; or the folders of the images, and classes.txt. An image without a
    text file is background, as for ultralytics. Lines of a box only are void, except where an object is drawn.
    """

    wanted = "images/, labels/NAME.txt with polygons, and data.yaml (YOLO)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: the files hold boxes or key points only.
        """
        _refuse_key_points(path)
        found = _by_yaml(path) or _by_folders(path)
        if found is None:
            return None
        images = [image for files in found.splits.values() for image in files]
        there = [file for image in images if (file := label_file(image)).is_file()]
        polygons, boxes, upright = _kinds(there[:: len(there) // _LOOKED_AT + 1])
        if not polygons and not boxes:
            _refuse_empty(found, there)
            return None
        if not polygons:
            raise UserError(
                f"{found.root} holds YOLO labels with boxes only ({there[0].name} and others: 5 numbers per line): "
                "boxes cannot train a segmentation; export polygons (YOLO segmentation)"
            )
        notes = [OVERLAPS, *said_of_boxes(polygons, upright)]
        if not found.names:
            notes.append("no data.yaml or classes.txt names the classes: they are numbered")
        if boxes:
            notes.append("some lines are boxes, not polygons: void, except where an object is drawn")
        _refuse_val_without_texts(found)
        if len(there) < len(images):
            notes.append(f"{counted(len(images) - len(there), 'image', 'have')} no text file: background all over")
        return _layout(found, there, notes)


def _refuse_val_without_texts(found: _Found) -> None:
    """Refuse validation images that would all be background.

    Raises:
        UserError: none of them has a text file.
    """
    images = found.splits.get("val", ())
    if images and not any(label_file(image).is_file() for image in images):
        raise UserError(
            f"none of {counted(len(images), 'image')} of val has a text file in labels or beside it ({images[0]} and "
            "others), so that all would be background: add the files, or take the split away"
        )


def _refuse_empty(found: _Found, there: Sequence[Path]) -> None:
    """Refuse labels without a single object.

    Raises:
        UserError: data.yaml names classes, and all text files are empty.
    """
    if found.names and there and not any(map(read_names, there)):
        raise UserError(
            f"{found.root} holds {counted(len(there), 'text file')} of YOLO, {there[0].name} and others, and all of "
            "them are empty: nothing was drawn, or it was not exported"
        )


def _layout(found: _Found, there: list[Path], notes: list[str]) -> Layout:
    names = found.names or {number: f"class {number}" for number in range(_highest(there) + 1)}
    # Here classes.txt is the tool's own, without background.
    table = found.root if has_table(found.root) else None
    rows = [LabelRow(name, None, number) for number, name in sorted(names.items())]
    labels, rule, ids = named_classes(rows, table, found.said or there[0].name)
    by_number = {number: ids[name] for number, name in names.items()}
    place = Images(found.root)
    splits, said = with_splits(
        {split: [_source(image, by_number, place, ids[""]) for image in files] for split, files in found.splits.items()}
    )
    reason = f"{found.said or 'images'} and {there[0].name}"
    return Layout(reason, found.root, splits, labels, rule, notes=[*said, *notes])


def label_file(image: Path) -> Path:
    """NAME.txt in labels/ in place of the last images/ of the path.

    Where there is no such folder, it lies beside images/, as Darwin's do, or beside the image.
    """
    parts = list(image.parts)
    place = next((place for place in range(len(parts) - 2, -1, -1) if parts[place] == "images"), None)
    beside = image.with_suffix(".txt")
    if place is None:
        return beside
    inside = Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
    if inside.is_file() or inside.parent.is_dir():
        return inside
    above = Path(*parts[:place], *parts[place + 1 :]).with_suffix(".txt")
    return above if above.is_file() else beside


def _by_yaml(path: Path) -> _Found | None:
    for file in _yaml_files(path):
        values = _yaml(file)
        names = _names(values)
        if not names:
            continue
        _refuse_other_names(values, names, file)
        splits: dict[str, list[Path]] = {}
        for key, given in values.items():
            split = _KEYS.get(str(key).lower())  # CVAT's subsets are called Train, Validation, Test
            if split is None:
                continue
            for value in given if isinstance(given, list) else [given]:
                splits.setdefault(split, []).extend(_images(str(value or ""), file, str(values.get("path") or ".")))
        splits = {split: images for split, images in splits.items() if images}
        if splits:
            return _Found(splits, names, file.name, file.parent)
    return None


def _yaml_files(path: Path) -> list[Path]:
    if path.suffix in (".yaml", ".yml"):
        return [path]
    return sorted((*path.glob("*.yaml"), *path.glob("*.yml")))


def _refuse_key_points(path: Path) -> None:
    """Refuse poses, whose lines hold boxes and points and look like outlines.

    Raises:
        UserError: data.yaml says so.
    """
    for file in _yaml_files(path):
        if "kpt_shape" in (values := _yaml(file)) and "names" in values:
            raise UserError(
                f"{file} describes key points (kpt_shape), which cannot train a segmentation; export polygons (YOLO "
                "segmentation)"
            )


def _names(values: dict[str, Any]) -> dict[int, str]:
    """The names of the classes by number; empty if data.yaml is about something else."""
    given = values.get("names")
    named = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(named, dict) or not all(str(key).isdecimal() for key in named):
        return {}
    return {int(number): str(name) for number, name in named.items()}


def _refuse_other_names(values: dict[str, Any], names: dict[int, str], file: Path) -> None:
    """Refuse another number of classes than there are names, and other names for the same numbers beside."""
    if isinstance(number := values.get("nc"), int) and number != len(names):
        raise UserError(f"{file}: nc says {number} classes, but {len(names)} are named; correct one of them")
    for other in (place for name in _NAME_FILES if (place := file.parent / name).is_file()):
        for number, called in enumerate(read_names(other)):
            if number in names and names[number].strip() != called:
                raise UserError(
                    f'{file} calls class {number} "{names[number]}", and {other.name} beside it "{called}"; keep the '
                    "one that is right"
                )


def _yaml(file: Path) -> dict[str, Any]:
    """The values by key; empty if the file is not a table."""
    try:
        values = parse_yaml(read_text(file))
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _images(value: str, file: Path, root: str) -> list[Path]:
    """The images of a split: those of a folder, or those on a list.

    Args:
        value: as data.yaml gives it. Roboflow's "../train/images" means a folder beside the file, and folders of the
            machine on which it was written are searched for beside the file, too.
        file: data.yaml.
        root: what it calls the path.
    """
    if not value:
        return []
    bare = [Path(*Path(value).parts[-count:]) for count in (3, 2, 1)] if Path(value).is_absolute() else []
    tried = [Path(value), Path(value.removeprefix("../")), *bare]
    places = [folder / each for each in tried for folder in (file.parent / root, file.parent)]
    place = next((each for each in places if each.exists()), None)
    if place is None:
        return []
    if place.is_dir():
        return images_in(place)
    lines = [line.removeprefix("./") for line in read_names(place)] if place.suffix == ".txt" else []
    return [_listed(line, (place.parent, file.parent / root)) for line in lines]


def _listed(line: str, folders: tuple[Path, Path]) -> Path:
    """The image in a line of a list, whose first folders may be another computer's, or "data", as CVAT writes it."""
    parts = Path(line).parts
    ends = [line, *(str(Path(*parts[cut:])) for cut in range(1, len(parts) - 1))]
    return next((at for end in ends for folder in folders if (at := folder / end).is_file()), folders[0] / line)


def _by_folders(path: Path) -> _Found | None:
    """Images and their text files in the folder, or in folders named like splits."""
    splits: dict[str, list[Path]] = {}
    folders = (
        [path, *(folder for folder in path.iterdir() if folder.name.lower() in SPLIT_NAMES)] if path.is_dir() else []
    )
    for folder in folders:
        images = _with_text(folder)
        for image in images_in(images) if images else ():
            parts = (folder.name, *image.relative_to(images or folder).parts[:-1])
            split = next((split_of(part) for part in parts if part.lower() in SPLIT_NAMES), "default")
            splits.setdefault(split, []).append(image)
    return _Found(splits, *_named_by_folders(folders), path) if splits else None


def _named_by_folders(folders: list[Path]) -> tuple[dict[int, str], str]:
    """The result of `_named_beside` for the first folder, or else for the splits' own, as Darwin writes them.

    Raises:
        UserError: the splits' numbers mean other classes.
    """
    named = _named_beside(folders[0])
    below = {} if named[1] else {folder: found for folder in folders[1:] if (found := _named_beside(folder))[1]}
    for folder, (names, said) in below.items():
        first, known = next(iter(below.items()))
        if names != known[0]:
            raise UserError(
                f"{first / known[1]} and {folder / said} number their classes differently "
                f"({some(known[0].values(), 6)}; {some(names.values(), 6)}): export both splits at "
                "once, or number them alike"
            )
        named = known
    return named


def _with_text(folder: Path) -> Path | None:
    """The folder of images beside labels/, beside their text files, or with these in it; None where there is none."""
    images = folder / "images"
    if (folder / "labels").is_dir():
        return images if images.is_dir() else None
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    texts = {Path(name).stem for name in names if name.endswith(".txt")}
    if not texts:
        return None
    if images.is_dir():
        return images if any(image.stem in texts for image in images_in(images)) else None
    pictures = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    here = any(Path(name).stem in texts for name in pictures) and not masks_among(pictures)
    return folder if here else None


def _named_beside(path: Path) -> tuple[dict[int, str], str]:
    """The names of the classes in a folder, and the file that has them; supervision's data.yaml has no splits."""
    for file in _yaml_files(path):
        if names := _names(values := _yaml(file)):
            _refuse_other_names(values, names, file)
            return names, file.name
    places = (f"{folder}{name}" for folder in ("", "labels/") for name in _NAME_FILES)
    said = next((place for place in places if (path / place).is_file()), "")
    return dict(enumerate(read_names(path / said))) if said else {}, said


def _kinds(files: list[Path]) -> tuple[int, int, int]:
    """The numbers of lines that are polygons and boxes; zeros for anything else."""
    polygons = boxes = upright = 0
    for file in files:
        for line in read_names(file):
            numbers = _values(line)
            if not all(_is_number(number) for number in numbers) or _class_of(numbers) is None:
                return 0, 0, 0
            polygons += len(numbers) >= 7
            boxes += len(numbers) in (5, 6)
            upright += len(numbers) >= 7 and is_upright_rectangle([float(number) for number in numbers[1:]])
    return polygons, boxes, upright


def _values(line: str) -> list[str]:
    """The numbers of a line; some programs put commas between them."""
    return line.replace(",", " ").split()


def _class_of(values: Sequence[str]) -> int | None:
    """The class of a line, which NumPy writes as 3.0 or 3.000e+00; None where the first value is no whole number."""
    number = float(values[0]) if _is_number(values[0]) else -1.0
    return int(number) if number >= 0 and number.is_integer() else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _highest(files: list[Path]) -> int:
    numbers = (_class_of(_values(line)) for file in files for line in read_names(file))
    return max((number for number in numbers if number is not None), default=0)


def _source(image: Path, ids: Mapping[int, int], place: Images, rest: int) -> Drawn:
    file = label_file(image)
    if not file.is_file():
        return Drawn(place.relative(image), image, image, rest=rest)
    return Drawn(place.relative(image), image, file, partial(_things, file, ids), rest=rest)


def _from_one(number: str, ids: Mapping[int, int]) -> str:
    """What to do if the classes seem to be counted from 1; empty for other numbers."""
    if number != str(len(ids)) or [*ids] != [*range(len(ids))]:
        return ""
    return (
        ", which YOLO counts from 0 on; if these files count from 1, write the numbers in data.yaml: names: {1: .., "
        "2: ..}"
    )


def _things(file: Path, ids: Mapping[int, int], height: int, width: int) -> Iterator[Thing]:
    for row, line in enumerate(read_names(file), 1):
        values = _values(line)
        number = _class_of(values)
        if number is None or number not in ids:
            raise UserError(
                f"{file}, line {row}: class {values[0]} is not among the {len(ids)} classes"
                f"{_from_one(str(number), ids)}"
            )
        numbers = np.array(values[1:], np.float64)
        if numbers.max(initial=0) > _MOST:
            raise UserError(
                f"{file}, line {row}: a coordinate of {numbers.max():g}; YOLO counts in fractions of the image's width "
                "and height, 0 to 1: divide pixels by these"
            )
        train = ids[number]
        if len(numbers) in (4, 5):
            x, y, wide, high = numbers[:4] * (width, height, width, height)
            yield Thing(train, polygon_region(rectangle(x - wide / 2, y - high / 2, wide, high), height, width), True)
        else:
            yield Thing(train, polygon_region(corners(numbers.tolist()) * (width, height), height, width))
