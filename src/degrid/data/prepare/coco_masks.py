"""Class masks drawn from COCO's instance annotations. Needs pycocotools (pip install degrid[coco])."""

from __future__ import annotations

import array
import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.formats.benchmarks.voc import VOC
from degrid.types import IGNORE_INDEX, LabelSpace, UserError, voc_palette

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
            raise UserError(f'unknown classes "{choice}"; known: {", ".join(COCO_CHOICES)}')
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
    try:
        with file.open(encoding="utf-8") as stream:
            content = json.load(stream, object_hook=_compact)
        images = {
            int(row["id"]): CocoImage(str(row["file_name"]), int(row["height"]), int(row["width"]))
            for row in content["images"]
        }
        for row in content["annotations"]:
            images[row["image_id"]].annotations.append(row)
        categories = {int(row["id"]): str(row["name"]) for row in content["categories"]}
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON, or cut short: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} holds no instance annotations of COCO (images, annotations, categories): {error!r}"
        ) from error
    return Instances(file, dict(sorted(categories.items())), list(images.values()))


def _compact(row: dict[str, Any]) -> dict[str, Any]:
    # Arrays take half the memory of lists of numbers.
    if isinstance(row.get("segmentation"), list):
        row["segmentation"] = [array.array("d", polygon) for polygon in row["segmentation"]]
    return row


def class_mask(image: CocoImage, ids: Mapping[int, int]) -> np.ndarray:
    """Draw an image's class mask, uint8 [H,W]: train ids, 0 for background, void for crowds.

    A crowd annotation outlines a whole group; its pixels are void unless an instance covers them. Where instances
    overlap, the smaller one wins, because it is more likely in front of or on top of the other: a table's outline
    includes the plates on it. The order in the file says nothing about depth. (torchvision's reference makes overlaps
    void.)

    Args:
        image: see `read_instances`.
        ids: train id of each category id that is a class.
    Raises:
        UserError: an annotation is damaged, or pycocotools is not installed.
    """
    tools = mask_tools()
    regions: list[tuple[int, int, np.ndarray]] = []
    for row in image.annotations:
        try:
            train = ids.get(row["category_id"])
            region = None if train is None else _region(tools, row["segmentation"], image.height, image.width)
            crowd = bool(row.get("iscrowd", 0))
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{image.file_name}: annotation {row.get('id')} is neither polygons nor a run-length code of "
                f"{image.width}x{image.height} pixels: {error!r}"
            ) from error
        if region is not None and train is not None:
            # Crowds are drawn first, then instances from large to small; ties keep the file's order.
            area = image.height * image.width + 1 if crowd else int(np.count_nonzero(region))
            regions.append((area, IGNORE_INDEX if crowd else train, region))
    mask = np.zeros((image.height, image.width), np.uint8, order="F")  # the order of pycocotools' regions
    for _, value, region in sorted(regions, key=lambda row: -row[0]):
        mask[region] = value
    return np.ascontiguousarray(mask)


def mask_tools() -> Any:
    """Import pycocotools.mask.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("pycocotools.mask")
    except ImportError as error:
        raise UserError("drawing COCO's annotations needs pycocotools: pip install degrid[coco]") from error


def _region(tools: Any, segmentation: Sequence[Any] | Mapping[str, Any], height: int, width: int) -> np.ndarray | None:
    """The pixels of one annotation, bool [H,W]; None if its polygons enclose no area."""
    if isinstance(segmentation, Mapping):
        return _from_runs(tools, segmentation, height, width)
    # Fewer than three points enclose nothing, and pycocotools would read two points as a box.
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
    if not polygons:
        return None
    return _decode(tools, tools.merge(tools.frPyObjects(polygons, height, width)))


def _from_runs(tools: Any, code: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """The pixels of a run-length code: alternating lengths of background and object runs in column-major order, given
    as numbers or packed into a string.

    Runs that do not add up to the image size are refused: pycocotools would leave the remaining pixels uninitialised.
    """
    if list(code["size"]) != [height, width]:
        raise ValueError(f"its size is {list(code['size'])} (height, width)")
    packed = isinstance(code["counts"], str | bytes)
    counts = np.asarray(_unpacked(code["counts"]) if packed else code["counts"], np.int64)
    if counts.sum() != height * width:
        raise ValueError(f"its runs add up to {counts.sum()} pixels")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width, order="F")


def _unpacked(text: str | bytes) -> list[int]:
    """Unpack run lengths: 5 bits per character, low bits first; from the fourth on, relative to the run two before.

    Source: COCO's maskApi, rleFrString.
    """
    letters = text.encode() if isinstance(text, str) else text
    counts: list[int] = []
    value = shift = 0
    for letter in letters:
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift or min(counts, default=0) < 0:
        raise ValueError("its packed runs are cut short or negative")
    return counts


def _decode(tools: Any, code: dict[str, Any]) -> np.ndarray:
    """The pixels of a run-length code that pycocotools made, bool [H,W]."""
    with warnings.catch_warnings():  # pycocotools 2.0.11 uses an API that numpy 2 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        region: np.ndarray = tools.decode(code)
    if np.count_nonzero(region) != tools.area(code):
        raise ValueError("its runs do not fill the image")
    return region.view(bool)
