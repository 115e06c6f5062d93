"""A sample in a shard, read by its position."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from degrid.data.formats.masks import AS_STORED, MaskReading
from degrid.data.formats.packed import as_file, label_values, open_picture, pixels_like, refuse_size
from degrid.data.formats.pairs import Pair
from degrid.data.formats.source import RawSample, Source
from degrid.data.shards.index import Member, Part
from degrid.data.shards.places import read_part
from degrid.image import decode_jpeg
from degrid.protobuf import Span
from degrid.types import RGB, Bands, ConversionError, UserError

MEND = "get it or write the shards again, or leave such shards out: --skip-bad-shards (data.skip_bad_shards=true)"
"""What to do about a damaged shard."""
_PNG_BITS = 24
"""The byte of a PNG file with the bits of a value."""


@dataclass(frozen=True, slots=True)
class ShardSource(Source):
    """A sample in a shard; nothing else of the shard is read.

    Attributes:
        shard: its path or address.
        member: which sample.
        label_suffix: the ending of the label's file.
    """

    shard: str
    member: Member
    label_suffix: str = ".png"
    how: MaskReading = AS_STORED
    unreadable: ClassVar[str] = "samples of shards that cannot be read (get or write the shards again)"

    @property
    def name(self) -> str:  # type: ignore[override]
        """See `Source`."""
        return self.member.name

    def read(self, bands: Bands = RGB) -> RawSample:
        """See `Source`; image and label are read at once.

        Raises:
            ConversionError: the shard is cut short or has changed, or holds damaged pictures.
            UserError: it has gone, or a server does not answer; see `Source` for the others.
        """
        image, label = self._both()
        if bands != RGB or not self._is_picture(image):
            with self._pair(image, label) as pair:
                return pair.read(bands)
        pixels = decode_jpeg(bytes(image.data)) if self.member.suffix != ".png" else None
        if pixels is None:
            picture = open_picture(image, "image")
            values = label_values(label, self.how, picture.size)
            return RawSample(self.name, pixels_like(image, values.shape[:2], picture), values)
        values = label_values(label, self.how)
        if values.shape[:2] != pixels.shape[:2]:
            refuse_size(label, values.shape[1::-1], pixels.shape[1::-1])
        return RawSample(self.name, pixels, values)

    def read_image(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """See `Source`."""
        with self._pair(self._part(self.member.image)) as pair:
            return pair.read_image(size)

    def read_values(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """See `Source`."""
        with self._pair(self._part(self.member.image)) as pair:
            return pair.read_values(size)

    def is_plain(self) -> bool:
        """See `Source`."""
        if self.member.suffix == ".jpg":
            return True
        image = self._part(self.member.image)
        if self.member.suffix == ".png":
            return self._is_picture(image)
        with self._pair(image) as pair:
            return pair.is_plain()

    def no_data(self) -> float | None:
        """See `Source`."""
        if self.member.suffix not in (".tif", ".tiff"):
            return None
        with self._pair(self._part(self.member.image)) as pair:
            return pair.no_data()

    def read_label(self) -> np.ndarray:
        """See `Source`; the image is not read."""
        label = self._part(self.member.label)
        if self.label_suffix == ".png":
            return label_values(label, self.how)
        with self._pair(label=label) as pair:
            return pair.read_label()

    def palette(self) -> np.ndarray | None:
        """See `Source`."""
        if self.how.by_color:
            return None
        with self._pair(label=self._part(self.member.label)) as pair:
            return pair.palette()

    def reading(self, how: MaskReading) -> ShardSource:
        """See `Source`."""
        return dataclasses.replace(self, how=how)

    def places(self) -> tuple[str, str]:
        """See `Source`."""
        member = self.member
        return f"{self.shard}, {member.name}{member.suffix}", f"{self.shard}, {member.name} (label)"

    def image_file(self) -> bytes:
        """See `Source`."""
        return bytes(self._part(self.member.image).data)

    def store(self) -> str:
        """See `Source`."""
        return self.shard

    def _is_picture(self, image: Span) -> bool:
        """Whether an image is JPEG, or PNG of 8 bits, which need not lie in a file to be read; and its label PNG."""
        eight = self.member.suffix == ".png" and bytes(image.data[_PNG_BITS : _PNG_BITS + 1]) <= b"\x08"
        return (eight or self.member.suffix in (".jpg", ".jpeg")) and self.label_suffix == ".png"

    def _both(self) -> tuple[Span, Span]:
        """Image and label, which lie side by side, in one read."""
        image, label = self.member.image, self.member.label
        first = min(image.at, label.at)
        last = max(image.at + image.length, label.at + label.length)
        data = memoryview(read_part(self.shard, first, last - first))
        return self._checked(image, data[image.at - first :]), self._checked(label, data[label.at - first :])

    def _part(self, part: Part) -> Span:
        return self._checked(part, memoryview(read_part(self.shard, part.at, part.length)))

    def _checked(self, part: Part, data: memoryview) -> Span:
        """A part of the shard, which begins `data`."""
        try:
            found = Span(data, self.shard, part.at).part(0, part.length, f"the sample {self.name}")
            if part.checksum is not None and zlib.crc32(found.data) != part.checksum:
                found.fail(f"the sample {self.name} has changed since it was written (its checksum does not match),")
        except ConversionError as error:
            raise ConversionError(f"{error}; {MEND}") from error
        return found

    @contextlib.contextmanager
    def _pair(self, image: Span | None = None, label: Span | None = None) -> Iterator[Pair]:
        """Image and label as files; messages name the shard."""
        with contextlib.ExitStack() as stack:
            files = [
                None if part is None else stack.enter_context(as_file(bytes(part.data), suffix))
                for part, suffix in ((image, self.member.suffix), (label, self.label_suffix))
            ]
            there = next(file for file in files if file)
            try:
                yield Pair(self.name, files[0] or there, files[1], how=self.how)
            except UserError as error:
                text = str(error)
                for file, place in zip(files, self.places(), strict=True):
                    text = text.replace(str(file), place) if file else text
                raise ConversionError(text) from error
