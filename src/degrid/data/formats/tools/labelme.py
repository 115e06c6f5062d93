"""labelme's JSON files, one beside each image."""

from __future__ import annotations

import base64
import binascii
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from degrid.bands import values_of
from degrid.data.formats.classes import has_table
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import MaskRule, rgb_like
from degrid.data.formats.pair_lists import read_names
from degrid.data.formats.pairs import files_in
from degrid.data.formats.shapes.drawn import Drawn, Images, refuse_boxes, split_of_folders, with_splits
from degrid.data.formats.shapes.polygon import ellipse_region, polygon_region, rectangle
from degrid.data.formats.shapes.region import Region, Thing
from degrid.data.formats.tools.joined import named_classes
from degrid.data.formats.tools.label_files import LabelRow
from degrid.files import blaming, read_json
from degrid.image import oriented
from degrid.lookup import counted
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

_MARKS = (b'"shapes"', b'"imagePath"')
_BOXES = ("rectangle", "oriented_rectangle", "rotation")  # the last is X-AnyLabeling's
_AREAS = ("polygon", "circle", "mask", *_BOXES)


class Labelme(DataFormat):
    """NAME.json with shapes beside the images, in folders named like splits or not.

    Polygons, rectangles, circles and masks are drawn in the order of the file, as labelme's own shapes_to_label does;
    points and lines have no area.
    """

    wanted = "NAME.json of labelme"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: a file is damaged, or they hold nothing but rectangles, points and lines.
        """
        files = [file for file in files_in(path, ".json") if all(mark in file.read_bytes() for mark in _MARKS)]
        if not files:
            return None
        contents = {file: _read(file) for file in files}
        shapes = [shape for content in contents.values() for shape in content["shapes"]]
        left_out = refuse_boxes(Counter(map(_kind, shapes)), _AREAS, _BOXES, f"{files[0]} and others of labelme")
        classes, rule, ids = _classes(shapes, files, path)
        images = Images(path)
        splits: dict[str, list[Drawn]] = {}
        for file, content in contents.items():
            image = _image(content, file, images)
            made = Drawn
            if content["imageData"] and not image.is_file():
                made, image = Embedded, file
            source = made(images.relative(image), image, file, partial(_things, file, ids), _size(content), ids[""])
            splits.setdefault(split_of_folders(file, path), []).append(source)
        used = {source.image for sources in splits.values() for source in sources}
        divided, notes = with_splits(splits)
        notes += ["pixels without an object are background; where objects overlap, the later one counts", *left_out]
        if lost := len(set(images.all) - used):
            notes.append(f"{counted(lost, 'image', 'have')} no JSON file: left out, since nobody annotated them")
        return Layout(f"images and {files[0].name}", path, divided, classes, rule, notes=notes)


@dataclass(frozen=True)
class Embedded(Drawn):
    """An image that is stored in the file of its shapes, which is its `image`, too."""

    def image_file(self) -> bytes:
        """See `Source`."""
        with blaming(f"{self.image}: imageData is not an image in base64"):
            return base64.b64decode(read_json(self.image)["imageData"])

    def image_length(self) -> int:
        """See `Source`."""
        return 0

    def read_image(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """See `Source`."""
        return rgb_like(self._opened(), size or (0, 0))

    def read_values(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """See `Source`."""
        return values_of(oriented(self._opened(), size))

    def is_plain(self) -> bool:
        """See `Source`. labelme stores what it shows."""
        return True

    def _opened(self) -> Image.Image:
        try:
            opened = Image.open(io.BytesIO(self.image_file()))
            opened.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{self.image}: imageData is not a readable image ({error})") from error
        return opened


def _classes(
    shapes: list[Mapping[str, Any]], files: list[Path], path: Path
) -> tuple[LabelSpace, MaskRule, dict[str, int]]:
    """The classes in the order of labels.txt, which labelme was started with, and then of the alphabet."""
    labels = {str(shape["label"]) for shape in shapes if _kind(shape) in _AREAS}
    listed = path / "labels.txt"  # background is often missing
    order = read_names(listed) if listed.is_file() else []
    rows = [LabelRow(name, None, 0) for name in dict.fromkeys([*order, *sorted(labels)]) if name != "__ignore__"]
    said = listed if order else files[0]
    classes, rule, ids = named_classes(rows, path if has_table(path) else None, said.name)
    return classes, rule, {"__ignore__": IGNORE_INDEX, **ids}


def _read(file: Path) -> dict[str, Any]:
    content = read_json(file)
    with blaming(f"{file}: expected labelme's shapes, each with label and points, and the image's path and size"):
        for shape in content["shapes"]:
            shape["label"], shape["points"]
        content["imagePath"], _size(content)
    # The pictures of all files would not fit into memory.
    return {**content, "imageData": bool(content.get("imageData"))}


def _kind(shape: Mapping[str, Any]) -> str:
    return str(shape.get("shape_type") or "polygon")


def _image(content: Mapping[str, Any], file: Path, images: Images) -> Path:
    """The image that the file names, or the one that is named like the file.

    Raises:
        UserError: these are two, as where files were renamed.
    """
    named = images.find(str(content["imagePath"]), file.parent)
    if named.is_file() and named.stem == file.stem:
        return named
    beside = next(iter(images.beside(file)), None)
    if beside and named.is_file():
        raise UserError(
            f"{file} says that its image is {named.name}, but {beside.name} beside it has its own name: correct "
            "imagePath in it, or give it the name of its image"
        )
    return beside or named


def _size(content: Mapping[str, Any]) -> tuple[int, int] | None:
    size = content.get("imageHeight"), content.get("imageWidth")
    return (int(size[0]), int(size[1])) if size[0] and size[1] else None


def _things(file: Path, ids: Mapping[str, int], height: int, width: int) -> Iterator[Thing]:
    for number, shape in enumerate(_read(file)["shapes"]):
        if _kind(shape) not in _AREAS:
            continue
        if str(shape["label"]) not in ids:
            raise UserError(f'{file} has a shape of the class "{shape["label"]}", which the data did not have')
        yield Thing(ids[str(shape["label"])], _region(shape, height, width), layer=number)


def _region(shape: Mapping[str, Any], height: int, width: int) -> Region:
    points = np.asarray(shape["points"], np.float64)
    kind = _kind(shape)
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        return ellipse_region((points[0][0], points[0][1]), (radius, radius), 0, (height, width))
    if kind == "mask":
        left, top = points[0].astype(int)
        return Region(int(top), int(left), _mask(shape["mask"])).inside(height, width)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = rectangle(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0))
    return polygon_region(points, height, width)


def _mask(data: str) -> np.ndarray:
    """The pixels of a PNG in base64, bool [h,w]."""
    try:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")) > 0
    except (binascii.Error, OSError) as error:
        raise ValueError(f"a mask that is no PNG: {error}") from error
