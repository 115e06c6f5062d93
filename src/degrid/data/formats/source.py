"""Where one sample comes from: its name, its image and its label, whatever they are stored in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple, overload

import numpy as np

from degrid.bands import scene_of
from degrid.data.formats.masks import MaskReading
from degrid.types import RGB, Bands, UserError


class RawSample(NamedTuple):
    """A name, an image uint8 [H,W,C] (RGB if C is 3), and a label as it is stored: ids [H,W] or uint8 [H,W,3]."""

    name: str
    image: np.ndarray
    label: np.ndarray
    empty: np.ndarray | None = None
    """The pixels without data, bool [H,W], whose label is void; None where all hold data."""


class Source(ABC):
    """One sample of a dataset, read when it is asked for.

    Attributes:
        name: identifies the image within its split, with sub-folders and without suffix ("city/frame_0001").
        unreadable: what `degrid data check` calls samples that cannot be read; empty where image and label are
            separate files, so that each is reported by itself.
    """

    __slots__ = ()
    name: str
    unreadable: ClassVar[str] = "samples that cannot be read (make or get them again)"

    @abstractmethod
    def read_image(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """The image, RGB uint8 [H,W,3].

        Args:
            size: height and width of the label: an image stored sideways is turned by its EXIF orientation unless
                only the unturned image has this size.
        Raises:
            UserError: missing or damaged.
        """

    def read_values(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """The image as it is stored, [H,W,C] of any number of bands and type; by default what `read_image` gives.

        Args:
            size: see `read_image`.
        Raises:
            UserError: see `read_image`.
        """
        return self.read_image(size)

    def is_plain(self) -> bool:
        """Whether `read_image` loses nothing, since the image holds grey or colours of 8 bits."""
        return True

    def no_data(self) -> float | None:
        """The value of pixels of `read_values` that hold no data; None where there is none."""
        return None

    @abstractmethod
    def read_label(self) -> np.ndarray:
        """The label's values: whole numbers [H,W], or colours uint8 [H,W,3]. A `MaskRule` maps them to train ids.

        Raises:
            UserError: missing or damaged.
        """

    def read(self, bands: Bands = RGB) -> RawSample:
        """Everything at once, with an image of these bands.

        Raises:
            UserError: missing, damaged, of another form than promised, or of two sizes.
        """
        label = self.read_label()
        size = label.shape[:2]
        no_data = self.no_data()
        if bands == RGB and no_data is None:
            image, empty = self.read_image(size), None
        else:
            image, empty = scene_of(self.read_values(size), bands, no_data, self.places()[0])
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != bands.count:
            raise UserError(
                f"{self.name}: an image must be uint8 [H,W,{bands.count}], got {image.dtype} {list(image.shape)}"
            )
        if image.shape[:2] != label.shape[:2]:
            image_place, label_place = self.places()
            raise UserError(
                f"{label_place} is {label.shape[1]}x{label.shape[0]} pixels, its image {Path(image_place).name} is "
                f"{image.shape[1]}x{image.shape[0]}; they must have the same size"
            )
        return RawSample(self.name, image, label, empty)

    def check(self, bands: Bands = RGB) -> RawSample:
        """As `read`, for callers that only want to know what is there: the image may be its brightness, uint8 [H,W,1].

        Raises:
            UserError: see `read`.
        """
        return self.read() if bands == RGB else self.read(bands)

    def places(self) -> tuple[str, str]:
        """What messages call the image and the label; the label's is empty where there is none."""
        return self.name, self.name

    def missing(self) -> str:
        """Which part is known to be missing without reading any: "image", "label", or "" for neither.

        Raises:
            UserError: the sample cannot be read at all.
        """
        return ""

    def image_file(self) -> bytes:
        """The image file as it is stored; empty where the image is not stored as a file."""
        return b""

    def store(self) -> str:
        """The path or address of the file that holds this sample and others; empty for one that has its own files."""
        return ""

    def turned(self, size: tuple[int, ...]) -> str:
        """What may surprise about an image that its file wants turned (EXIF), in words that follow "3 "; or nothing.

        Args:
            size: height and width of the label.
        """
        return ""

    def said_of_label(self, size: tuple[int, ...]) -> str:
        """What may surprise about the label, in words that follow "3 "; or nothing.

        Args:
            size: of the label, height and width.
        """
        return ""

    def image_length(self) -> int:
        """The bytes of the image's file, whose path `places` gives; 0 for an image that is no file, or missing."""
        return 0

    def palette(self) -> np.ndarray | None:
        """The colours that the label's file shows its values in, uint8 [N,3]; None for one without palette."""
        return None

    def reading(self, how: MaskReading) -> Source:
        """The same sample, with its label read in this way, where that makes a difference."""
        return self


@dataclass(frozen=True)
class FunctionSource(Source):
    """A sample that two functions read, such as `functools.partial(numpy.load, file)`.

    Functions that worker processes are to call must be picklable where processes are not forked.

    Args:
        name: see `Source`.
        image: gives RGB uint8 [H,W,3].
        label: gives whole numbers [H,W] or colours uint8 [H,W,3].
    """

    name: str
    image: Callable[[], np.ndarray]
    label: Callable[[], np.ndarray]

    def read_image(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """See `Source`."""
        return self.image()

    def read_label(self) -> np.ndarray:
        """See `Source`."""
        return self.label()


@dataclass(frozen=True)
class BrokenSource(Source):
    """Stands for samples that cannot even be listed, such as the end of a file that was cut short.

    Opening its split for training raises the error; `degrid data check` reports it and continues.
    """

    name: str
    error: UserError
    unreadable: ClassVar[str] = "files whose records are lost from some place on (get or write them again)"

    def missing(self) -> str:
        """Raises the error."""
        raise self.error

    def read_image(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """Raises the error."""
        raise self.error

    def read_label(self) -> np.ndarray:
        """Raises the error."""
        raise self.error


class LazySources(Sequence[Source]):
    """Sources listed when they are first needed: opening one split need not read the index of another.

    Args:
        listed: gives the sources.
    """

    def __init__(self, listed: Callable[[], Iterable[Source]]) -> None:
        self._listed = listed

    @cached_property
    def _sources(self) -> list[Source]:
        return list(self._listed())

    def __bool__(self) -> bool:
        """Assumed to be true: only listing them would show it."""
        return True

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Source]: ...
    def __getitem__(self, index: int | slice) -> Source | Sequence[Source]:
        return self._sources[index]
