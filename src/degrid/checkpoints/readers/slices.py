"""Partitioned variables of TensorFlow: the keys of their parts in V2 checkpoints, and how the parts are joined."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from degrid.checkpoints.readers.values import shaped
from degrid.protobuf import Span

Extents = tuple[tuple[int, int | None], ...]
"""The part of a variable that a slice covers: start and length for each axis; None: the whole axis."""


def slice_key(key: Span) -> tuple[str, Extents]:
    """The name and the part that a key stands for: number 0, name, number of axes, then start and length (-1: whole
    axis) for each, in the ordered code of `tensorflow/core/lib/strings/ordered_code.cc`.

    Raises:
        ConversionError: no such key.
    """
    _, at = _number(key, 0)
    end = bytes(key.data).find(b"\x00\x01", at)
    if end < 0:
        key.fail("the name of a slice is cut short", at)
    name = bytes(key.part(at, end - at).data).replace(b"\x00\xff", b"\x00")  # 255, escaped too, is in no UTF-8 text
    rank, at = _number(key, end + 2)
    extents: list[tuple[int, int | None]] = []
    while len(extents) < rank:  # ends with the key at the latest, since each axis takes two bytes
        start, at = _signed(key, at)
        length, at = _signed(key, at)
        extents.append((start, None if length == -1 else length))
    return Span(memoryview(name), key.file).text("the name of a slice"), tuple(extents)


def _number(key: Span, at: int) -> tuple[int, int]:
    """A byte with the length, then that many bytes, the most significant first."""
    width = key.part(at, 1).number()
    return int.from_bytes(key.part(at + 1, width).data, "big"), at + 1 + width


def _signed(key: Span, at: int) -> tuple[int, int]:
    """A one for each byte, a zero, then the value; a negative number has all its bits complemented."""
    flip = 0 if key.part(at, 1).number() & 128 else 255

    def ones(place: int) -> int:
        return 8 - (key.part(place, 1).number() ^ flip ^ 255).bit_length()

    width = ones(at)
    if width == 8:
        width += ones(at + 1)
    value = int.from_bytes(bytes(byte ^ flip for byte in key.part(at, width).data), "big")
    value &= (1 << 7 * width - 1) - 1
    return (~value if flip else value), at + width


def assemble(
    pieces: Sequence[tuple[Extents, np.ndarray]], shape: tuple[int, ...], where: Span, name: str
) -> np.ndarray:
    """A variable of `shape` from the values of its slices, which must cover it exactly; a single one is not copied.

    Args:
        pieces: the part that each slice covers, and its values in order [n].
        where, name: for error messages.
    Raises:
        ConversionError: slices missing, overlapping, or beyond the shape.
    """
    if not pieces:
        where.fail(f"{name} is listed, but its values are missing")
    boxes = [_box(extents, shape, where, name) for extents, _ in pieces]
    parts = [
        shaped(flat, [length for _, length in box], where, f"a part of {name}")
        for box, (_, flat) in zip(boxes, pieces, strict=True)
    ]
    count = sum(part.size for part in parts)
    if count != prod(shape):
        where.fail(f"the parts of {name} hold {count} values for the shape {list(shape)}")
    if len(parts) == 1:
        return parts[0].reshape(shape)
    out = np.empty(shape, parts[0].dtype)
    covered = np.zeros(shape, bool)
    for box, part in zip(boxes, parts, strict=True):
        region = tuple(slice(start, start + length) for start, length in box)
        out[region] = part
        covered[region] = True
    if not covered.all():
        where.fail(f"the parts of {name} overlap")
    return out


def _box(extents: Extents, shape: tuple[int, ...], where: Span, name: str) -> list[tuple[int, int]]:
    """Start and length for each axis."""
    if len(extents) != len(shape):
        where.fail(f"a part of {name} has {len(extents)} axes, the variable {len(shape)}")
    box = []
    for (start, length), size in zip(extents, shape, strict=True):
        length = size - start if length is None else length
        if start < 0 or length < 0 or start + length > size:
            where.fail(f"a part of {name} reaches beyond the shape {list(shape)}")
        box.append((start, length))
    return box
