"""The JSON of the VGG Image Annotator (VIA), versions 1 and 2: projects and exported annotations.

Source: the VIA 2 documentation (robots.ox.ac.uk/~vgg/software/via). The tool, a web page, was not run here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.shapes.drawn import (
    OVERLAPS,
    Drawn,
    Images,
    refuse_boxes,
    split_of_file,
    with_splits,
)
from degrid.data.formats.shapes.polygon import ellipse_region, polygon_region, rectangle
from degrid.data.formats.shapes.region import NOTHING, Region, Thing
from degrid.data.formats.tools.joined import named_classes
from degrid.data.formats.tools.label_files import LabelRow
from degrid.files import blaming, read_json
from degrid.lookup import counted, grouped
from degrid.types import IGNORE_INDEX, UserError

_MARK, _PROJECT = b'"shape_attributes"', b'"_via_img_metadata"'
_AREAS = ("polygon", "polyline", "circle", "ellipse", "rect")
# Attributes that hold the class, where a region has several.
_CLASS_WORDS = ("class", "label", "category", "name", "type", "object", "class_name", "object_name")
_ONLY = "object"


class Via(DataFormat):
    """One JSON file, or one in each split's folder, with the regions of the images that are in the same folder.

    The class is the region's only attribute, or the one called class, label, category, name or type. Regions without
    attributes are all of one class, "object"; a region that lacks the attribute that others have is void.
    """

    wanted = "the JSON of the VGG Image Annotator (VIA)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: a file is damaged, holds boxes or points only, or several attributes could be the class.
        """
        files = _files(path)
        if not files:
            return None
        root = path if path.is_dir() else path.parent
        contents = {file: _read(file) for file in files}
        rows = [image for found in contents.values() for image in found]
        regions = [region for image in rows for region in image["regions"]]
        notes = [OVERLAPS, *refuse_boxes(Counter(map(_kind, regions)), _AREAS, ("rect",), str(files[0]))]
        attribute = _attribute(regions, files[0])
        if not attribute:
            notes.append(f'the regions have no attribute: all of them are of one class, "{_ONLY}"')
        names = _names(regions, attribute)
        labels, rule, ids = named_classes([LabelRow(name, None, 0) for name in names], root, files[0].name)
        images = Images(root)
        splits = grouped(
            (split_of_file(file, root), source)
            for file, found in contents.items()
            for source in _sources(file, found, attribute, images, ids)
        )
        if empty := [image["regions"] for image in rows].count([]):
            notes.append(f"{counted(empty, 'image', 'have')} no region: background all over")
        divided, said = with_splits(splits)
        reason = ", ".join(file.relative_to(root).as_posix() for file in files)
        return Layout(reason, root, divided, labels, rule, notes=[*said, *notes])


def _sources(
    file: Path, rows: list[dict[str, Any]], attribute: str, images: Images, ids: Mapping[str, int]
) -> Iterator[Drawn]:
    for row in rows:
        image = images.find(str(row["filename"]), file.parent)
        things = partial(_things, row["regions"], attribute, ids)
        yield Drawn(images.relative(image), image, file, things, rest=ids[""])


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and _MARK in path.read_bytes() else []
    found = [
        file for pattern in ("*.json", "*/*.json") for file in sorted(path.glob(pattern)) if _MARK in file.read_bytes()
    ]
    # A project and its export hold the same regions.
    number = Counter(file.parent for file in found)
    return [file for file in found if number[file.parent] == 1 or _PROJECT not in file.read_bytes()]


def _read(file: Path) -> list[dict[str, Any]]:
    """The images, each with filename and regions, a list."""
    content = read_json(file)
    with blaming(f"{file}: expected the images of VIA, each with filename and regions"):
        images = content.get("_via_img_metadata", content)
        found = []
        for image in images.values() if isinstance(images, dict) else images:
            regions = image["regions"]
            rows = list(regions.values()) if isinstance(regions, dict) else regions
            for row in rows:
                row["shape_attributes"]["name"]
            found.append({"filename": image["filename"], "regions": rows})
    return found


def _attribute(regions: Sequence[Mapping[str, Any]], file: Path) -> str:
    """The attribute that holds the class; empty where there is none."""
    counts = Counter(
        key for region in regions for key, value in (region.get("region_attributes") or {}).items() if value
    )
    if len(counts) <= 1:
        return str(next(iter(counts), ""))
    called: str | None = next((key for word in _CLASS_WORDS for key in counts if key.lower() == word), None)
    if called is None:
        raise UserError(
            f'{file}: the regions have the attributes {", ".join(counts)}; call the one that holds the class "class"'
        )
    return called


def _kind(region: Mapping[str, Any]) -> str:
    """The kind of a region; a polyline encloses an area only where it ends at its beginning."""
    shape = region["shape_attributes"]
    x, y = shape.get("all_points_x") or [0], shape.get("all_points_y") or [0]
    opened = shape["name"] == "polyline" and (x[0], y[0]) != (x[-1], y[-1])
    return "open polyline" if opened else str(shape["name"])


def _name(region: Mapping[str, Any], attribute: str) -> str:
    """The class of a region; empty where it has none."""
    value: Any = (region.get("region_attributes") or {}).get(attribute, "") if attribute else _ONLY
    if isinstance(value, dict):  # check boxes
        value = next((key for key, ticked in value.items() if ticked), "")
    return str(value).strip()


def _names(regions: Sequence[Mapping[str, Any]], attribute: str) -> list[str]:
    return sorted({_name(region, attribute) for region in regions if _kind(region) in _AREAS} - {""})


def _things(
    regions: Sequence[Mapping[str, Any]], attribute: str, ids: Mapping[str, int], height: int, width: int
) -> Iterator[Thing]:
    for region in regions:
        if _kind(region) not in _AREAS:
            continue
        name = _name(region, attribute)
        yield Thing(ids[name] if name else IGNORE_INDEX, _region(region["shape_attributes"], (height, width)))


def _region(shape: Mapping[str, Any], size: tuple[int, int]) -> Region:
    kind = shape["name"]
    if kind in ("polygon", "polyline"):
        points = np.array([shape["all_points_x"], shape["all_points_y"]], np.float64).T
        return polygon_region(points, *size)
    if kind == "rect":
        return polygon_region(rectangle(shape["x"], shape["y"], shape["width"], shape["height"]), *size)
    if kind == "circle":
        return ellipse_region((shape["cx"], shape["cy"]), (shape["r"], shape["r"]), 0, size)
    if kind == "ellipse":
        angle = float(np.degrees(shape.get("theta") or 0))
        return ellipse_region((shape["cx"], shape["cy"]), (shape["rx"], shape["ry"]), angle, size)
    return NOTHING
