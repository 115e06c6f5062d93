"""Annotations in COCO's JSON, as CVAT, Roboflow, Label Studio, Darwin, Datumaro and supervision write it.

COCO 2017 itself is prepared by `degrid.data.prepare.coco`.
"""

from __future__ import annotations

import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.formats.layout import Crowds, DataFormat, Layout
from degrid.data.formats.shapes.coco import segmentation_region
from degrid.data.formats.shapes.drawn import OVERLAPS, Drawn, Images, said_of_boxes, split_of_file, with_splits
from degrid.data.formats.shapes.polygon import corners, is_upright_rectangle, lies_inside, polygon_region, rectangle
from degrid.data.formats.shapes.region import Thing
from degrid.data.formats.tools.joined import named_classes
from degrid.data.formats.tools.label_files import LabelRow, is_background
from degrid.files import DAMAGE, blaming, parse_json, read_text
from degrid.lookup import counted, grouped, some
from degrid.types import IGNORE_INDEX, UserError

_KEYS = (b'"images"', b'"annotations"', b'"categories"')
# If a folder holds this many JSON files, each describes one image.
_MOST_FILES = 50


@dataclass
class CocoFile:
    """The content of one file.

    Attributes:
        categories: name by id, in order of the ids.
        rows: images by id, as written.
        annotations: of each image, in the order of the file.
        lost: annotations of images that the file does not name.
    """

    file: Path
    categories: dict[Any, str]
    rows: dict[Any, dict[str, Any]]
    annotations: dict[Any, list[dict[str, Any]]] = field(default_factory=dict)
    lost: int = 0

    def all(self) -> Iterator[dict[str, Any]]:
        """Every annotation of an image."""
        return (row for rows in self.annotations.values() for row in rows)


class CocoJson(DataFormat):
    """One JSON file, one per split, or one in each split's folder; the images anywhere below the folder.

    Crowds are void, except where `crowd: instance` is in dataset.yaml. Of many, there is a doubt.
    """

    wanted = "annotations in COCO's JSON with polygons or run-length codes"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: a file is damaged, or holds boxes only.
        """
        files = coco_files(path)
        if not files:
            return None
        root = path if path.is_dir() else path.parent.parent if path.parent.name == "annotations" else path.parent
        contents = [_read(file) for file in files]
        notes = [OVERLAPS, *_not_read(files)]
        crowds = _crowds(contents)
        _refuse_fractions(contents)
        _refuse_twice(contents)
        names = _names(contents, notes)
        rows = [LabelRow(name, None, value) for value, name in enumerate(names)]
        labels, rule, ids = named_classes(rows, root, files[0].name)
        images = Images(root)
        splits: dict[str, list[Drawn]] = {}
        for content in contents:
            with blaming(f"{content.file}: expected images, each with file_name, height and width"):
                splits.setdefault(split_of_file(content.file, root), []).extend(_sources(content, images, ids))
        _count(contents, notes)
        divided, said = with_splits(splits)
        reason = ", ".join(file.relative_to(root).as_posix() for file in files)
        return Layout(reason, root, divided, labels, rule, notes=[*said, *notes], crowds=crowds)


def coco_files(path: Path) -> list[Path]:
    """The files in COCO's form: the one that is given, or those in a folder, in its folders, and in theirs."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" and _is_coco(path) else []
    found = []
    for pattern in ("*.json", "*/*.json", "*/*/*.json"):
        for files in grouped((file.parent, file) for file in sorted(path.glob(pattern))).values():
            found += [file for file in files if _is_coco(file)] if len(files) <= _MOST_FILES else []
    if len(found) > 1:  # person_keypoints_val2017.json has the same objects again
        found = [file for file in found if "instances" in file.name] or found
    return found


def _not_read(files: list[Path]) -> list[str]:
    """A sentence on panoptic labels beside, which were found to say no more than these files."""
    panoptic = sorted(file for folder in {file.parent for file in files} for file in folder.glob("panoptic_*.json"))
    return [
        f"{file.name} beside it has the same categories and is not read; for panoptic labels, where what was not drawn "
        f"on is void, remove {files[0].name}"
        for file in panoptic[:1]
    ]


def _is_coco(file: Path) -> bool:
    content = file.read_bytes() if file.is_file() else b""
    return (
        content.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"{"
        and all(key in content for key in _KEYS)
        and (
            b'"segments_info"' not in content  # panoptic
        )
    )


def _read(file: Path) -> CocoFile:
    with blaming(
        f"{file} is not valid JSON, cut short, or holds no annotations in COCO's form (images, annotations, "
        "categories):"
    ):
        content = parse_json(read_text(file), object_hook=_compact)
        _with_equal_ids(content)
        for row in content["images"]:  # LVIS names no files
            row.setdefault("file_name", row.get("coco_url", ""))
        names = {row["id"]: str(row["name"]) for row in sorted(content["categories"], key=lambda row: row["id"])}
        rows = {row["id"]: row for row in content["images"]}
        found = CocoFile(file, names, rows)
        for row in content["annotations"]:
            if row["image_id"] in rows:
                found.annotations.setdefault(row["image_id"], []).append(row)
            else:
                found.lost += 1
        if any(str(row["file_name"]) == "" for row in rows.values()):
            raise ValueError("an image without file_name")
        unknown = Counter(row["category_id"] for row in found.all() if row["category_id"] not in names)
    if unknown:
        raise UserError(
            f"{file} has {counted(sum(unknown.values()), 'annotation')} with category_id {some(unknown)}, which its "
            "categories do not list: add the category there, or take these annotations out"
        )
    return found


def _with_equal_ids(content: Mapping[str, Any]) -> None:
    """Let ids be numbers on both sides where they are texts on one, so that "1" is 1."""
    for place, key in (("images", "image_id"), ("categories", "category_id")):
        said = [(row, "id") for row in content[place]] + [(row, key) for row in content["annotations"]]
        texts = [(row, name) for row, name in said if isinstance(row[name], str) and row[name].isdecimal()]
        for row, name in texts if len(texts) < len(said) else ():
            row[name] = int(row[name])


def _compact(row: dict[str, Any]) -> dict[str, Any]:
    if "category_id" in row and "segmentation" not in row and _pairs(row.get("points")):
        row["segmentation"] = row["points"]
    if isinstance(row.get("segmentation"), list):  # pairs of one polygon, or of several
        given = row["segmentation"]
        row["segmentation"] = [_flat(polygon) for polygon in ([given] if _pairs(given) else given)]
    # Arrays take half the memory of lists of numbers. What is not numbers is refused when it is drawn.
    polygons = row.get("segmentation")
    if isinstance(polygons, list):
        row["segmentation"] = [
            array.array("d", polygon) if isinstance(polygon, list) and _numbers(polygon) else polygon
            for polygon in polygons
            if polygon != []
        ]
    return row


def _flat(polygon: Any) -> Any:
    """A polygon of pairs as x, y, x, y, ..; anything else as it is."""
    return [value for point in polygon for value in point] if _pairs(polygon) else polygon


def _pairs(points: Any) -> bool:
    """Whether these are the corners of a polygon, as Segments.ai writes them."""
    return (
        isinstance(points, list)
        and len(points) > 2
        and all(isinstance(each, list) and len(each) == 2 for each in points)
    )


def _numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _crowds(contents: list[CocoFile]) -> Crowds:
    """The crowd flags of the annotations with an outline.

    Raises:
        UserError: there are no annotations, or only boxes.
    """
    rows = [(content.categories[row["category_id"]], row) for content in contents for row in content.all()]
    if not rows:
        raise UserError(f"{contents[0].file} lists images without a single annotation; export the annotations, too")
    drawn = [(name, row) for name, row in rows if row.get("segmentation")]
    if rows and not drawn:
        raise UserError(
            f"{contents[0].file} holds {len(rows):,} boxes and no polygon or run-length code: boxes cannot train a "
            "segmentation; draw polygons or masks in the tool that wrote the file, and export them"
        )
    return Crowds.of((name, bool(row.get("iscrowd", 0))) for name, row in drawn)


def _refuse_twice(contents: list[CocoFile]) -> None:
    """Refuse files that list an image several times, as converters do for each of several annotators.

    Raises:
        UserError: there is one.
    """
    for content in contents:
        count = Counter(str(row.get("file_name")) for row in content.rows.values())
        twice = [name for name, number in count.items() if number > 1]
        if twice:
            raise UserError(
                f"{content.file} lists {counted(len(twice), 'image')} under several ids, {twice[0]} under "
                f"{count[twice[0]]}, as if several people had annotated them: keep the right entry of each"
            )


def _refuse_fractions(contents: list[CocoFile]) -> None:
    """Refuse files whose polygons would all lie in the first pixel.

    Raises:
        UserError: all coordinates lie between 0 and 1.
    """
    polygons = _polygons(contents)
    numbers = [polygon for polygon in polygons if isinstance(polygon, array.array) and len(polygon)]
    if numbers and len(numbers) == len(polygons) and all(min(each) >= 0 and max(each) <= 1 for each in numbers):
        raise UserError(
            f"{contents[0].file}: all corners of its polygons lie between 0 and 1, as if they were fractions of width "
            "and height; COCO counts pixels: multiply by the image's width and height"
        )


def _polygons(contents: list[CocoFile]) -> list[Any]:
    """All polygons: arrays of numbers, or whatever stands there instead."""
    shapes = [row.get("segmentation") for content in contents for row in content.all()]
    return [polygon for shape in shapes if isinstance(shape, list) for polygon in shape]


def _names(contents: list[CocoFile], notes: list[str]) -> list[str]:
    """The categories that are classes, each once, in the order of their ids in the first file that has them."""
    used = {content.categories[row["category_id"]] for content in contents for row in content.all()}
    names: dict[str, None] = {}
    for content in contents:
        for key, name in content.categories.items():
            # Roboflow has the project itself as category 0.
            project = key == 0 and name not in used and len(content.categories) > 1 and name not in names
            if project and not is_background(name) and _is_of_roboflow(content.file):
                notes.append(f'category 0, "{name}", is the name of the project, not a class: left out')
            else:
                names[name] = None
        notes += _shared_names(content)
    return list(names)


def _is_of_roboflow(file: Path) -> bool:
    """Whether a file has Roboflow's name, or begins with what Roboflow says of itself ("info" comes first)."""
    if file.name == "_annotations.coco.json":
        return True
    with file.open("rb") as opened:
        return b"roboflow" in opened.read(4096).lower()


def _shared_names(content: CocoFile) -> list[str]:
    """A sentence on categories of one name, which become one class; none where there are none."""
    shared = [name for name, number in Counter(content.categories.values()).items() if number > 1]
    if not shared:
        return []
    ids = [key for key, name in content.categories.items() if name == shared[0]]
    return [
        f'{content.file.name} calls several categories "{shared[0]}" (ids {some(ids)}): they are one class; if they '
        "are not, give each a name of its own"
    ]


def _sources(content: CocoFile, images: Images, ids: Mapping[str, int]) -> Iterator[Drawn]:
    by_id = {key: ids[name] for key, name in content.categories.items() if name in ids}
    near, split = content.file.parent, split_of_file(content.file, images.root)
    for key, row in content.rows.items():
        folders = (near.parent, near.parent / "images", near.parent / split, near.parent / "images" / split)
        image = images.find(str(row["file_name"]), near, near / "images", *folders)
        size = None
        if row.get("height") and row.get("width"):
            size = int(row["height"]), int(row["width"])
        things = partial(_things, content.annotations.get(key, []), by_id)
        yield Drawn(images.relative(image), image, content.file, things, size, ids[""])


def _things(rows: Iterable[Mapping[str, Any]], ids: Mapping[Any, int], height: int, width: int) -> Iterator[Thing]:
    for row in rows:
        if row["category_id"] not in ids:
            continue
        try:
            if row.get("segmentation"):
                region = segmentation_region(row["segmentation"], height, width)
                yield Thing(ids[row["category_id"]], region, bool(row.get("iscrowd", 0)))
            elif row.get("bbox"):
                yield Thing(IGNORE_INDEX, polygon_region(rectangle(*row["bbox"]), height, width), True)
        except DAMAGE as error:
            raise ValueError(
                f"annotation {row.get('id')} is neither polygons nor a run-length code of {width}x{height} pixels: "
                f"{error}"
            ) from error


def _has_part_inside(segmentation: Any) -> bool:
    """Whether one polygon of an annotation lies inside another polygon of the same annotation."""
    parts = segmentation if isinstance(segmentation, list) and len(segmentation) > 1 else []
    shapes = [corners(part) for part in parts if isinstance(part, array.array) and len(part) > 5 and not len(part) % 2]
    if len(shapes) < 2:
        return False
    lowest, highest = (np.array([edge(shape, axis=0) for shape in shapes]) for edge in (np.min, np.max))
    for place, outer in enumerate(shapes):  # a map drawn as one annotation has thousands of parts
        within = ((lowest >= lowest[place]) & (highest <= highest[place])).all(axis=1)
        if any(lies_inside(shapes[inner], outer) for inner in np.flatnonzero(within) if inner != place):
            return True
    return False


def _count(contents: list[CocoFile], notes: list[str]) -> None:
    """Note which images or annotations are empty, left out or void."""
    empty = sum(len(content.rows) - len(content.annotations) for content in contents)
    boxes = sum(not row.get("segmentation") for content in contents for row in content.all())
    lost = sum(content.lost for content in contents)
    outlines = [polygon for polygon in _polygons(contents) if isinstance(polygon, array.array)]
    filled = sum(_has_part_inside(row.get("segmentation")) for content in contents for row in content.all())
    notes += said_of_boxes(len(outlines), sum(map(is_upright_rectangle, outlines)))
    if empty:
        notes.append(f"{counted(empty, 'image', 'have')} no annotation: background all over")
    if filled:
        notes.append(
            f"{counted(filled, 'annotation', 'have')} an outline inside another one, as some tools write holes; COCO's "
            "rule fills them; export run-length codes where they are holes"
        )
    if boxes:
        notes.append(f"{counted(boxes, 'annotation', 'have')} only a box: void, except where an object is drawn")
    if lost:
        notes.append(f"{counted(lost, 'annotation', 'belong')} to no image of their file: left out")
