"""Segments.ai: a release file, with the images and label bitmaps as its library keeps them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import Pair, divided, images_in, json_in
from degrid.data.formats.tools.joined import named_classes
from degrid.data.formats.tools.label_files import LabelRow
from degrid.files import blaming
from degrid.lookup import grouped
from degrid.types import UserError

# NAME_label_LABELSET.png holds instances, NAME_label_LABELSET_semantic.png category ids.
_LABEL = re.compile(r"(?P<name>.+)_label_(?P<labelset>.+?)(?P<semantic>_semantic)?\.png")
_OTHERS = ("_instance.png", "_colored.png")


class SegmentsAi(DataFormat):
    """A release file (NAME-v1.0.json), the images, and NAME_label_ground-truth.png or NAME_label_.._semantic.png.

    The bitmaps of instances become classes by the release file's annotations.
    """

    wanted = "a release file (.json) with images and NAME_label_ground-truth.png (Segments.ai)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: the release file is missing, or of another form.
        """
        files = images_in(path)
        labels = _labels(files)
        release, said = _release(path) if labels else (None, "")
        if release is None:
            if any(labelset == "ground-truth" for _, labelset in labels):
                raise UserError(f"{path} holds Segments.ai's label bitmaps; put the release file (.json) beside them")
            return None
        images = grouped((file.stem, file) for file in files if not _LABEL.fullmatch(file.name))
        with blaming(f"{path / said}: expected a release with categories and samples"):
            rows = [_row(category) for category in release["dataset"]["task_attributes"]["categories"]]
            samples = release["dataset"]["samples"]
            pairs = [pair for sample in samples if (pair := _pair(sample, images, labels, path))]
        classes, rule, ids = named_classes(rows, path, said)
        categories = {0: ids[""], **{row.value: ids[row.name] for row in rows}}
        splits, notes = divided(pairs)
        notes.append("pixels that Segments.ai has no label for are background")
        if len(pairs) < len(samples):
            notes.append(f"{len(samples) - len(pairs)} samples of the release have no image or label here: left out")
        return Layout(said, path, splits, classes, MaskRule(categories, {}, rule.said, exact=True), notes=notes)


@dataclass(frozen=True)
class InstanceBitmap(Pair):
    """An image and a bitmap of instances, read as category ids.

    Attributes:
        categories: the category of each instance; 0, no label, is 0.
    """

    categories: Mapping[int, int] = field(default_factory=dict, hash=False)

    def read_label(self) -> np.ndarray:
        """See `Source`."""
        values = super().read_label()
        if values.ndim == 3:
            # As Segments.ai itself hands it out: the lowest byte is red.
            values = values.astype(np.int64) @ np.array([1, 256, 65536])
        instances, places = np.unique(values, return_inverse=True)
        unknown = [int(value) for value in instances if int(value) not in self.categories]
        if unknown:
            raise UserError(f"{self.mask} has the instance {unknown[0]}, which the release file does not list")
        return np.array([self.categories[int(value)] for value in instances])[places.reshape(values.shape)]


def _release(path: Path) -> tuple[Any, str]:
    """The release in a folder, and the name of its file; (None, "") without one."""
    for file, values in json_in(path):
        if isinstance(values, dict) and isinstance(values.get("dataset"), dict) and "samples" in values["dataset"]:
            return values, file.name
    return None, ""


def _row(category: dict[str, Any]) -> LabelRow:
    red, green, blue = (int(value) for value in (category.get("color") or (0, 0, 0))[:3])
    return LabelRow(str(category["name"]), (red, green, blue) if category.get("color") else None, int(category["id"]))


def _labels(files: list[Path]) -> dict[tuple[str, str], dict[Path, Path]]:
    """The label file in each folder by image name and labelset; the one of categories where there are both."""
    found: dict[tuple[str, str], dict[Path, Path]] = {}
    for file in files:
        match = _LABEL.fullmatch(file.name)
        if match and not file.name.endswith(_OTHERS):
            places = found.setdefault((match["name"], match["labelset"]), {})
            if match["semantic"] or file.parent not in places:
                places[file.parent] = file
    return found


def _pair(
    sample: dict[str, Any], images: dict[str, list[Path]], found: dict[tuple[str, str], dict[Path, Path]], path: Path
) -> Pair | None:
    """A sample's image and label, None where one of them is not there."""
    name = PurePosixPath(str(sample["name"])).with_suffix("")
    places = images.get(name.name, [])
    image = next((file for file in places if file.with_suffix("").as_posix().endswith(f"/{name}")), None)
    sets = {labelset: label for labelset, label in sample["labels"].items() if label and (name.name, labelset) in found}
    if image is None or not sets:
        return None
    labelset = "ground-truth" if "ground-truth" in sets else next(iter(sets))
    files = found[name.name, labelset]
    file = files.get(image.parent) or (next(iter(files.values())) if len(files) == 1 else None)
    title = image.relative_to(path).with_suffix("").as_posix()
    if file is None or file.name.endswith("_semantic.png"):
        return Pair(title, image, file)
    annotations = sets[labelset]["attributes"]["annotations"]
    return InstanceBitmap(title, image, file, {0: 0, **{int(a["id"]): int(a["category_id"]) for a in annotations}})
