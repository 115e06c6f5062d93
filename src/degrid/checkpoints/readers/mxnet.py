"""Arrays of MXNet (.params), read without MXNet.

Format: `src/ndarray/ndarray.cc` and `include/mxnet/tuple.h` of Apache MXNet 1.9.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from degrid.checkpoints.readers.reader import Contents, Reader
from degrid.checkpoints.readers.values import MAX_TENSORS, Cursor, check_shape, native, raw_values, shaped, widened
from degrid.protobuf import Span

_MARK = b"\x12\x01\0\0\0\0\0\0"
_WITHOUT_STORAGE, _STORED, _OF_NUMPY = 0xF993FAC8, 0xF993FAC9, 0xF993FACA  # kinds of entries; older ones have none
_CODES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "|u1", 4: "<i4", 5: "|i1", 6: "<i8", 7: "|b1", 12: "bf16"}


class MXNet(Reader):
    """What save_parameters of Gluon and nd.save write; the prefixes "arg:" and "aux:" of Module are left out."""

    suffixes = (".params",)

    def recognise(self, file: Span, path: Path) -> bool:
        """See `Reader`."""
        return bytes(file.data[:8]) == _MARK

    def read(self, file: Span, path: Path) -> Contents:
        """See `Reader`."""
        cursor = Cursor(file, 16)
        count = _count(cursor)
        arrays = [_array(cursor, f"array {index}") for index in range(count)]
        if _count(cursor) != count:
            file.fail("another number of names than of arrays, which were saved as a list", cursor.at)
        names = [cursor.take(cursor.number(8), "a name").text("a name") for _ in range(count)]
        found = {
            name.removeprefix("arg:").removeprefix("aux:"): array for name, array in zip(names, arrays, strict=True)
        }
        return Contents(found)


def _count(cursor: Cursor) -> int:
    count = cursor.number(8)
    if count > MAX_TENSORS:
        cursor.span.fail(f"more than {MAX_TENSORS} arrays", cursor.at)
    return count


def _array(cursor: Cursor, name: str) -> np.ndarray:
    """An NDArray: its kind, storage, shape, device, type and values; up to MXNet 0.11 the shape alone comes first."""
    start, kind = cursor.at, cursor.number(4)
    if kind in (_STORED, _OF_NUMPY) and cursor.number(4):
        cursor.span.fail(f"{name} is sparse; save it dense", start)
    old = kind not in (_WITHOUT_STORAGE, _STORED, _OF_NUMPY)
    rank = kind if old else cursor.number(4)
    if rank > 32:
        cursor.span.fail(f"{name} has an absurd shape", start)
    shape = check_shape([cursor.number(4 if old else 8) for _ in range(rank)], cursor.span, name)
    if not rank and kind != _OF_NUMPY:  # an array without values
        return np.empty(0, np.float32)
    cursor.take(8)  # the device
    number = cursor.number(4)
    if number not in _CODES:
        cursor.span.fail(f"{name} is of type {number}, which degrid does not know", cursor.at)
    code = _CODES[number]
    dtype = np.dtype("<u2" if code == "bf16" else code)
    data = cursor.take(prod(shape) * dtype.itemsize, name)
    values = raw_values(data.data, dtype.str, data, name)
    return native(shaped(widened(values) if code == "bf16" else values, shape, data, name))
