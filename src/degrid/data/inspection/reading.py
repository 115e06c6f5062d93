"""Read one sample and summarise it in a few numbers that can be sent between processes."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from degrid.bands import DIM
from degrid.data.formats.lookalikes import look_of
from degrid.data.formats.masks import NO_DATA
from degrid.data.formats.read_array import UnusableMaskError
from degrid.data.formats.read_mask import LossyMaskError, remarks_on
from degrid.data.formats.source import Source
from degrid.data.formats.values import LabelValues
from degrid.data.processes import in_order
from degrid.image import UnreadKindError
from degrid.types import RGB, Bands, OnProgress, Progress, UserError

_NEARLY_BLACK = (
    "images that are nearly black: of 0 to 255 they use few values (where images have more than 8 bits, model.range "
    "gives others)"
)


@dataclass(frozen=True)
class Reading:
    """What is in one sample.

    Attributes:
        name: of the sample; empty where nothing can be read.
        digest: of the image as it is stored; empty where it cannot be read.
        look: of the image, see `lookalikes.look_of`.
        size: of the image, height and width; None where it cannot be read.
        label: None where it cannot be read.
        fits: whether the label belongs to an image that can be read, so that it counts.
        label_place: what messages call the label.
        faults, remarks: what is wrong, and what may surprise, as kinds and examples.
    """

    name: str
    digest: bytes = b""
    size: tuple[int, int] | None = None
    label: LabelValues | None = None
    fits: bool = True
    label_place: str = ""
    faults: tuple[tuple[str, str], ...] = ()
    remarks: tuple[tuple[str, str], ...] = ()
    look: bytes = b""


def read_sample(source: Source, bands: Bands = RGB) -> Reading:
    """Read image, as these bands, and label completely."""
    try:
        name, image, label, empty = source.check(bands)
        if image.shape[2] == 1 and image.max(initial=0) <= DIM:  # of dark blue, the brightness is near 0, too
            name, image, label, empty = source.read(bands)
    except UserError as error:
        return _faulty(source, error, bands)
    if empty is not None and label.ndim == 2:
        label = np.where(empty, np.int64(NO_DATA), label)
    digest = _digest(source.image_file() or image.tobytes())
    size = (image.shape[0], image.shape[1])
    highest = int(image.max(initial=0))
    image_place, label_place = source.places()
    remarks = [(_NEARLY_BLACK, f"{image_place} (0 to {highest})")] if highest <= DIM else []
    remarks += [(remark, label_place) for remark in remarks_on(Path(label_place))]
    # The brightness is that of an upright JPEG.
    turned = source.turned(label.shape[:2]) if image.shape[2] != 1 else ""
    said = ((turned, image_place), (source.said_of_label(label.shape[:2]), f"{label_place} ({name})"))
    remarks += filter(operator.itemgetter(0), said)
    values = LabelValues.of(label, source.palette())
    if values.values.ndim == 1 and NO_DATA in values.values:
        by_image = empty is not None and bool(empty.any())
        kind, place = ("images", image_place) if by_image else ("masks", label_place)
        remarks.append((f"{kind} with pixels that have no data (NaN, or what the file calls so): void", place))
    return Reading(name, digest, size, values, label_place=label_place, remarks=tuple(remarks), look=look_of(image))


def _faulty(source: Source, error: UserError, bands: Bands) -> Reading:
    """Which part of a sample is at fault, and the image's size if it can be read."""
    if source.unreadable:
        return Reading("", label=_values(source), fits=False, faults=((source.unreadable, str(error)),))
    stored = source.image_file()
    faults: list[tuple[str, str]] = []
    label = _read_label(source, faults)
    size = None
    try:
        read = source.read_image if bands == RGB else source.read_values
        image = read(None if label is None else label.shape[:2])
        size = (image.shape[0], image.shape[1])
    except UserError as wrong:
        unread = isinstance(wrong, UnreadKindError)
        kind = "images of a kind that is not read" if unread else "images that cannot be read (get them again)"
        faults.append((kind, str(wrong)))
    if size and label is not None and size == label.shape[:2]:
        faults.append(
            ("images that do not fit the others (leave them out, or store the bands that all have)", str(error))
        )
    elif size and label is not None:
        place = source.places()[1]
        differ = f"{place} is {label.shape[1]}x{label.shape[0]}, the image {size[1]}x{size[0]}"
        faults.append(("masks of another size than their image (export them at the image's size)", differ))
    values = None if label is None else LabelValues.of(label, source.palette())
    return Reading(source.name, _digest(stored) if stored else b"", size, values, False, faults=tuple(faults))


def _values(source: Source) -> LabelValues | None:
    """The values of a label whose image cannot be read."""
    try:
        return LabelValues.of(source.read_label(), source.palette())
    except UserError:
        return None


def _read_label(source: Source, faults: list[tuple[str, str]]) -> np.ndarray | None:
    image_place, label_place = source.places()
    missing = source.missing()
    if missing == "label":
        expected = f" (expected {label_place})" if label_place else ""
        faults.append(("images without a mask (add the masks, or remove the images)", f"{image_place}{expected}"))
    if missing:
        return None
    try:
        return source.read_label()
    except UserError as error:
        if isinstance(error, LossyMaskError):
            mend = "save masks as PNG, or write threshold: 128 or nearest_color: 30 in dataset.yaml"
            faults.append((f"{error.kind} masks (their ids are blurred; {mend})", label_place))
        elif isinstance(error, UnusableMaskError):
            faults.append(("masks that do not hold class ids", str(error)))
        else:
            faults.append(("masks that cannot be read (make them again)", str(error)))
        return None


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


class Reader:
    """Reads samples once, by several processes: those that were read to find the classes are kept.

    Args:
        total: how many samples there are, for `progress`.
        bands: how the images are read.
        processes: see `degrid.data.processes.in_order`.
        progress: told how many samples have been read.
    """

    def __init__(self, total: int, bands: Bands, processes: int | None, progress: OnProgress | None) -> None:
        self._total, self._progress, self._processes = total, progress, processes
        self._read = functools.partial(read_sample, bands=bands)
        self._kept: dict[int, tuple[Source, Reading]] = {}
        self._done = 0

    def values(self, sources: Sequence[Source]) -> Iterator[LabelValues | None]:
        """As `degrid.data.formats.survey.read_values`; the samples are read as a whole, and kept."""
        new = self._each(list({id(source): source for source in sources if id(source) not in self._kept}.values()))
        for source in sources:
            if id(source) not in self._kept:  # with the source, so that its id is not given to another
                self._kept[id(source)] = source, next(new)
            yield self._kept[id(source)][1].label

    def readings(self, sources: Sequence[Source]) -> Iterator[Reading]:
        """All samples, in order."""
        new = self._each([source for source in sources if id(source) not in self._kept])
        for source in sources:
            yield self._kept[id(source)][1] if id(source) in self._kept else next(new)

    def _each(self, sources: Sequence[Source]) -> Iterator[Reading]:
        for reading in in_order(self._read, sources, self._processes):
            self._done = min(self._done + 1, self._total)  # some are read again in a different way
            if self._progress:
                self._progress(Progress("checking", self._done, self._total))
            yield reading
