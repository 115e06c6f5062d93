"""COCO's panoptic labels: PNG files of segments, whose classes are in a JSON file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.formats.benchmarks.coco import prepared_folders
from degrid.data.formats.class_rows import VOID_NAMES
from degrid.data.formats.layout import DataFormat, Layout, split_of
from degrid.data.formats.masks import Color, MaskRule
from degrid.data.formats.pairs import Pair
from degrid.data.formats.source import LazySources, Source
from degrid.data.formats.tools.coco_json import CocoJson
from degrid.files import blaming, parse_json, read_text
from degrid.lookup import some
from degrid.types import IGNORE_INDEX, LabelSpace, UserError, voc_palette


class CocoPanoptic(DataFormat):
    """annotations/panoptic_val2017.json, panoptic_val2017/*.png and val2017 (or images/val2017): things and stuff.

    Where the instances beside them have the same categories, these are read: see `CocoJson`.
    A pixel (R,G,B) belongs to the segment R + 256 G + 65536 B, whose category is its class; 0 is void.
    """

    wanted = "annotations/panoptic_train2017.json, panoptic_train2017 and train2017 (COCO panoptic)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: the files of images or segments are missing, or the categories are of another form.
        """
        files = sorted([*path.glob("panoptic_*.json"), *path.glob("annotations/panoptic_*.json")])
        if not files or prepared_folders(path):
            return None
        whole = _whole(files, path)
        if not whole:
            return None
        if _has_nothing_of_its_own(list(whole), path):
            found = CocoJson(self.root).find(path)
            return found and replace(found, kind="COCO polygons")
        labels, trains = _categories(list(whole))
        splits = {
            split_of(re.sub(r"[-_]?\d{4}$", "", _name(file))): LazySources(partial(_segmented, file, *both, trains))
            for file, both in whole.items()
        }
        notes = [f"{file.name} is there without its images or segments" for file in files if file not in whole]
        notes += _note_on_instances(path)
        said = replace(MaskRule.plain(labels, said=next(iter(whole)).name), exact=True)  # the labels are train ids
        return Layout(", ".join(file.name for file in whole), path, splits, labels, said, notes=notes)


def _whole(files: list[Path], path: Path) -> dict[Path, tuple[Path, Path]]:
    """The files whose folders of images and of segments are there; none where instances lie beside instead.

    Raises:
        UserError: nothing is there to read.
    """
    folders = {file: (_images_of(file, path), _segments_of(file, path)) for file in files}
    whole = {file: (images, masks) for file, (images, masks) in folders.items() if images and masks}
    if not whole and not any((path / "annotations").glob("instances_*.json")):
        images, _ = folders[files[0]]
        missing = f"segments: unpack {files[0].stem}.zip" if images else "images"
        raise UserError(f"{files[0]} is there without its {missing}, in {path}")
    return whole


def _has_nothing_of_its_own(files: list[Path], path: Path) -> bool:
    """Whether instances of the same categories lie beside, as in Datumaro's export of everything.

    These hold the polygons, too, and what was not drawn on is background there. COCO's panoptic labels add stuff.
    """
    beside = sorted((path / "annotations").glob("instances_*.json"), key=lambda file: file.stat().st_size)
    rows = [row for file in files[:1] for row in _read(file)["categories"]]
    with blaming(f"{files[0]}: expected categories, each with name"):
        if not beside or len({row.get("isthing") for row in rows}) > 1:
            return False
        others = _read(beside[0])["categories"]
        return {row["name"] for row in rows} == {row["name"] for row in others}


def _note_on_instances(path: Path) -> list[str]:
    return [
        f"{file.name} lies beside: the panoptic labels are read, where 0 is void; for instances on a background give "
        f'"COCO polygons={path}"'
        for file in sorted((path / "annotations").glob("instances_*.json"))[:1]
    ]


def _name(file: Path) -> str:
    return file.stem.removeprefix("panoptic_")


def _images_of(file: Path, path: Path) -> Path | None:
    return next((place for place in (path / "images" / _name(file), path / _name(file)) if place.is_dir()), None)


def _segments_of(file: Path, path: Path) -> Path | None:
    places = (file.parent / file.stem, path / file.stem, path / "annotations" / file.stem)
    return next((place for place in places if place.is_dir() and any(place.glob("*.png"))), None)


def _read(file: Path) -> dict[str, Any]:
    with blaming(f"{file}: expected images, annotations and categories"):
        values = parse_json(read_text(file))
        return {key: list(values[key]) for key in ("images", "annotations", "categories")}


def _categories(files: list[Path]) -> tuple[LabelSpace, dict[int, int]]:
    """The classes in the order of their ids, after the smallest file, and the train id of each category; that of one
    called void is void."""
    file = min(files, key=lambda each: each.stat().st_size)
    values = _read(file)
    with blaming(f"{file}: expected categories, each with id and name"):
        rows = sorted(values["categories"], key=lambda row: int(row["id"]))
        palette = voc_palette(len(rows))
        colors: list[Color] = []
        for row, default in zip(rows, palette, strict=True):
            color = row.get("color")
            colors.append((int(color[0]), int(color[1]), int(color[2])) if color else default)
        kept = [k for k, row in enumerate(rows) if str(row["name"]).lower() not in VOID_NAMES]
        labels = LabelSpace(tuple(str(rows[k]["name"]) for k in kept), tuple(colors[k] for k in kept))
        trains = {int(rows[k]["id"]): train for train, k in enumerate(kept)}
        return labels, {**{int(row["id"]): IGNORE_INDEX for row in rows}, **trains}


def _segmented(file: Path, images: Path, masks: Path, trains: dict[int, int]) -> Iterator[Source]:
    """The images of a split with their segments.

    Raises:
        UserError: a segment has a category that is not listed, or the rows have another form.
    """
    values = _read(file)
    with blaming(f"{file}: expected images, and annotations with their segments"):
        names = {row["id"]: str(row["file_name"]) for row in values["images"]}
        for row in values["annotations"]:
            called = str(row["file_name"])
            unknown = {info["category_id"] for info in row["segments_info"]} - set(trains)
            if unknown:
                raise UserError(f"{file}: {called} has categories that are not listed: {some(sorted(unknown))}")
            segments = {int(info["id"]): trains[info["category_id"]] for info in row["segments_info"]}
            image = images / names.get(row["image_id"], f"{Path(called).stem}.jpg")
            yield Segments(image.stem, image, masks / called, segments=segments)


@dataclass(frozen=True)
class Segments(Pair):
    """An image and its segments.

    Attributes:
        segments: the train id of each segment; 0 is no segment.
    """

    segments: dict[int, int] = field(default_factory=dict, kw_only=True, hash=False)

    def read_label(self) -> np.ndarray:
        """See `Source`."""
        values = super().read_label()
        # Greys: all segments have numbers below 256, or the file has an alpha channel and is grey.
        numbers = values if values.ndim == 2 else values.astype(np.int64) @ np.array([1, 256, 65536])
        found, inverse = np.unique(numbers, return_inverse=True)
        unknown = [int(number) for number in found if number and number not in self.segments]
        if unknown:
            raise UserError(f"{self.mask} has segments that the JSON file does not list: {some(unknown)}")
        table = np.array([self.segments.get(int(number), IGNORE_INDEX) for number in found], np.uint8)
        label: np.ndarray = table[inverse.reshape(numbers.shape)]
        return label
