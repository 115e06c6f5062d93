"""Class masks drawn from COCO's instance annotations."""

from __future__ import annotations

import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.formats.benchmarks.voc import VOC
from degrid.data.formats.shapes.coco import segmentation_region
from degrid.data.formats.shapes.region import Thing, draw
from degrid.files import blaming, parse_json, read_text
from degrid.lookup import unknown
from degrid.types import LabelSpace, UserError, voc_palette

# VOC classes that have another name in COCO; the other fourteen are named alike. The resulting category ids are those
# of torchvision's references/segmentation/coco_utils.py.
_COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
COCO_CHOICES = ("voc", "all")
"""voc: the 20 classes of PASCAL VOC and background; all: the file's own categories (80) and background."""


@dataclass
class CocoImage:
    """One image of an annotation file. annotations: all of its annotations, of any class, in the file's order."""

    file_name: str
    height: int
    width: int
    annotations: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Instances:
    """The content of an instances_*.json. categories: COCO's category id -> name, sorted by id."""

    file: Path
    categories: dict[int, str]
    images: list[CocoImage]

    def classes(self, choice: str) -> tuple[LabelSpace, dict[int, int]]:
        """The classes, and the train id of each category id among them. Every other category counts as background.

        Args:
            choice: one of COCO_CHOICES.
        Raises:
            UserError: the choice is unknown, or the file lacks one of VOC's classes.
        """
        if choice not in COCO_CHOICES:
            raise unknown("classes", choice, COCO_CHOICES)
        if choice == "all":
            names = ("background", *self.categories.values())
            return LabelSpace(names, voc_palette(len(names))), {raw: 1 + k for k, raw in enumerate(self.categories)}
        by_name = {name: raw for raw, name in self.categories.items()}
        wanted = {name: _COCO_NAMES.get(name, name) for name in VOC.names[1:]}
        lost = [name for name in wanted.values() if name not in by_name]
        if lost:
            raise UserError(f"{self.file} has no category {', '.join(lost)}; expected the 80 categories of COCO")
        return VOC, {by_name[name]: train for train, name in enumerate(wanted.values(), 1)}


def read_instances(file: Path) -> Instances:
    """Read an instances_*.json. The one of train2017 (450 MB) takes about 1.5 GB of memory.

    Source: cocodataset.org, "Data format", 1. object detection.

    Raises:
        UserError: the file is missing, is not JSON, or has another structure.
    """
    with blaming(
        f"{file} is not valid JSON, or cut short, or holds no instance annotations of COCO (images, annotations, "
        "categories):"
    ):
        content = parse_json(read_text(file), object_hook=_compact)
        images = {
            int(row["id"]): CocoImage(str(row["file_name"]), int(row["height"]), int(row["width"]))
            for row in content["images"]
        }
        for row in content["annotations"]:
            images[row["image_id"]].annotations.append(row)
        categories = {int(row["id"]): str(row["name"]) for row in content["categories"]}
    return Instances(file, dict(sorted(categories.items())), list(images.values()))


def _compact(row: dict[str, Any]) -> dict[str, Any]:
    # Arrays take half the memory of lists of numbers.
    if isinstance(row.get("segmentation"), list):
        row["segmentation"] = [array.array("d", polygon) for polygon in row["segmentation"]]
    return row


def class_mask(image: CocoImage, ids: Mapping[int, int]) -> np.ndarray:
    """Draw an image's class mask, uint8 [H,W]: train ids, 0 for background, void for crowds.

    A crowd annotation outlines a whole group. `draw` says what is seen of objects that overlap; the order in the file
    says nothing about depth. (torchvision's reference makes overlaps void.)

    Args:
        image: see `read_instances`.
        ids: train id of each category id that is a class.
    Raises:
        UserError: an annotation is damaged.
    """
    things: list[Thing] = []
    for row in image.annotations:
        with blaming(
            f"{image.file_name}: annotation {row.get('id')} is neither polygons nor a run-length code of "
            f"{image.width}x{image.height} pixels:"
        ):
            if (train := ids.get(row["category_id"])) is not None:
                region = segmentation_region(row["segmentation"], image.height, image.width)
                things.append(Thing(train, region, bool(row.get("iscrowd", 0))))
    return draw(things, image.height, image.width)
