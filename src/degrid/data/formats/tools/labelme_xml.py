"""The XML files of LabelMe, MIT's web tool, as CVAT and Datumaro write them, too ("LabelMe 3.0").

Source: LabelMe's description of its annotations, and the exporter of Datumaro 1.13.12. It is not the same tool as
    labelme.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.pairs import any_mask, files_in
from degrid.data.formats.read_mask import read_mask
from degrid.data.formats.shapes.drawn import (
    OVERLAPS,
    Drawn,
    Images,
    read_xml,
    refuse_boxes,
    split_of_folders,
    with_splits,
)
from degrid.data.formats.shapes.polygon import polygon_region
from degrid.data.formats.shapes.region import Region, Thing
from degrid.data.formats.tools.joined import named_classes
from degrid.data.formats.tools.label_files import LabelRow
from degrid.files import blaming
from degrid.lookup import counted
from degrid.types import IGNORE_INDEX

_KINDS = ("polygon", "mask", "box")


class _Object(NamedTuple):
    """One object: its class, what it is drawn of ("" if of nothing), its corners float64 [N,2], its mask's name."""

    name: str
    kind: str
    corners: np.ndarray
    mask: str


class _File(NamedTuple):
    """The content of one file: the image, its folder and size (None if missing), and the objects."""

    image: str
    folder: str
    size: tuple[int, int] | None
    objects: list[_Object]


class LabelMeXml(DataFormat):
    """Annotations/FOLDER/NAME.xml, Images/FOLDER and, for objects that were painted, Masks/FOLDER.

    Deleted objects are left out, and boxes are void, except where an object is drawn. The files do not say what is on
    top.
    """

    wanted = "Annotations/FOLDER/NAME.xml and Images of LabelMe"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`.

        Raises:
            UserError: a file is damaged, or holds boxes only.
        """
        files = _files(path)
        contents = {file: _read(file) for file in files}
        kinds = Counter(each.kind for content in contents.values() for each in content.objects)
        if not kinds or (not kinds["mask"] and any_mask(path / "Masks")):
            return None  # where masks lie beside polygons, the masks count
        left_out = refuse_boxes(kinds, _KINDS, ("box",), f"{files[0]} and others of LabelMe")
        rows = [LabelRow(name, None, 0) for name in _names(contents.values())]
        labels, rule, ids = named_classes(rows, path, files[0].name)
        images = Images(path)
        splits: dict[str, list[Drawn]] = {}
        for file, content in contents.items():
            image = images.find(content.image, path / "Images" / content.folder, _beside(file, "Images"), file.parent)
            things = partial(_things, file, content, ids, path)
            source = Drawn(images.relative(image), image, file, things, content.size, ids[""])
            splits.setdefault(split_of_folders(file, path), []).append(source)
        divided, notes = with_splits(splits)
        notes += [OVERLAPS, *left_out]
        if kinds["box"]:
            notes.append("boxes are void, except where an object is drawn")
        if empty := sum(not content.objects for content in contents.values()):
            notes.append(f"{counted(empty, 'image', 'have')} no object: background all over")
        reason = f"{files[0].relative_to(path).as_posix()} and the like"
        return Layout(reason, path, divided, labels, rule, notes=notes)


def _names(contents: Iterable[_File]) -> list[str]:
    objects = (each for content in contents for each in content.objects)
    return sorted({each.name for each in objects if each.name and each.kind in _KINDS})


def _files(path: Path) -> list[Path]:
    return [file for file in files_in(path, ".xml") if _is_labelme(file.read_bytes())] if path.is_dir() else []


def _is_labelme(content: bytes) -> bool:
    """Whether it is not VOC's XML, whose objects have a "bndbox"."""
    return b"<annotation>" in content and b"<filename>" in content and b"<bndbox>" not in content


def _read(file: Path) -> _File:
    root = read_xml(file)
    with blaming(f"{file}: expected LabelMe's filename, folder, and objects with polygons or masks"):
        height, width = _text(root, "imagesize/nrows"), _text(root, "imagesize/ncols")
        size = (int(height), int(width)) if height and width else None
        kept = [each for each in root.iter("object") if _text(each, "deleted") not in ("1", "yes")]
        return _File(_text(root, "filename"), _text(root, "folder"), size, [_object(each) for each in kept])


def _text(element: ElementTree.Element, place: str) -> str:
    return (element.findtext(place) or "").strip()


def _object(element: ElementTree.Element) -> _Object:
    points = [(float(_text(point, "x")), float(_text(point, "y"))) for point in element.iterfind("polygon/pt")]
    mask = _text(element, "segm/mask")
    box = _text(element, "type") == "bounding_box"
    kind = (
        "mask" if mask else "box" if box else "polygon" if len(points) > 2 else "point" if len(points) == 1 else "line"
    )
    return _Object(_text(element, "name"), kind, np.array(points, np.float64).reshape(-1, 2), mask)


def _beside(file: Path, name: str) -> Path:
    """The folder below `name` that corresponds to the file's below Annotations."""
    parts = [name if part == "Annotations" else part for part in file.parent.parts]
    return Path(*parts)


def _things(file: Path, content: _File, ids: Mapping[str, int], root: Path, height: int, width: int) -> Iterator[Thing]:
    for each in content.objects:
        if each.kind in _KINDS:
            train = ids[each.name] if each.name else IGNORE_INDEX
            if each.kind == "mask":
                mask = _mask_file(each.mask, content.folder, file, root)
                yield Thing(train, Region(0, 0, _painted(mask, height, width)))
            else:
                box = each.kind == "box"
                yield Thing(IGNORE_INDEX if box else train, polygon_region(each.corners, height, width), box)


def _mask_file(written: str, folder: str, file: Path, root: Path) -> Path:
    """The mask that a file names: below Masks in the root or, as CVAT has it, in the folder of the split."""
    above = [place / "Masks" for place in file.parents if place.is_relative_to(root)]
    places = [root / "Masks" / folder, _beside(file, "Masks"), *(at for mask in above for at in (mask / folder, mask))]
    found = (place / written for place in (*places, file.parent) if (place / written).is_file())
    return next(found, places[0] / written)


def _painted(mask: Path, height: int, width: int) -> np.ndarray:
    """The pixels of a mask that are not black, bool [H,W]."""
    values = read_mask(mask)
    painted: np.ndarray = (values if values.ndim == 2 else values.max(axis=-1)) > 0
    if painted.shape != (height, width):
        raise ValueError(f"{mask} is {painted.shape[1]}x{painted.shape[0]} pixels, the image is {width}x{height}")
    return painted
