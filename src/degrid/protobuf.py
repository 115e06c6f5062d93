"""Protocol buffers and checksums as TensorFlow and Caffe write them, read from memory without copying."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import google_crc32c
import numpy as np

from degrid.types import ConversionError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; 3 and 4 are obsolete groups."""


@dataclass(frozen=True, slots=True)
class Span:
    """Some bytes of a file and their position in it, so that every error can name the place.

    data: the bytes; file: shown in messages; offset: of the first byte in the file.
    """

    data: memoryview
    file: str
    offset: int = 0

    def __len__(self) -> int:
        return len(self.data)

    def fail(self, problem: str, at: int = 0) -> NoReturn:
        """Raise a ConversionError that names the file and the place."""
        raise ConversionError(f"{self.file}: {problem} at byte {self.offset + at}")

    def part(self, start: int, length: int, what: str = "a value") -> Span:
        """`length` bytes from `start`.

        Raises:
            ConversionError: they reach beyond the end.
        """
        if start < 0 or length < 0 or start + length > len(self.data):
            self.fail(f"{what} of {length} bytes reaches beyond the end", max(0, start))
        return Span(self.data[start : start + length], self.file, self.offset + start)

    def varint(self, at: int) -> tuple[int, int]:
        """The unsigned number at `at`, and the place after it.

        Raises:
            ConversionError: cut short, or longer than 64 bits.
        """
        value = 0
        for index in range(10):
            if at + index >= len(self.data):
                self.fail("a number is cut short", at)
            byte = self.data[at + index]
            value |= (byte & 127) << (7 * index)
            if byte < 128:
                return value & 0xFFFFFFFFFFFFFFFF, at + index + 1
        self.fail("a number is longer than 64 bits", at)

    def fields(self) -> Iterator[tuple[int, int | Span]]:
        """The fields of a message in order: (number, value); the value is an int for varints, else its bytes.

        Raises:
            ConversionError: not a message.
        """
        at = 0
        while at < len(self.data):
            key, after = self.varint(at)
            number, kind = key >> 3, key & 7
            if number == 0:
                self.fail("no protocol buffer message", at)
            if kind == VARINT:
                value, at = self.varint(after)
                yield number, value
                continue
            if kind == BYTES:
                length, after = self.varint(after)
            elif kind in (FIXED64, FIXED32):
                length = 8 if kind == FIXED64 else 4
            else:
                self.fail(f"a field of wire type {kind}, which is not in use", at)
            found = self.part(after, length, f"field {number}")
            at = after + length
            yield number, found

    def values(self, number: int) -> Iterator[int | Span]:
        """The values of the fields of this number; see `fields`."""
        return (value for found, value in self.fields() if found == number)

    def messages(self, number: int) -> Iterator[Span]:
        """The same, which must be bytes.

        Raises:
            ConversionError: see `fields`; or one is a number.
        """
        return (only_bytes(value, self, number) for value in self.values(number))

    def varints(self) -> np.ndarray:
        """All bytes as packed varints: int64 [n], two's complement."""
        raw = np.frombuffer(self.data, np.uint8)
        if not len(raw):
            return np.empty(0, np.int64)
        ends = np.flatnonzero(raw < 128)
        if not len(ends) or ends[-1] != len(raw) - 1:
            self.fail("a packed list of numbers is cut short")
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts + 1
        if lengths.max() > 10:
            self.fail("a packed number is longer than 64 bits")
        values = np.zeros(len(ends), np.uint64)
        for index in range(int(lengths.max())):
            here = lengths > index
            values[here] |= (raw[starts[here] + index].astype(np.uint64) & np.uint64(127)) << np.uint64(7 * index)
        return values.view(np.int64)

    def text(self, what: str) -> str:
        """The bytes as UTF-8."""
        try:
            return bytes(self.data).decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not text")

    def number(self) -> int:
        """The bytes as an unsigned little-endian number."""
        return int.from_bytes(self.data, "little")


def only_bytes(value: int | Span, parent: Span, number: int) -> Span:
    """A field's value, which must be bytes."""
    if isinstance(value, int):
        parent.fail(f"field {number} holds a number where a message is expected")
    return value


def only_int(value: int | Span, parent: Span, number: int) -> int:
    """A field's value, which must be a number."""
    if not isinstance(value, int):
        parent.fail(f"field {number} holds bytes where a number is expected")
    return value


def encode_varint(value: int) -> bytes:
    """A non-negative number as a varint."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_field(number: int, value: int | bytes) -> bytes:
    """One field of a message: a varint, or bytes with their length."""
    if isinstance(value, int):
        return encode_varint(number << 3 | VARINT) + encode_varint(value)
    return encode_varint(number << 3 | BYTES) + encode_varint(len(value)) + value


def masked_checksum(*parts: bytes | memoryview) -> int:
    """TensorFlow's masked CRC-32C of the parts, one after another."""
    checksum = 0
    for part in parts:
        for start in range(
            0, len(part), _CHUNK
        ):  # the library needs bytes, and copying piece by piece takes little memory
            checksum = google_crc32c.extend(checksum, bytes(part[start : start + _CHUNK]))
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


_CHUNK = 1 << 20
