"""Samples whose label is drawn, when it is read, from the shapes in a file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from degrid.data.formats.folder import DRAWN
from degrid.data.formats.layout import SPLIT_NAMES, split_of
from degrid.data.formats.masks import SIDEWAYS
from degrid.data.formats.pairs import Pair, divided, images_in, splits_or_divided, with_val
from degrid.data.formats.shapes.region import Thing, draw
from degrid.files import blaming
from degrid.image import exif_orientation, open_image
from degrid.lookup import grouped
from degrid.types import IGNORE_INDEX, UserError

_FEW_OUTLINES = 10  # so few may well be rectangular things
OVERLAPS = "pixels without an object are background; where objects overlap, the smaller one counts"


def _nothing(height: int, width: int) -> Iterable[Thing]:
    return ()


@dataclass(frozen=True)
class Drawn(Pair):
    """An image, and the file (`mask`) that holds its shapes.

    Attributes:
        things: gives the objects of the image, called with its height and width.
        size: height and width; None: those of the image as it is shown.
        rest: the train id of pixels without an object.
    """

    things: Callable[[int, int], Iterable[Thing]] = _nothing
    size: tuple[int, int] | None = None
    rest: int = 0

    def read_label(self) -> np.ndarray:
        """See `Source`."""
        return _drawn(self, *(self.size or shown_size(self.image)))[0].copy()

    def said_of_label(self, size: tuple[int, ...]) -> str:
        """See `Source`."""
        nothing = _drawn(self, *size)[1]
        return "masks with objects that cover no pixel: outside the image, or smaller than one" * nothing

    def objects(self, height: int, width: int) -> Iterable[Thing]:
        """The objects of an image of this size, as they are to be drawn."""
        for thing in self.things(height, width):
            # Shapes that are always void, such as boxes, stay below everything.
            yield thing._replace(crowd=False) if self.how.crowds and thing.value != IGNORE_INDEX else thing


@lru_cache(maxsize=1)  # what is said of a label is asked after it was drawn
def _drawn(source: Drawn, height: int, width: int) -> tuple[np.ndarray, bool]:
    """The label, and whether an object covers no pixel of it."""
    with blaming(f"{source.mask}: the shapes of {source.name} cannot be drawn:"):
        things = list(source.objects(height, width))
        nothing = any(not thing.region.inside(height, width).pixels.any() for thing in things)
        return draw(things, height, width, source.rest), nothing


def shown_size(file: Path) -> tuple[int, int]:
    """Height and width of an image, turned as its EXIF orientation says.

    Raises:
        UserError: it cannot be read.
    """
    orientation, width, height = exif_orientation(file)
    if not width:
        width, height = open_image(file).size  # the next format explains, or reads more kinds
    return (width, height) if orientation >= SIDEWAYS else (height, width)


def read_xml(file: Path) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
        UserError: it is missing, cut short, no XML, or defines entities, as no tool does.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if b"<!ENTITY" in content:
        raise UserError(f"{file} defines entities, which tools' files do not; remove the definitions")
    try:
        return ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise UserError(f"{file} is not valid XML, or cut short: {error}") from error


def refuse_boxes(kinds: Mapping[str, int], areas: Collection[str], boxes: Collection[str], where: str) -> list[str]:
    """Refuse labels without a single outline, and note the shapes that have no area.

    Args:
        kinds: how many shapes there are of each kind.
        areas: the kinds that are drawn, boxes among them.
        boxes: the kinds that say too little if there are no others.
        where: what messages call the file.
    Raises:
        UserError: there are boxes, points and lines only.
    """
    if kinds and not set(kinds) & (set(areas) - set(boxes)):
        shown = ", ".join(f"{number:,} of the kind {kind}" for kind, number in kinds.items())
        raise UserError(
            f"{where}: the shapes are {shown}, and no outlines: boxes, points and lines cannot train a segmentation; "
            "draw polygons or masks"
        )
    left = ", ".join(f"{number:,} of the kind {kind}" for kind, number in kinds.items() if kind not in areas)
    return [f"shapes without an area are left out: {left}"] if left else []


def said_of_boxes(outlines: int, boxes: int) -> list[str]:
    """A sentence on outlines most of which are upright rectangles, as programs make them of boxes; none of few.

    Args:
        outlines: how many there are.
        boxes: how many of them are such rectangles, see `is_upright_rectangle`.
    """
    if outlines < _FEW_OUTLINES or boxes <= outlines / 2:
        return []
    return [
        f"{boxes:,} of {outlines:,} outlines are upright rectangles: if they are boxes around the objects, what is in "
        "the boxes' corners is learned as object, too (degrid data preview shows them)"
    ]


def split_of_file(file: Path, root: Path) -> str:
    """The split of a file by the words of its name, or by its folders below the root; "default" where none says so."""
    words = re.findall(r"[a-z]+", file.stem.lower())
    return next((split_of(word) for word in words if word in SPLIT_NAMES), split_of_folders(file, root))


def split_of_folders(file: Path, root: Path) -> str:
    """The split of a file that is named after its image, by its folders; "default" where none says so."""
    folders = [part.lower() for part in file.relative_to(root).parts[:-1]]
    return next((split_of(name) for name in folders if name in SPLIT_NAMES), "default")


def with_splits(splits: Mapping[str, Sequence[Pair]]) -> tuple[dict[str, list[Pair]], list[str]]:
    """The splits, where one list that is everything is divided, and train without val is, too; and notes on that."""
    if set(splits) == {"default"}:  # see `split_of_file`: not a list that the user could find
        return divided([*splits["default"]])
    found, notes = splits_or_divided({split: list(pairs) for split, pairs in splits.items()})
    return (found, notes) if notes or set(found) != {"train"} else with_val(found)


_UPLOADED = re.compile(r"^[0-9a-f]{8}-")


def before_upload(name: str) -> str:
    """The name that a file had before it was uploaded to Label Studio, which puts eight characters in front."""
    return _UPLOADED.sub("", name)


def by_name(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Files by their names, and by those before the upload."""
    return grouped((name, file) for file in files for name in {file.name, before_upload(file.name)})


class Images:
    """Finds the images that a tool's file names, whose folders may be others by now.

    Args:
        root: of the data.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, written: str, near: Path, *folders: Path) -> Path:
        """The image that `written` stands for.

        Args:
            near: the folder of the file that names it.
            folders: others to look in first.
        Returns:
            A file that is there; or, where there is none, the place where it was expected.
        """
        name = written.replace("\\", "/").partition("?")[0].removeprefix("file://").lstrip("/")
        places = [folder / name for folder in (near, *folders, self.root, self.root / "images")]
        found = next((place for place in places if os.path.isfile(place)), None)
        if found and ".." in found.parts and os.path.isfile(plain := os.path.normpath(found)):
            return Path(plain)
        return found or self._by_name(Path(name)) or places[0]

    def relative(self, image: Path) -> str:
        """The name of the sample: below the root, without suffix."""
        inside = image.is_relative_to(self.root)
        return (image.relative_to(self.root) if inside else Path(image.name)).with_suffix("").as_posix()

    def beside(self, file: Path) -> list[Path]:
        """The images that differ from a file in their suffix only."""
        return self._by_stem.get(file.with_suffix(""), [])

    def _by_name(self, name: Path) -> Path | None:
        """The image of this name in any folder; of several, the one in the most alike folders, if it is one only."""
        found = self._index.get(name.name) or self._index.get(before_upload(name.name)) or []
        alike = [(_alike(file, name), file) for file in found]
        best = [file for score, file in alike if score == max(alike)[0]]
        return best[0] if len(best) == 1 else None

    @cached_property
    def all(self) -> list[Path]:
        """Every image below the root, without masks that were drawn."""
        return [file for file in images_in(self.root) if file.relative_to(self.root).parts[0] != DRAWN]

    @cached_property
    def _by_stem(self) -> dict[Path, list[Path]]:
        return grouped((image.with_suffix(""), image) for image in self.all)

    @cached_property
    def _index(self) -> dict[str, list[Path]]:
        return by_name(self.all)


def _alike(file: Path, name: Path) -> int:
    """How many parent folders have the same names."""
    count = 0
    for ours, theirs in zip(reversed(file.parts[:-1]), reversed(name.parts[:-1]), strict=False):
        if ours != theirs:
            break
        count += 1
    return count
