"""CVAT's own XML, "CVAT for images 1.1": polygons, masks, ellipses and rectangles, with the order of their layers.

Source: CVAT's description of its XML format and its exporter (dataset_manager/formats/cvat.py), and Datumaro 1.13.12.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from degrid.data.formats.class_text import written_color
from degrid.data.formats.layout import DataFormat, Layout, split_of
from degrid.data.formats.shapes.drawn import Drawn, Images, read_xml, refuse_boxes, split_of_file, with_splits
from degrid.data.formats.shapes.polygon import ellipse_region, polygon_region, rectangle
from degrid.data.formats.shapes.region import Region, Thing
from degrid.data.formats.tools.joined import named_classes
from degrid.data.formats.tools.label_files import LabelRow
from degrid.files import blaming
from degrid.lookup import counted, grouped
from degrid.types import UserError

_AREAS = ("polygon", "mask", "ellipse", "box")
_OF_IMAGES = ("tag", "attribute")
"""Kinds that describe the image as a whole."""


class _Image(NamedTuple):
    """One image: its name, split ("" where none is said), size, and its shapes with an area as they are written."""

    name: str
    subset: str
    size: tuple[int, int]
    shapes: list[ElementTree.Element]


class _File(NamedTuple):
    """The labels in their order, the images, and how many shapes there are of each kind."""

    rows: list[LabelRow]
    images: list[_Image]
    kinds: Counter[str]


class Cvat(DataFormat):
    """annotations.xml, one for each task or one for a project, and the images in `images`.

    Objects of a higher layer (z_order) are on top; of one layer, the smaller one. Rectangles are objects, as in CVAT's
    export of masks.
    """

    wanted = "the XML of CVAT (CVAT for images 1.1)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: a file is damaged, holds tracks of a video, or boxes only.
        """
        files = _files(path)
        if not files:
            return None
        root = path if path.is_dir() else path.parent
        contents = {file: _read(file) for file in files}
        kinds = sum((content.kinds for content in contents.values()), Counter[str]())
        notes = ["pixels without an object are background; where objects overlap, the higher layer (z_order) counts"]
        notes += refuse_boxes(kinds, _AREAS, ("box",), str(files[0]))
        rows = {row.name: row for content in contents.values() for row in content.rows}
        labels, rule, ids = named_classes(rows.values(), root, files[0].name)
        images = Images(root)
        splits = grouped(
            (split_of(row.subset) if row.subset else split_of_file(file, root), _source(file, row, images, ids))
            for file, content in contents.items()
            for row in content.images
        )
        if empty := sum(not row.shapes for content in contents.values() for row in content.images):
            notes.append(f"{counted(empty, 'image', 'have')} no object: background all over")
        divided, said = with_splits(splits)
        reason = ", ".join(file.relative_to(root).as_posix() for file in files)
        return Layout(reason, root, divided, labels, rule, notes=[*said, *notes])


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else [*sorted(path.glob("*.xml")), *sorted(path.glob("*/*.xml"))]
    return [file for file in found if file.suffix.lower() == ".xml" and _is_cvat(file)]


def _is_cvat(file: Path) -> bool:
    with file.open("rb") as stream:
        start = stream.read(4096)
    return b"<annotations>" in start and b"<version>" in start


def _read(file: Path) -> _File:
    root = read_xml(file)
    if root.find("track") is not None and root.find("image") is None:
        raise UserError(f'{file} holds the tracks of a video; export "CVAT for images 1.1", with the images, from CVAT')
    with blaming(f"{file}: expected CVAT's images, each with name, width, height and shapes"):
        rows = [_row(label) for label in root.iterfind("meta//label") if not label.findtext("parent")]
        subset = (root.findtext("meta/task/subset") or "").strip()
        kinds = Counter(shape.tag for shape in root.iterfind("image/*") if shape.tag not in _OF_IMAGES)
        images = [_image(image, subset) for image in root.iterfind("image")]
        used = dict.fromkeys(shape.attrib["label"] for image in images for shape in image.shapes)
    known = {row.name for row in rows}
    return _File([*rows, *(LabelRow(name, None, 0) for name in used if name not in known)], images, kinds)


def _image(element: ElementTree.Element, subset: str) -> _Image:
    size = int(element.attrib["height"]), int(element.attrib["width"])
    drawn = [shape for shape in element if shape.tag in _AREAS]
    return _Image(element.attrib["name"], element.get("subset") or subset, size, drawn)


def _row(label: ElementTree.Element) -> LabelRow:
    return LabelRow((label.findtext("name") or "").strip(), written_color(label.findtext("color") or ""), 0)


def _source(file: Path, row: _Image, images: Images, ids: Mapping[str, int]) -> Drawn:
    inside = file.parent / "images"
    subset = row.subset or "default"
    image = images.find(row.name, inside / subset, inside, file.parent / subset, file.parent)
    things = partial(_things, row.shapes, ids)
    return Drawn(images.relative(image), image, file, things, row.size, ids[""])


def _things(shapes: Sequence[ElementTree.Element], ids: Mapping[str, int], height: int, width: int) -> Iterator[Thing]:
    for shape in shapes:
        yield Thing(ids[shape.attrib["label"]], _region(shape, (height, width)), layer=int(shape.get("z_order") or 0))


def _region(shape: ElementTree.Element, size: tuple[int, int]) -> Region:
    def numbers(*names: str) -> list[float]:
        return [float(shape.attrib[name]) for name in names]

    if shape.tag == "polygon":
        points = [[float(value) for value in point.split(",")] for point in shape.attrib["points"].split(";")]
        return polygon_region(np.array(points, np.float64).reshape(len(points), 2), *size)
    if shape.tag == "mask":
        left, top, width, height = (int(value) for value in numbers("left", "top", "width", "height"))
        return Region(top, left, _mask(shape.attrib["rle"], height, width))
    angle = float(shape.get("rotation") or 0)
    if shape.tag == "ellipse":
        cx, cy, rx, ry = numbers("cx", "cy", "rx", "ry")
        return ellipse_region((cx, cy), (rx, ry), angle, size)
    left_top, right_bottom = numbers("xtl", "ytl"), numbers("xbr", "ybr")
    # Rotated clockwise around its centre.
    middle, reach = np.add(left_top, right_bottom) / 2, np.subtract(right_bottom, left_top)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    corners = rectangle(-reach[0] / 2, -reach[1] / 2, reach[0], reach[1])
    return polygon_region(corners @ np.array([[cos, sin], [-sin, cos]]) + middle, *size)


def _mask(code: str, height: int, width: int) -> np.ndarray:
    """The pixels, bool [h,w], of run lengths of background and object in turn, row by row."""
    counts = np.array([int(count) for count in code.split(",")], np.int64)
    if counts.min(initial=0) < 0 or counts.sum() != height * width:
        raise ValueError(f"the runs of a mask of {width}x{height} pixels add up to {counts.sum()}")
    pixels: np.ndarray = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    return pixels
