"""Label Studio's brush labels as it exports them: one PNG or NumPy file per annotation, tag and class."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlparse

from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.pairs import Pair, divided, images_in, json_in, masks_in
from degrid.data.formats.shapes.drawn import before_upload, by_name
from degrid.data.formats.tools.joined import JoinedMasks, named_classes
from degrid.data.formats.tools.label_files import LabelRow
from degrid.image import IMAGE_SUFFIXES
from degrid.lookup import counted, grouped
from degrid.types import UserError

# As label_studio_sdk's converter/brush.py writes it; of the address only letters, digits, "@" and "." are left.
_NAME = re.compile(r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-[\w@.]*-[^-]+-(?P<label>.+)-\d+\.(png|npy)")
_PATTERN = "task-*-annotation-*"


class _Mask(NamedTuple):
    task: int
    annotation: int
    label: str
    file: Path


class LabelStudio(DataFormat):
    """Masks called task-1-annotation-2-by-3-tag-NAME-0.png (or .npy), the images, and the project's JSON export.

    The masks name the tasks by number only; the JSON export (or JSON-MIN) names the image of each. Without one, the
    images must be named after the tasks, as in 1.jpg or task-1.jpg.
    """

    wanted = "task-1-annotation-2-by-3-tag-NAME-0.png, the images and the JSON export (Label Studio)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: an image is missing, or nothing says which belongs to which task.
        """
        masks = _masks(path)
        if not masks:
            return None
        names, said = _image_names(path)
        pictures = [file for file in images_in(path) if not _NAME.fullmatch(file.name)]
        images = by_name(pictures)
        rows = [LabelRow(name, None, value) for value, name in enumerate(sorted({mask.label for mask in masks}))]
        labels, rule, ids = named_classes(rows, path, said or masks[0].file.name)
        tasks = grouped((mask.task, mask) for mask in masks)
        pairs: list[Pair] = []
        for task, its_masks in sorted(tasks.items()):
            given = grouped((mask.annotation, mask) for mask in its_masks)
            image = _image(task, names, images, path)
            layers = tuple((ids[mask.label], mask.file) for mask in given[max(given)])
            name = image.relative_to(path).with_suffix("").as_posix()
            pairs.append(JoinedMasks(name, image, layers[0][1], layers, ids[""]))
        splits, notes = divided(pairs)
        several = sum(len({mask.annotation for mask in its_masks}) > 1 for its_masks in tasks.values())
        notes += _notes(several, len({*pictures} - {pair.image for pair in pairs}))
        reason = f"{masks[0].file.name}, and {said or 'images called after the tasks'}"
        return Layout(reason, path, splits, labels, rule, notes=notes)


def _notes(several: int, left: int) -> list[str]:
    """Notes on decisions, and on how many images have no mask."""
    notes = ["pixels without a label are background; where labels overlap, the smaller one counts"]
    if several:
        notes.append(f"{counted(several, 'task', 'have')} several annotations: the last of each counts")
    if left:
        none = "no mask, since Label Studio writes none where nothing was drawn: left out"
        notes.append(f"{counted(left, 'image', 'have')} {none}")
    return notes


def _masks(path: Path) -> list[_Mask]:
    """The masks in a folder, PNG where there are both kinds."""
    files = [file for file in masks_in(path) if file.match(_PATTERN)]
    found = [(match, file) for file in files if (match := _NAME.fullmatch(file.name))]
    ending = ".png" if any(file.suffix == ".png" for _, file in found) else ".npy"
    return [_Mask(int(m["task"]), int(m["annotation"]), m["label"], f) for m, f in found if f.suffix == ending]


def _image_names(path: Path) -> tuple[dict[int, str], str]:
    """The name of each task's image, by the JSON export in the folder, and its file's name; ({}, "") without one."""
    for file, tasks in json_in(path):
        if isinstance(tasks, list) and tasks and all(isinstance(task, dict) and "id" in task for task in tasks):
            return {int(task["id"]): image_address(task) for task in tasks}, file.name
    return {}, ""


def image_address(task: dict[str, Any]) -> str:
    """The name of a task's image file; empty where none of its values is one."""
    return next(_addresses(task), "")


def _addresses(task: dict[str, Any]) -> Iterator[str]:
    """The names of image files among the values of a task."""
    values = task["data"] if isinstance(task.get("data"), dict) else task
    for value in values.values():
        if isinstance(value, str):
            url = urlparse(value)
            name = Path(unquote(parse_qs(url.query).get("d", [url.path])[0])).name
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield name


def _image(task: int, names: dict[int, str], images: dict[str, list[Path]], path: Path) -> Path:
    """The image of a task, by the JSON export's name for it, or by the task's number where there is no such file."""
    name = names.get(task, "")
    if names:
        found = images.get(name) or images.get(before_upload(name)) or []
        what = f"called {name}" if name else "in the JSON export"
    else:
        called = (f"{start}{task}{suffix}" for start in ("", "task-") for suffix in sorted(IMAGE_SUFFIXES))
        found = [file for name in called for file in images.get(name, [])]
        what = "called after it; add the project's JSON export, which names the images"
    if len(found) != 1:
        raise UserError(f"{path}: Label Studio's task {task} has {len(found) or 'no'} image {what}; expected one")
    return found[0]
