"""Label Studio's JSON export: polygons, brush strokes, ellipses and rectangles, in percent of the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.pairs import Pair
from degrid.data.formats.shapes.drawn import OVERLAPS, Drawn, Images, refuse_boxes, split_of_file, with_splits
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
    """JSON (or JSON-MIN) files, one for each project, and the images anywhere below their folder.

    Of several annotations of one task, the last one that was not cancelled counts, as a note says. Predictions are read
    where no task has an annotation, as in a file that a model made.
    """

    wanted = "the JSON export of Label Studio, and the images"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: a file is damaged, two have the same image, or they hold rectangles only.
        """
        given, of_several = _one_each(_tasks(path))
        tasks, said = _or_predictions(given)
        found = {file: _shapes(rows, file) for file, rows in tasks.items()}
        shapes = [result for rows in found.values() for results in rows for result in results]
        kinds = Counter(kind for result in shapes if (kind := _kind(result)))
        if not kinds:
            return None
        first, root = next(iter(tasks)), path if path.is_dir() else path.parent
        notes = [*said, *of_several, OVERLAPS, *refuse_boxes(kinds, _KINDS, ("rectangle",), str(first))]
        names = sorted({_label(result) for result in shapes if _kind(result)})
        labels, rule, ids = named_classes([LabelRow(name, None, 0) for name in names], root, first.name)
        splits = _splits(tasks, found, root, ids)
        if left := sum(map(len, tasks.values())) - sum(map(len, splits.values())):
            notes.append(f"{counted(left, 'image', 'have')} no annotation yet: left out")
        if without := len(shapes) - kinds.total():
            notes.append(f"{without:,} results without an area or a label are left out")
        both, of_division = with_splits(splits)
        return Layout(", ".join(file.name for file in tasks), root, both, labels, rule, notes=[*of_division, *notes])


def _splits(
    tasks: Mapping[Path, list[dict[str, Any]]],
    shapes: Mapping[Path, list[list[dict[str, Any]]]],
    root: Path,
    ids: Mapping[str, int],
) -> dict[str, list[Pair]]:
    """The samples of all files, by the splits that these are called."""
    splits: dict[str, list[Pair]] = {}
    images = Images(root)
    for file, rows in tasks.items():
        with blaming(f"{file}: expected Label Studio's tasks with their annotations"):
            pairs = _sources(file, zip(rows, shapes[file], strict=True), images, ids)
            splits.setdefault(split_of_file(file, root), []).extend(pairs)
    _refuse_twice(pair for pairs in splits.values() for pair in pairs)
    return splits


def _refuse_twice(pairs: Iterable[Pair]) -> None:
    """Refuse an image in two files, as in two exports of one project.

    Raises:
        UserError: there is one.
    """
    first: dict[Path, Pair] = {}
    for pair in pairs:
        other = first.setdefault(pair.image, pair)
        if other.mask != pair.mask:
            raise UserError(
                f"{other.mask} and {pair.mask} both have {pair.image.name}, as if they were two exports of one "
                "project: keep the one that counts"
            )


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
                if _kind(result) and result.get("image_rotation"):  # corners are then those of the turned image
                    raise ValueError("a shape that was drawn on a turned image (image_rotation): turn it back there")
    return found


def _tasks(path: Path) -> dict[Path, list[dict[str, Any]]]:
    """The exports and their tasks."""
    found = {}
    files = [path] if path.suffix.lower() == ".json" else sorted(path.glob("*.json")) if path.is_dir() else []
    for file in files[:_MOST_FILES]:
        if file.is_file() and file.read_bytes().lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"[":
            tasks = read_json(file)
            for task in tasks:
                if isinstance(task, dict) and "completions" in task:  # their name before 1.0
                    task["annotations"] = task.pop("completions")
            if (
                tasks
                and all(isinstance(task, dict) and "id" in task for task in tasks)
                and any(map(image_address, tasks))
            ):
                found[file] = tasks
    return found


def _one_each(tasks: Mapping[Path, list[dict[str, Any]]]) -> tuple[dict[Path, list[dict[str, Any]]], list[str]]:
    """The tasks, of whose rows in JSON-MIN, one for each annotation, the last annotation's counts; and a note."""
    found = {file: _last_rows(rows) for file, rows in tasks.items()}
    several = sum(len(rows) - len(found[file]) for file, rows in tasks.items())
    several += sum(_annotations(row) > 1 for rows in found.values() for row in rows)
    note = f"{counted(several, 'task', 'have')} several annotations: the last of each counts"
    return found, [note] if several else []


def _annotations(task: Mapping[str, Any]) -> int:
    """How many annotations a task has that were not cancelled."""
    return sum(not each.get("was_cancelled") for each in task.get("annotations") or ())


def _last_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows; of several of a task in JSON-MIN that with the last annotation."""
    last: dict[Any, int] = {}
    for row in rows:
        last[row["id"]] = max(last.get(row["id"], -1), row.get("annotation_id") or 0)
    return [row for row in rows if "annotations" in row or (row.get("annotation_id") or 0) == last[row["id"]]]


def _or_predictions(
    tasks: Mapping[Path, list[dict[str, Any]]],
) -> tuple[Mapping[Path, list[dict[str, Any]]], list[str]]:
    """The tasks; or, where none has annotations, with the last of their predictions instead, and a note."""
    rows = [task for each in tasks.values() for task in each]
    if any(task.get("annotations") for task in rows) or not any(task.get("predictions") for task in rows):
        return tasks, []
    found = {
        file: [
            {**task, "annotations": [{**each, "id": place} for place, each in enumerate(task.get("predictions") or ())]}
            for task in each
        ]
        for file, each in tasks.items()
    }
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
