"""Supervisely's projects: bitmaps and polygons in JSON files, or the masks of its "Export as masks"."""

from __future__ import annotations

import base64
import contextlib
import io
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from degrid.data.formats.class_text import written_color
from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import SPLIT_NAMES, DataFormat, Layout, split_of
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.pairs import Pair, divided, images_in, pair_up
from degrid.data.formats.shapes.drawn import refuse_boxes
from degrid.data.formats.shapes.polygon import polygon_region, rectangle
from degrid.data.formats.shapes.region import NOTHING, Region, window, without
from degrid.data.formats.tools.joined import named_classes
from degrid.data.formats.tools.label_files import BACKGROUND, LabelRow, labels_of
from degrid.files import blaming, parse_json, read_text, walk
from degrid.types import LabelSpace, UserError, voc_palette

_META = "meta.json"
_VALUES = "obj_class_to_machine_color.json"
_AREAS = ("bitmap", "polygon", "rectangle")
_LOOKED_AT = 200
"""Files, spread over all, in which shapes without an area are looked for."""


class Supervisely(DataFormat):
    """meta.json, and in each dataset the folders img and ann, with ann/NAME.jpg.json.

    Where obj_class_to_machine_color.json and masks_machine are there, these masks are read instead of the JSON files.
    Datasets named like splits are the splits; otherwise all of them are one set.
    """

    wanted = "meta.json and datasets with img and ann (Supervisely)"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: meta.json or the table of values is of another form.
        """
        base = _project(path)
        if base is None:
            return None
        machine = (base / _VALUES).is_file()
        folder = "masks_machine" if machine else "ann"
        named = (place.parent for place, _ in walk(path) if place.name == "img")
        datasets = sorted(dataset for dataset in named if (dataset / folder).is_dir())
        if not datasets:
            return None
        labels, rule, ids = _classes(base, machine)
        splits: dict[str, list[Pair]] = {}
        notes = ["pixels without an object are background"]
        for dataset in datasets:
            pairs = _masks(dataset, path) if machine else _shapes(dataset, path, ids)
            splits.setdefault(split_of(dataset.name), []).extend(pairs)
        notes += _without_area(splits)
        if not set(splits).intersection(SPLIT_NAMES.values()):
            splits, of_division = divided([pair for pairs in splits.values() for pair in pairs])
            notes = [*of_division, *notes]
        return Layout(f"{_VALUES if machine else _META}, img and {folder}", path, splits, labels, rule, [], notes)


def _classes(base: Path, machine: bool) -> tuple[LabelSpace, MaskRule, dict[str, int]]:
    """The classes and the rule, and the train id of each name where shapes are drawn."""
    rows = _class_rows(base / _META)
    return (*_machine_classes(base, rows), {}) if machine else named_classes(rows, base, _META)


def _project(path: Path) -> Path | None:
    """The folder of the project: this one, or the one above where this is a dataset; None for other data."""
    places = (path, path.parent) if (path / "img").is_dir() else (path,)
    return next((place for place in places if any((place / name).is_file() for name in (_VALUES, _META))), None)


def _masks(dataset: Path, path: Path) -> list[Pair]:
    """The images of a dataset with their masks_machine/NAME.png."""
    pairs, _ = pair_up(dataset / "img", dataset / "masks_machine")
    by_mask: dict[Path, Path] = {}
    for pair in pairs:
        if pair.mask and by_mask.setdefault(pair.mask, pair.image) != pair.image:
            raise UserError(
                f"{pair.image} and {by_mask[pair.mask].name} have one mask, {pair.mask.name}: this export drops the "
                f"ending; take {_VALUES} away, so that the JSON files are read"
            )
    return [replace(pair, name=(dataset.relative_to(path) / pair.name).as_posix()) for pair in pairs]


def _shapes(dataset: Path, path: Path, ids: dict[str, int]) -> list[Pair]:
    """The images of a dataset with their ann/NAME.jpg.json."""
    pairs: list[Pair] = []
    for image in images_in(dataset / "img"):
        name = image.relative_to(dataset / "img")
        file = dataset / "ann" / f"{name.as_posix()}.json"
        mask = file if file.is_file() else None
        pairs.append(ShapeFile((dataset.relative_to(path) / name).as_posix(), image, mask, ids))
    return pairs


def _without_area(splits: Mapping[str, Sequence[Pair]]) -> list[str]:
    """A sentence on lines and points in some of the files, which are left out.

    Raises:
        UserError: there is nothing else.
    """
    kinds: Counter[str] = Counter()
    files = [pair.mask for pairs in splits.values() for pair in pairs if isinstance(pair, ShapeFile) and pair.mask]
    for file in files[:: len(files) // _LOOKED_AT + 1]:
        with contextlib.suppress(
            AttributeError, KeyError, TypeError, ValueError
        ):  # reading the sample says what is wrong
            drawn = parse_json(read_text(file))["objects"]
            kinds.update("bitmap" if "bitmap" in each else str(each["geometryType"]) for each in drawn)
    return refuse_boxes(kinds, _AREAS, (), f"{files[0]} and others of Supervisely" if files else "")


def _class_rows(file: Path) -> list[LabelRow]:
    """The classes of meta.json in order; none without the file."""
    if not file.is_file():
        return []
    with blaming(f"{file}: expected classes, each with a title and a color"):
        classes = [
            (str(row["title"]), written_color(str(row.get("color", ""))))
            for row in parse_json(read_text(file))["classes"]
        ]
    return [LabelRow(name, color, value) for value, (name, color) in enumerate(classes)]


def _machine_classes(path: Path, rows: list[LabelRow]) -> tuple[LabelSpace, MaskRule]:
    """The classes by the table of values, with the colours that meta.json has for them; 0 is background."""
    labels, rule = class_table(path)
    if labels is not None and rule is not None:
        return labels, rule
    file = path / _VALUES
    with blaming(f"{file}: expected a value or colour for each class"):
        values = {str(name): np.broadcast_to(value, 3).tolist() for name, value in parse_json(read_text(file)).items()}
        drawn = [LabelRow(name, (r, g, b), int(r)) for name, (r, g, b) in values.items()]
    labels, rule = labels_of([LabelRow(BACKGROUND, (0, 0, 0), 0), *drawn], file, exact=True)
    shown = {row.name: row.color for row in rows if row.color}
    palette = voc_palette(len(labels))
    colors = [shown.get(name, palette[train]) for train, name in enumerate(labels.names)]
    return LabelSpace(labels.names, tuple(colors)), rule


@dataclass(frozen=True)
class ShapeFile(Pair):
    """An image and the JSON file of its objects, drawn in the order of the file, the later ones on top.

    Attributes:
        ids: the train id of each class; that of "" is for pixels without an object.
    """

    ids: dict[str, int] = field(default_factory=dict, hash=False)

    def read_label(self) -> np.ndarray:
        """See `Source`."""
        if self.mask is None:
            return super().read_label()
        with blaming(f"{self.mask}: expected the size and the objects of an image", OSError, zlib.error):
            values = parse_json(read_text(self.mask))
            label = np.full((values["size"]["height"], values["size"]["width"]), self.ids[""], np.uint8)
            for drawn in values["objects"]:
                name = drawn["classTitle"]
                if name not in self.ids:
                    raise UserError(f'{self.mask} has an object of the class "{name}", which is not in {_META}')
                region = _region(drawn, *label.shape)
                window(label, region)[region.pixels] = self.ids[name]
        return label


def _region(drawn: dict[str, Any], height: int, width: int) -> Region:
    """The pixels of an object; none for points and lines, which have no area."""
    if "bitmap" in drawn:
        left, top = drawn["bitmap"]["origin"]
        return Region(top, left, bitmap_pixels(drawn["bitmap"]["data"])).inside(height, width)
    kind = drawn.get("geometryType")
    if kind not in ("polygon", "rectangle"):
        return NOTHING
    outline = np.asarray(drawn["points"]["exterior"], np.float64).reshape(-1, 2)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = outline
        # Both corners are pixels of it, as the area in Supervisely's library says.
        outline = rectangle(min(x0, x1), min(y0, y1), abs(x1 - x0) + 1, abs(y1 - y0) + 1)
    holes = [np.asarray(hole, np.float64).reshape(-1, 2) for hole in drawn["points"].get("interior") or ()]
    region = polygon_region(outline, height, width)
    return without(region, [polygon_region(hole, height, width) for hole in holes])


def bitmap_pixels(data: str) -> np.ndarray:
    """The pixels of a bitmap, bool [H,W]: base64 of a PNG, which is compressed once more with zlib or not."""
    packed = base64.b64decode(data)
    image = Image.open(io.BytesIO(packed if packed.startswith(b"\x89PNG") else zlib.decompress(packed)))
    values = np.asarray(image)
    return (values[..., 3] if values.ndim == 3 and values.shape[2] == 4 else values) > 0
