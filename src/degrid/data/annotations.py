"""Regions written as files of annotation tools, to be corrected there: one class and one row of `TOOLS` per tool.

Where a file names an image, it is the path below the folder that was searched, as the tools know uploaded images.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from degrid.arguments import check_fields
from degrid.data.formats.class_rows import VOID_NAMES
from degrid.data.formats.classes import write_class_table
from degrid.data.formats.shapes.outlines import Outline, outlines, without_small
from degrid.data.formats.shapes.polygon import polygon_region
from degrid.data.formats.shapes.region import NOTHING, Region, window
from degrid.data.formats.shapes.runs import label_studio_code, packed, runs_of
from degrid.data.formats.tools.label_files import is_background
from degrid.files import atomic_write, write_json, write_text
from degrid.lookup import counted, some, unknown
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

SHAPES = ("polygons", "masks")
_VOID, _VOID_COLOR = "void", (255, 255, 255)
_UNWRITTEN = ("Cc", "Cs", "Cn", "Zl", "Zp")
"""Unicode's categories of what XML or UTF-8 cannot hold, or a line of text: control characters, halves of characters,
what is no character, and ends of lines."""


@dataclass(frozen=True)
class Regions:
    """How regions are drawn.

    Attributes:
        shapes: "polygons", whose holes are reached by cuts; or "masks": run-length codes, or in labelme an image.
        smallest: a region of fewer pixels takes the class around it; see `without_small`.
        simplify: how far, in pixels, an outline may be from the border of its pixels; 0: exactly along it.
    Raises:
        UserError: unknown shapes, or a negative number.
    """

    shapes: str = "polygons"
    smallest: int = 0
    simplify: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.shapes not in SHAPES:
            raise unknown("shapes", self.shapes, SHAPES)
        if self.smallest < 0 or not 0 <= self.simplify < math.inf:
            raise UserError(
                f"--smallest and --simplify (smallest=..., simplify=...) must be 0 or more pixels, got {self.smallest} "
                f"and {self.simplify:g}"
            )


@dataclass(frozen=True)
class Shape:
    """One region of an image as it is drawn.

    Attributes:
        name, value: of its class.
        outline: its border.
        size: of the image, height and width.
    """

    name: str
    value: int
    outline: Outline
    size: tuple[int, int]

    @property
    def score(self) -> float | None:
        """The mean probability of the class over the pixels, 0 to 1, to four digits; None where it is not known."""
        return None if math.isnan(self.outline.mean) else round(self.outline.mean, 4)

    @cached_property
    def region(self) -> Region:
        """Its pixels."""
        region = polygon_region(self.outline.joined.astype(np.float64), *self.size)
        rows, columns = np.flatnonzero(region.pixels.any(1)), np.flatnonzero(region.pixels.any(0))
        if not len(rows):  # a thin region, simplified
            return NOTHING
        pixels = region.pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return Region(region.top + int(rows[0]), region.left + int(columns[0]), pixels)

    def whole(self) -> np.ndarray:
        """Its pixels in the image, bool [H,W]."""
        pixels = np.zeros(self.size, bool)
        window(pixels, self.region)[...] = self.region.pixels
        return pixels


class AnnotationTool(ABC):
    """Writes the regions of images as one tool reads them, with the classes as classes.csv for degrid.

    Pixels of a class called background, and only these, are what nothing is drawn on. Pixels without data are drawn and
    called void. Classes whose names would be read back as something else are called by `readable` ones.

    Args:
        out: the folder to write to.
        labels: the classes.
        regions: how.
    Attributes:
        own: the names of the files that there is one of.
    """

    own: ClassVar[tuple[str, ...]] = ()

    def __init__(self, out: Path, labels: LabelSpace, regions: Regions) -> None:
        self.out, self.regions = out, regions
        self.labels, self.renamed = readable(labels)
        self.names = [*self.labels.names, _VOID]
        self.colors = [*labels.colors, _VOID_COLOR]
        self.count = self.unsure = 0
        self.has_void = False

    def add(self, name: str, file: Path, ids: np.ndarray, confidence: np.ndarray | None = None) -> None:
        """Write an image's regions, or keep them for `finish`.

        Args:
            name: of the results, with sub-folders, without extension.
            file: the image.
            ids: uint8 [H,W]; 255 where there are no data.
            confidence: the probability of each pixel's class, float [H,W].
        Raises:
            UserError: the place cannot be written to.
        """
        if self.regions.smallest > 1:
            ids = without_small(ids, self.regions.smallest)
        leave = [value for value, name in enumerate(self.labels.names) if is_background(name)]
        size = ids.shape[0], ids.shape[1]
        shapes = []
        for outline in outlines(ids, leave, self.regions.simplify, confidence):
            void = outline.value == IGNORE_INDEX
            self.has_void |= void
            value = len(self.labels) if void else outline.value
            shape = Shape(self.names[value], value, outline, size)
            if not self.regions.simplify or shape.region.pixels.size:
                shapes.append(shape)
        self.write(name, file, size, shapes)
        self.count += 1
        self.unsure += confidence is None

    @abstractmethod
    def write(self, name: str, file: Path, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """Write the shapes of an image of this height and width, or keep them for `finish`."""

    def finish(self) -> str:
        """Write what remains, and say in one line what is where.

        Raises:
            UserError: the place cannot be written to, or has another table of classes.
        """
        table = write_class_table(self.out, self.labels)  # before labels.txt, which would count as one
        self.write_rest()
        unsure = f"; {self.unsure} of them without confidence, which windows and exported files of ids do not give"
        called = some((f"{old!a} {new}" for old, new in self.renamed.items()), 4)
        return (
            f"{counted(self.count, 'image')} as {self.regions.shapes}{unsure if self.unsure else ''}: {self.said()}; "
            f"classes: {table}" + (f", where names that files cannot hold were changed: {called}" if called else "")
        )

    @abstractmethod
    def write_rest(self) -> None:
        """Write what was kept."""

    def said(self) -> str:
        """What is where."""
        return str(self.out / self.own[0])

    @classmethod
    def places(cls, out: Path, images: Mapping[str, Path]) -> list[Path]:
        """The files that would be written for images by their names, but for the table of classes."""
        return [out / name for name in cls.own]

    @property
    def used(self) -> list[str]:
        """The classes, and void if there is any."""
        return self.names if self.has_void else self.names[:-1]


def readable(labels: LabelSpace) -> tuple[LabelSpace, dict[str, str]]:
    """The classes by names that each file gives back as they are, and the names that had to be others.

    Control characters and blanks at the ends are left out. A number is added to what readers take for pixels without
    data, to a second name for the background, and to names that are the same without these characters.
    """
    names: list[str] = []
    grounds = [name for name in labels.names if is_background(name)]
    for value, name in enumerate(labels.names):
        plain = "".join(" " if unicodedata.category(letter) in _UNWRITTEN else letter for letter in name).strip()
        if plain.lower() in VOID_NAMES or (is_background(plain) and name not in grounds[:1]):
            plain = f"{plain} ({value})"
        plain = plain or f"class {value}"
        while plain in names or (plain != name and plain in labels.names):
            plain = f"{plain} ({value})"
        names.append(plain)
    changed = {old: new for old, new in zip(labels.names, names, strict=True) if old != new}
    return LabelSpace(tuple(names), labels.colors), changed


def named(name: str, file: Path) -> str:
    """The path of an image below the folder that was searched."""
    longer = f"{name}{file.suffix}"
    return longer if Path(longer).name == file.name else name


class Coco(AnnotationTool):
    """annotations.json in COCO's form: polygons or packed run-length codes, with "score"."""

    own = ("annotations.json",)

    def __init__(self, out: Path, labels: LabelSpace, regions: Regions) -> None:
        super().__init__(out, labels, regions)
        self._images: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []

    def write(self, name: str, file: Path, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """See `AnnotationTool`."""
        image = len(self._images) + 1
        self._images.append({"id": image, "file_name": named(name, file), "height": size[0], "width": size[1]})
        for shape in shapes:
            top, left, pixels = shape.region
            row = {
                "id": len(self._rows) + 1,
                "image_id": image,
                "category_id": shape.value + 1,
                "segmentation": self._segmentation(shape),
                "area": int(np.count_nonzero(pixels)),
                "bbox": [left, top, pixels.shape[1], pixels.shape[0]],
                "iscrowd": 0,
            }
            self._rows.append(row if shape.score is None else {**row, "score": shape.score})

    def _segmentation(self, shape: Shape) -> list[list[int]] | dict[str, Any]:
        if self.regions.shapes == "polygons":
            return [shape.outline.joined.ravel().tolist()]
        return {"size": list(shape.size), "counts": packed(runs_of(shape.whole()))}

    def write_rest(self) -> None:
        """See `AnnotationTool`."""
        categories = [{"id": value + 1, "name": name} for value, name in enumerate(self.used)]
        content = {"images": self._images, "annotations": self._rows, "categories": categories}
        write_text(self.out / self.own[0], json.dumps(content, ensure_ascii=False))


class Labelme(AnnotationTool):
    """NAME.json of labelme for each image, with the confidence as the shape's description; and labels.txt."""

    own = ("labels.txt",)

    def write(self, name: str, file: Path, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """See `AnnotationTool`."""
        place = self.out / f"{name}.json"
        content: dict[str, Any] = {
            "version": "6.3.1",  # the one that was tried
            "flags": {},
            "shapes": [self._shape(shape) for shape in shapes],
            "imagePath": Path(os.path.relpath(file, place.parent)).as_posix(),
            "imageData": None,
            "imageHeight": size[0],
            "imageWidth": size[1],
        }
        write_json(place, content)

    def _shape(self, shape: Shape) -> dict[str, Any]:
        score = "" if shape.score is None else f"confidence {shape.score}"
        common: dict[str, Any] = {"label": shape.name, "group_id": None, "description": score, "flags": {}}
        if self.regions.shapes == "polygons":
            return {**common, "points": shape.outline.joined.tolist(), "shape_type": "polygon", "mask": None}
        top, left, pixels = shape.region
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8) * 255).save(stream, format="PNG")
        points = [[left, top], [left + pixels.shape[1] - 1, top + pixels.shape[0] - 1]]
        mask = base64.b64encode(stream.getvalue()).decode()
        return {**common, "points": points, "shape_type": "mask", "mask": mask}

    def write_rest(self) -> None:
        """See `AnnotationTool`."""
        write_text(self.out / self.own[0], "".join(f"{name}\n" for name in self.used))

    def said(self) -> str:
        """See `AnnotationTool`."""
        return f"{self.out}{os.sep}NAME.json"

    @classmethod
    def places(cls, out: Path, images: Mapping[str, Path]) -> list[Path]:
        """See `AnnotationTool`."""
        return [*super().places(out, images), *(out / f"{name}.json" for name in images)]


class Cvat(AnnotationTool):
    """annotations.xml, "CVAT for images 1.1", with the confidence as an attribute."""

    own = ("annotations.xml",)

    def __init__(self, out: Path, labels: LabelSpace, regions: Regions) -> None:
        super().__init__(out, labels, regions)
        self._root = ElementTree.Element("annotations")

    def write(self, name: str, file: Path, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """See `AnnotationTool`."""
        said = {"id": self.count, "name": named(name, file), "width": size[1], "height": size[0]}
        image = ElementTree.SubElement(self._root, "image", {key: str(value) for key, value in said.items()})
        for shape in shapes:
            common = {"label": shape.name, "source": "auto", "occluded": "0", "z_order": "0"}
            if self.regions.shapes == "polygons":
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in shape.outline.joined.tolist())
                element = ElementTree.SubElement(image, "polygon", common, points=points)
            else:
                element = ElementTree.SubElement(image, "mask", {**common, **_cvat_mask(shape.region)})
            if shape.score is not None:
                ElementTree.SubElement(element, "attribute", name="confidence").text = str(shape.score)

    def write_rest(self) -> None:
        """See `AnnotationTool`."""
        head = ElementTree.Element("meta")
        labels = ElementTree.SubElement(ElementTree.SubElement(head, "task"), "labels")
        for name, color in zip(self.used, self.colors, strict=False):
            label = ElementTree.SubElement(labels, "label")
            for key, text in (("name", name), ("color", _hex(color)), ("type", "any")):
                ElementTree.SubElement(label, key).text = text
            _cvat_attribute(ElementTree.SubElement(label, "attributes"))
        version = ElementTree.Element("version")
        version.text = "1.1"
        self._root[:0] = [version, head]
        ElementTree.indent(self._root)
        with atomic_write(self.out / self.own[0]) as temporary:
            ElementTree.ElementTree(self._root).write(temporary, encoding="utf-8", xml_declaration=True)


def _cvat_mask(region: Region) -> dict[str, str]:
    """The attributes of a mask."""
    top, left, pixels = region
    numbers = {"left": left, "top": top, "width": pixels.shape[1], "height": pixels.shape[0]}
    runs = ", ".join(map(str, runs_of(pixels.T)))  # row by row
    return {"rle": runs, **{key: str(number) for key, number in numbers.items()}}


def _cvat_attribute(attributes: ElementTree.Element) -> None:
    """Say that a label has the attribute "confidence", a text that may change."""
    attribute = ElementTree.SubElement(attributes, "attribute")
    rows = {"name": "confidence", "mutable": "False", "input_type": "text", "default_value": "", "values": ""}
    for key, text in rows.items():
        ElementTree.SubElement(attribute, key).text = text


class LabelStudio(AnnotationTool):
    """label_studio.json, tasks with predictions; and label_studio.xml, the labelling interface that they need."""

    own = ("label_studio.json", "label_studio.xml")

    def __init__(self, out: Path, labels: LabelSpace, regions: Regions) -> None:
        super().__init__(out, labels, regions)
        self._tasks: list[dict[str, Any]] = []
        self._kind = {"polygons": "polygonlabels", "masks": "brushlabels"}[regions.shapes]

    def write(self, name: str, file: Path, size: tuple[int, int], shapes: Sequence[Shape]) -> None:
        """See `AnnotationTool`."""
        task = self.count + 1
        results = [
            {
                "id": f"{task}-{number}",
                "type": self._kind,
                "value": self._value(shape),
                "from_name": "label",
                "to_name": "image",
                "original_width": size[1],
                "original_height": size[0],
                "image_rotation": 0,
                **({} if shape.score is None else {"score": shape.score}),
            }
            for number, shape in enumerate(shapes, start=1)
        ]
        pixels = sum(shape.outline.area for shape in shapes)
        sums = sum(shape.outline.area * shape.outline.mean for shape in shapes)
        score = {} if math.isnan(sums) or not pixels else {"score": round(sums / pixels, 4)}
        prediction = {"model_version": "degrid", **score, "result": results}
        address = f"/data/local-files/?d={quote(named(name, file))}"
        self._tasks.append({"id": task, "data": {"image": address}, "predictions": [prediction]})

    def _value(self, shape: Shape) -> dict[str, Any]:
        if self.regions.shapes == "masks":
            return {"format": "rle", "rle": label_studio_code(shape.whole()), self._kind: [shape.name]}
        height, width = shape.size
        points = shape.outline.joined * 100 / np.array([width, height])
        return {"points": points.tolist(), "closed": True, self._kind: [shape.name]}

    def write_rest(self) -> None:
        """See `AnnotationTool`."""
        write_text(self.out / self.own[0], json.dumps(self._tasks, ensure_ascii=False))
        view = ElementTree.Element("View")
        ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true")
        tag = {"polygons": "PolygonLabels", "masks": "BrushLabels"}[self.regions.shapes]
        labels = ElementTree.SubElement(view, tag, name="label", toName="image")
        for name, color in zip(self.used, self.colors, strict=False):
            ElementTree.SubElement(labels, "Label", value=name, background=_hex(color))
        ElementTree.indent(view)
        write_text(self.out / self.own[1], ElementTree.tostring(view, encoding="unicode") + "\n")


def _hex(color: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in color)


TOOLS: dict[str, type[AnnotationTool]] = {
    "coco": Coco,
    "labelme": Labelme,
    "cvat": Cvat,
    "labelstudio": LabelStudio,
}
