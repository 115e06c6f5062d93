"""Make COCO 2017, as downloaded, ready to train on: class masks are drawn from its instance annotations."""

from __future__ import annotations

import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.formats.benchmarks.coco import COCO_FOLDERS
from degrid.data.formats.benchmarks.voc import VOC
from degrid.data.formats.classes import table_in
from degrid.data.formats.shapes.coco import segmentation_region
from degrid.data.formats.shapes.region import Thing, draw
from degrid.data.prepare.listing import WORK, ListWriter, folder_at, save_ids
from degrid.files import blaming, parse_json, read_text
from degrid.lookup import counted, unknown
from degrid.types import IGNORE_INDEX, LabelSpace, OnProgress, Progress, UserError, voc_palette

_COUNTS = {"train": 118_287, "val": 5_000}
_LEAST_PIXELS = 1_000


def prepare_coco(path: str | Path, progress: OnProgress | None = None, classes: str = "voc") -> list[str]:
    """Draw class masks for train2017 and val2017, and write train.txt, val.txt and classes.csv.

    They go to a folder inside the given one: voc21 (VOC's ids, names and colours) or coco81. train has the images in
    which more than 1,000 pixels belong to the classes; crowds are void and do not count. val has all images. Existing
    masks are kept, so that an interrupted run can be continued.

    Source: DeepLab v3, arXiv 1706.05587, "Pretrained on COCO": the images of trainval without minival, which is
    train2017, "that have annotation regions larger than 1000 pixels and contain the classes defined in PASCAL VOC
    2012", about 60K, with all other classes as background; the paper does not say how it counted. torchvision's
    references/segmentation/coco_utils.py, which likewise leaves val whole, adds up the areas that the file states,
    where overlaps count twice and crowds count.

    Args:
        path: the folder with annotations/instances_train2017.json, instances_val2017.json and the images in train2017
            and val2017, or in images/train2017 and images/val2017.
        progress: told how many images of a split are done.
        classes: "voc" (20 and background), or "all" (80 and background).
    Returns:
        The report; see `degrid.data.prepare_benchmark`.
    Raises:
        UserError: a folder or both annotation files are missing, an annotation is damaged, or the two files differ in
            their categories.
    """
    root = folder_at(path)
    if classes not in COCO_CHOICES:
        raise unknown("classes", classes, COCO_CHOICES)
    notes, found = _sources(root)
    lists: ListWriter | None = None
    for split, (file, images) in found.items():
        instances = read_instances(file)
        labels, ids = instances.classes(classes)
        if lists is None:
            lists = ListWriter(root, labels, {}, root / COCO_FOLDERS[classes])
            lists.report += notes
            table_in(lists.folder, labels)  # before the long work
        elif lists.labels != labels:
            raise UserError(f"{file} has other categories than {next(iter(found.values()))[0].name}")
        work = _Masks(split, images, lists, ids)
        lists.write(split, work.pairs(instances, progress))
    assert lists is not None
    return lists.finish()


def _sources(root: Path) -> tuple[list[str], dict[str, tuple[Path, Path]]]:
    """The annotation file and the image folder of each split that is present; also notes on what is missing.

    Raises:
        UserError: no split is present.
    """
    found: dict[str, tuple[Path, Path]] = {}
    notes = []
    for split, expected in _COUNTS.items():
        file = root / "annotations" / f"instances_{split}2017.json"
        places = (root / f"{split}2017", root / "images" / f"{split}2017")
        images = next((place for place in places if place.is_dir()), None)
        if file.is_file() and images:
            found[split] = file, images
        else:
            lost = f"no folder {places[0]}" if file.is_file() else f"no {file}"
            notes.append(f"warning: {split}.txt is not written: {lost}; expected {expected:,} images")
    if not found:
        raise UserError(
            f"no COCO in {root}; expected annotations/instances_train2017.json and instances_val2017.json, and the "
            "folders train2017 and val2017"
        )
    return notes, found


class _Masks:
    """Draws the masks of one split.

    Args:
        images: the folder of the split's images.
        lists: writes the lists; masks go to its folder.
        ids: train id by category id, for the categories that are classes.
    """

    def __init__(self, split: str, images: Path, lists: ListWriter, ids: dict[int, int]) -> None:
        self.split, self.images, self.lists, self.ids = split, images, lists, ids
        self.folder = lists.folder / "masks" / images.name

    def pairs(self, instances: Instances, progress: OnProgress | None) -> list[tuple[Path, Path]]:
        """Draw the missing masks, report, and return the images to be listed with their masks."""
        there = {file.name for file in self.images.iterdir()}
        present = [image for image in instances.images if image.file_name in there]
        self._note_counts(instances, present)
        pairs, made = [], 0
        for done, image in enumerate(present, 1):
            mask = self.folder / f"{Path(image.file_name).stem}.png"
            was_there = mask.exists()
            if was_there or self._draw(image, mask, instances.file):
                pairs.append((self.images / image.file_name, mask))
                made += not was_there
            if progress:
                progress(Progress(WORK, done, len(present)))
        left_out = len(present) - len(pairs)
        self.lists.report.append(
            f"{self.split}: {counted(made, 'mask')} made in {self.folder}, {len(pairs) - made:,} already there"
        )
        if left_out:
            few = f"{counted(left_out, 'image', 'have')} at most {_LEAST_PIXELS:,} pixels of the classes: left out"
            self.lists.report.append(f"{self.split}: {few}")
        return pairs

    def _note_counts(self, instances: Instances, present: list[CocoImage]) -> None:
        report, expected = self.lists.report, _COUNTS[self.split]
        named = f"{instances.file}: names {len(instances.images):,} images, expected {expected:,}"
        report.append(named if len(instances.images) == expected else f"warning: {named}")
        if len(present) < len(instances.images):
            names = {image.file_name for image in present}
            lost = [image.file_name for image in instances.images if image.file_name not in names]
            report.append(
                f"warning: {self.split}: {len(lost):,} of these are not in {self.images}, {lost[0]} among them"
            )

    def _draw(self, image: CocoImage, file: Path, source: Path) -> bool:
        """Write a mask, unless it is for training and has too few pixels of the classes."""
        try:
            mask = class_mask(image, self.ids)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
        drawn = int(np.count_nonzero((mask > 0) & (mask != IGNORE_INDEX)))
        if self.split == "train" and drawn <= _LEAST_PIXELS:
            return False
        save_ids(mask, file, self.lists.labels)
        return True


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
