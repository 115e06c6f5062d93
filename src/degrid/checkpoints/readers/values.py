"""What the readers share: files mapped into memory, repeated fields, and shapes checked before memory is allocated."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from math import prod
from pathlib import Path

import numpy as np

from degrid.protobuf import Span
from degrid.types import UserError

MAX_TENSORS = 100_000
"""A file with more tensors than this is not a network but an attempt to exhaust the memory."""

NUMBERS = re.compile(r"[<>=|](?:b1|[iu][1248]|f[248]|c8|c16)")
"""The types of values that count as numbers, in numpy's notation ("<f4")."""

_MAX_DIMS = 32  # the limit of numpy 1
_MAX_ELEMENTS = 1 << 48
_CHUNK = 1 << 20


@dataclass
class Cursor:
    """What lies one after another in a span."""

    span: Span
    at: int = 0

    def take(self, size: int, what: str = "an entry") -> Span:
        """The next `size` bytes.

        Raises:
            ConversionError: they reach beyond the end.
        """
        part = self.span.part(self.at, size, what)
        self.at += size
        return part

    def number(self, size: int) -> int:
        """The next `size` bytes as an unsigned little-endian number."""
        return self.take(size).number()


def map_file(path: Path) -> Span:
    """Map a whole file, which may be empty; the system reads it as needed.

    The mapping lives as long as the arrays made from it.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return Span(memoryview(data), str(path))


def joined(pieces: Iterable[Span]) -> memoryview:
    """The bytes of all pieces in order; a single piece is not copied."""
    rest = iter(pieces)
    first, second = next(rest, None), next(rest, None)
    if first is None:
        return memoryview(b"")
    if second is None:
        return first.data
    out = bytearray(first.data)
    for piece in chain([second], rest):
        out += piece.data
    return memoryview(out)


def numbers(values: Iterable[int | Span], dtype: np.dtype, where: Span) -> np.ndarray:
    """A repeated integer, as single fields, packed varints or a mixture: `dtype` [n], an integer type.

    Raises:
        ConversionError: cut short, or a number that `dtype` cannot hold.
    """
    out = bytearray()  # grows in place; a list of small arrays could take many times the size of the file
    for single, run in groupby(values, lambda value: isinstance(value, int)):
        if single:
            out += _narrow(np.fromiter(run, np.uint64).view(np.int64), dtype, where).data
            continue
        for span in run:
            assert isinstance(span, Span)
            at = 0
            while at < len(span):
                end = min(at + _CHUNK, len(span))
                limit = min(end + 10, len(span))
                while end < limit and span.data[end - 1] > 127:  # a chunk ends where a number ends
                    end += 1
                out += _narrow(span.part(at, end - at).varints(), dtype, span).data
                at = end
    return np.frombuffer(out, dtype)


def _narrow(values: np.ndarray, dtype: np.dtype, where: Span) -> np.ndarray:
    narrow = values.astype(dtype)
    if not np.array_equal(narrow.astype(np.int64), values):
        where.fail(f"a number that {dtype.name} cannot hold")
    return narrow


def raw_values(data: bytes | memoryview, code: str, where: Span, name: str) -> np.ndarray:
    """Bytes as values [n] of the type `code` ("<f4"); not copied, except bool.

    Raises:
        ConversionError: a part of a value at the end.
    """
    dtype = np.dtype(code)
    if len(data) % dtype.itemsize:
        where.fail(f"{name} holds {len(data)} bytes, no multiple of {dtype.itemsize}")
    if dtype.kind == "b":
        return np.frombuffer(data, np.uint8).astype(bool)  # numpy's bool must not hold another byte than 0 or 1
    return np.frombuffer(data, dtype)


def check_shape(shape: Sequence[int], where: Span, name: str) -> tuple[int, ...]:
    """The shape, if numpy can hold it.

    Raises:
        ConversionError: negative or absurd.
    """
    if len(shape) > _MAX_DIMS or min(shape, default=0) < 0 or prod(max(1, size) for size in shape) > _MAX_ELEMENTS:
        where.fail(f"{name} has an absurd shape")
    return tuple(shape)


def shaped(flat: np.ndarray, shape: Sequence[int], where: Span, name: str) -> np.ndarray:
    """`flat` [n] as `shape`, without copying.

    Raises:
        ConversionError: another number of values, or an absurd shape.
    """
    shape = check_shape(shape, where, name)
    if prod(shape) != flat.size:
        where.fail(f"{name} has {flat.size} values for the shape {list(shape)}")
    return flat.reshape(shape)


def native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, as PyTorch wants it; copied only where that differs."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def ordered(flat: np.ndarray, shape: Sequence[int], fortran: bool, where: Span, name: str) -> np.ndarray:
    """`flat` [n] as `shape`, its first axis changing fastest where `fortran` is set; not copied.

    Raises:
        ConversionError: another number of values, or an absurd shape.
    """
    return shaped(flat, shape[::-1], where, name).T if fortran else shaped(flat, shape, where, name)


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16, which numpy lacks, as float32: its bits (uint16) are the upper half."""
    wide = bits.astype("<u4")
    wide <<= 16
    return wide.view("<f4")
