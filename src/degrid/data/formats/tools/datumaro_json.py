"""Datumaro's own format: annotations/SPLIT.json with masks, polygons and the order of their layers.

Source: the exporters of Datumaro 1.13.12 and of the copy in CVAT ("Datumaro 1.0").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from degrid.data.formats.class_rows import VOID_NAMES
from degrid.data.formats.layout import Crowds, DataFormat, Layout, split_of
from degrid.data.formats.masks import Color
from degrid.data.formats.shapes.drawn import Drawn, Images, refuse_boxes, with_splits
from degrid.data.formats.shapes.polygon import corners, ellipse_region, polygon_region, rectangle
from degrid.data.formats.shapes.region import Region, Thing
from degrid.data.formats.shapes.runs import runs_region
from degrid.data.formats.tools.joined import named_classes
from degrid.data.formats.tools.label_files import LabelRow
from degrid.files import blaming, read_json
from degrid.lookup import counted
from degrid.types import IGNORE_INDEX

_MARKS = (b'"categories"', b'"items"', b'"annotations"')
_AREAS = ("mask", "polygon", "ellipse", "bbox")
# Kinds that describe the image as a whole.
_OF_IMAGES = ("label", "caption")


class _Content(NamedTuple):
    """The classes in the order of their ids, with colours where the file has them, and the items."""

    rows: list[LabelRow]
    items: list[dict[str, Any]]


class DatumaroJson(DataFormat):
    """annotations/SPLIT.json and images/SPLIT, or one such file.

    Objects of a higher layer (z_order) are on top; of one layer, the smaller one. Boxes without an outline of their
    group are void, except where an object is drawn.
    """

    wanted = "annotations/SPLIT.json of Datumaro, with items and categories"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: a file is damaged, or holds boxes only.
        """
        files = _files(path)
        if not files:
            return None
        root = path if path.is_dir() else path.parent.parent if path.parent.name == "annotations" else path.parent
        contents = {file: _read(file) for file in files}
        rows = {row.name: row for content in contents.values() for row in content.rows}
        labels, rule, ids = named_classes(rows.values(), root, files[0].name)
        items = [item for content in contents.values() for item in content.items]
        shapes = [row for item in items for row in item["annotations"] if row["type"] not in _OF_IMAGES]
        notes = _notes(items, shapes, files[0])
        images = Images(root)
        splits: dict[str, list[Drawn]] = {}
        for file, content in contents.items():
            trains = {number: ids[row.name] for number, row in enumerate(content.rows)}
            splits.setdefault(split_of(file.stem), []).extend(_sources(file, content.items, images, trains, ids[""]))
        divided, said = with_splits(splits)
        reason = ", ".join(file.relative_to(root).as_posix() for file in files)
        return Layout(reason, root, divided, labels, rule, notes=[*said, *notes], crowds=_crowds(contents.values()))


def _notes(items: Sequence[Mapping[str, Any]], shapes: Sequence[Mapping[str, Any]], file: Path) -> list[str]:
    """Notes on what is left out, void or empty.

    Raises:
        UserError: there are boxes, points and lines only.
    """
    kinds = Counter(row["type"] for row in shapes)
    notes = ["pixels without an object are background; where objects overlap, the higher layer (z_order) counts"]
    notes += refuse_boxes(kinds, _AREAS, ("bbox",), file.name)
    if kinds["bbox"]:
        notes.append("boxes without an outline of their group are void, except where an object is drawn")
    if empty := sum(not item["annotations"] for item in items):
        notes.append(f"{counted(empty, 'image', 'have')} no annotation: background all over")
    return notes


def _files(path: Path) -> list[Path]:
    given = [path] if path.is_file() else sorted((path / "annotations").glob("*.json"))
    return [file for file in given if file.suffix.lower() == ".json" and _is_datumaro(file)]


def _is_datumaro(file: Path) -> bool:
    content = file.read_bytes()
    return all(mark in content for mark in _MARKS) and b'"images"' not in content


def _read(file: Path) -> _Content:
    content = read_json(file)
    with blaming(f"{file}: expected Datumaro's categories, and items with annotations"):
        categories = content["categories"]
        shown = categories.get("mask", {}).get("colormap", [])
        colors: dict[int, Color] = {row["label_id"]: (row["r"], row["g"], row["b"]) for row in shown}
        names = [str(row["name"]) for row in categories["label"]["labels"]]
        for item in content["items"]:
            for row in item["annotations"]:
                row["type"], row.get("attributes", {}).get("is_crowd")
        rows = [LabelRow(name, colors.get(number), number) for number, name in enumerate(names)]
        return _Content(rows, content["items"])


def _sources(
    file: Path, items: Sequence[Mapping[str, Any]], images: Images, ids: Mapping[int, int], rest: int
) -> Iterator[Drawn]:
    near = [images.root / "images" / file.stem, images.root / "images"]
    for item in items:
        with blaming(f"{file}: expected items, each with id, image and annotations"):
            named = item.get("image") or {}
            image = images.find(str(named.get("path") or f"{item['id']}.jpg"), *near)
            size = (int(named["size"][0]), int(named["size"][1])) if named.get("size") else None
            yield Drawn(images.relative(image), image, file, partial(_things, item["annotations"], ids), size, rest)


def _crowds(contents: Iterable[_Content]) -> Crowds:
    """The names of the shapes by class; a shape without a class is always void."""
    return Crowds.of(
        (content.rows[row["label_id"]].name if row.get("label_id") is not None else VOID_NAMES[0], _is_crowd(row))
        for content in contents
        for item in content.items
        for row in item["annotations"]
        if row["type"] not in _OF_IMAGES
    )


def _is_crowd(row: Mapping[str, Any]) -> bool:
    return bool((row.get("attributes") or {}).get("is_crowd"))


def _things(rows: Sequence[Mapping[str, Any]], ids: Mapping[int, int], height: int, width: int) -> Iterator[Thing]:
    outlined = {row.get("group") for row in rows if row["type"] in _AREAS and row["type"] != "bbox"} - {0, None}
    for row in rows:
        if row["type"] == "bbox":
            if row.get("group") not in outlined:
                yield Thing(IGNORE_INDEX, polygon_region(rectangle(*row["bbox"]), height, width), True)
        elif row["type"] in _AREAS:
            label = row.get("label_id")
            train = IGNORE_INDEX if label is None else ids[label]
            yield Thing(train, _region(row, height, width), _is_crowd(row), row.get("z_order") or 0)


def _region(row: Mapping[str, Any], height: int, width: int) -> Region:
    if row["type"] == "mask":
        return runs_region(row["rle"], height, width)
    points = corners(row["points"])
    if row["type"] == "polygon":
        return polygon_region(points, height, width)
    middle, radii = points.mean(axis=0), np.abs(points[1] - points[0]) / 2
    return ellipse_region((middle[0], middle[1]), (radii[0], radii[1]), 0, (height, width))
