"""Label Studio's JSON export: polygons, brush strokes, ellipses and rectangles, in percent of the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.pairs import Pair, divided
from degrid.data.formats.shapes.drawn import OVERLAPS, Drawn, Images, refuse_boxes
from degrid.data.formats.shapes.polygon import ellipse_region, polygon_region, rectangle
from degrid.data.formats.shapes.region import Region, Thing
from degrid.data.formats.shapes.runs import label_studio_pixels
from degrid.data.formats.tools.joined import named_classes
from degrid.data.formats.tools.label_files import LabelRow
from degrid.data.formats.tools.label_studio import image_address
from degrid.files import blaming, read_json
from degrid.lookup import counted
from degrid.types import UserError

_LABELS = ("polygonlabels", "brushlabels", "ellipselabels", "rectanglelabels", "labels")
_KINDS = ("polygon", "brush", "ellipse", "rectangle")
_MOST_FILES = 20


class LabelStudioJson(DataFormat):
    """One JSON (or JSON-MIN) file, and the images anywhere below its folder.

    Of several annotations of one image, the last one that was not cancelled counts. Predictions are read where no task
    has an annotation, as in a file that a model made.
    """

    wanted = "the JSON export of Label Studio, and the images"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: the file is damaged, or holds rectangles only.
        """
        file, tasks = _tasks(path)
        if file is None:
            return None
        root = path if path.is_dir() else path.parent
        tasks, said = _or_predictions(tasks)
        found = _shapes(tasks, file)
        kinds = Counter(kind for results in found for result in results if (kind := _kind(result)))
        if not kinds:
            return None
        notes = [*said, OVERLAPS, *refuse_boxes(kinds, _KINDS, ("rectangle",), str(file))]
        names = sorted({_label(result) for results in found for result in results if _kind(result)})
        labels, rule, ids = named_classes([LabelRow(name, None, 0) for name in names], root, file.name)
        with blaming(f"{file}: expected Label Studio's tasks with their annotations"):
            pairs = list(_sources(file, zip(tasks, found, strict=True), Images(root), ids))
        if left := len(tasks) - len(pairs):
            notes.append(f"{counted(left, 'image', 'have')} no annotation yet: left out")
        if without := sum(not _kind(result) for results in found for result in results):
            notes.append(f"{without:,} results without an area or a label are left out")
        splits, of_division = divided(pairs)
        return Layout(file.name, root, splits, labels, rule, notes=[*of_division, *notes])


def _sources(
    file: Path,
    tasks: Iterable[tuple[dict[str, Any], list[dict[str, Any]]]],
    images: Images,
    ids: Mapping[str, int],
) -> Iterator[Pair]:
    """A sample, with its shapes, for each task that somebody has reviewed."""
    for task, results in tasks:
        if results or _looked_at(task):
            if not (name := image_address(task)):
                raise UserError(f"{file}: the task {task['id']} has shapes, but names no image")
            image = images.find(name, file.parent)
            size = next((size for result in results if (size := _size(result))), None)
            yield Drawn(images.relative(image), image, file, partial(_things, results, ids), size, ids[""])


def _shapes(tasks: Sequence[Mapping[str, Any]], file: Path) -> list[list[dict[str, Any]]]:
    """The shapes of each task.

    Raises:
        UserError: a task is damaged.
    """
    with blaming(f"{file}: expected Label Studio's tasks with their annotations"):
        found = [list(_results(task)) for task in tasks]
        for results in found:
            for result in results:
                _label(result)
    return found


def _tasks(path: Path) -> tuple[Path | None, list[dict[str, Any]]]:
    """The export and its tasks."""
    files = [path] if path.suffix.lower() == ".json" else sorted(path.glob("*.json")) if path.is_dir() else []
    for file in files[:_MOST_FILES]:
        if file.is_file() and file.read_bytes().lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"[":
            tasks = read_json(file)
            if (
                tasks
                and all(isinstance(task, dict) and "id" in task for task in tasks)
                and any(map(image_address, tasks))
            ):
                return file, tasks
    return None, []


def _or_predictions(tasks: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The tasks; or, where none has annotations, with the last of their predictions instead, and a note."""
    if any(task.get("annotations") for task in tasks) or not any(task.get("predictions") for task in tasks):
        return tasks, []
    found = [
        {**task, "annotations": [{**each, "id": place} for place, each in enumerate(task.get("predictions") or ())]}
        for task in tasks
    ]
    return found, ["no task has an annotation: the predictions are read"]


def _looked_at(task: Mapping[str, Any]) -> bool:
    """Whether somebody said that there is nothing to draw; JSON-MIN holds only such tasks."""
    return "annotations" not in task or any(not each.get("was_cancelled") for each in task["annotations"])


def _results(task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The shapes of a task, each with value and original size, and the labels that a second result may give them."""
    if "annotations" in task:
        given = [each for each in task["annotations"] if not each.get("was_cancelled")]
        results = max(given, key=lambda each: each.get("id") or 0)["result"] if given else []
    else:  # JSON-MIN: the values themselves
        listed = [value for value in task.values() if isinstance(value, list)]
        results = [{"value": value, **value} for values in listed for value in values if isinstance(value, dict)]
    by_id: dict[Any, dict[str, Any]] = {}
    for number, result in enumerate(results):
        merged = by_id.setdefault(result.get("id", number), {"value": {}})
        merged.update({key: value for key, value in result.items() if key != "value"})
        merged["value"].update(result["value"])
    yield from by_id.values()


def _label(result: Mapping[str, Any]) -> str:
    value = result["value"]
    return next((str(value[key][0]) for key in _LABELS if value.get(key)), "")


def _kind(result: Mapping[str, Any]) -> str:
    """polygon, brush, ellipse or rectangle; empty for results without an area or a label."""
    value = result["value"]
    if not _label(result):
        return ""
    if value.get("format") == "rle" or "rle" in value:
        return "brush"
    if "points" in value:
        return "polygon"
    return "ellipse" if "radiusX" in value else "rectangle" if "width" in value and "height" in value else ""


def _size(result: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = result.get("original_height"), result.get("original_width")
    return (int(height), int(width)) if height and width else None


def _things(results: Sequence[Mapping[str, Any]], ids: Mapping[str, int], height: int, width: int) -> Iterator[Thing]:
    for result in results:
        if kind := _kind(result):
            yield Thing(ids[_label(result)], _region(kind, result["value"], height, width))


def _region(kind: str, value: Mapping[str, Any], height: int, width: int) -> Region:
    scale = np.array([width, height]) / 100
    if kind == "brush":
        return Region(0, 0, label_studio_pixels(value["rle"], height, width))
    if kind == "polygon":
        return polygon_region(np.asarray(value["points"], np.float64) * scale, height, width)
    start = np.array([value["x"], value["y"]], np.float64) * scale
    angle = float(value.get("rotation") or 0)
    if kind == "ellipse":
        radii = np.array([value["radiusX"], value["radiusY"]], np.float64) * scale
        return ellipse_region((start[0], start[1]), (radii[0], radii[1]), angle, (height, width))
    # A rectangle is turned around its first corner.
    points = rectangle(0, 0, *(np.array([value["width"], value["height"]], np.float64) * scale))
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return polygon_region(points @ np.array([[cos, sin], [-sin, cos]]) + start, height, width)
