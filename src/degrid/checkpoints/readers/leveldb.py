"""The table container of LevelDB, in which TensorFlow keeps V1 checkpoints and the index of V2 checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from degrid.checkpoints.readers.values import MAX_TENSORS
from degrid.protobuf import Span, masked_checksum

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
"""The last bytes of every table."""

_FOOTER = 48
_TRAILER = 5  # after each block: its type, and a checksum
_KEY_GAIN, _GRACE = 8, 1 << 20  # sharing prefixes lengthens keys two or three times, not without limit
_MAX_GAIN = 2  # weights hardly compress; TensorFlow packs only blocks that do


def is_table(file: Span) -> bool:
    """Whether the file ends as a table does."""
    return len(file) >= _FOOTER and file.data[-8:] == MAGIC


def records(file: Span) -> Iterator[tuple[bytes, Span]]:
    """All keys with their values, in the order of the keys; values of uncompressed blocks are not copied.

    Raises:
        ConversionError: no table, damaged in any way, or packed blocks of more than twice the file's size in all.
    """
    if not is_table(file):
        file.fail("no table of TensorFlow ends here: cut short, or another kind of file", len(file))
    footer = file.part(len(file) - _FOOTER, _FOOTER)
    at = 0
    for _ in range(2):  # the first place is that of the metadata, which TensorFlow does not use
        offset, at = footer.varint(at)
        size, at = footer.varint(at)
    count, room = 0, _GRACE + _KEY_GAIN * len(file)
    end, previous = 0, None
    unpacked = _Unpacked(_GRACE + _MAX_GAIN * len(file))
    for index_key, handle in _entries(_block(file, offset, size, unpacked)):
        start, at = handle.varint(0)
        size, _ = handle.varint(at)
        if start < end:
            handle.fail("blocks overlap or are out of order")
        end = start + size + _TRAILER
        room -= len(index_key)
        for key, value in _entries(_block(file, start, size, unpacked)):
            if previous is not None and key <= previous:
                value.fail("keys are out of order")
            count, room, previous = count + 1, room - len(key), key
            if count > MAX_TENSORS or room < 0:
                value.fail("more keys than a checkpoint can have")
            yield key, value


@dataclass
class _Unpacked:
    """Bytes that the remaining blocks of a file may unpack to."""

    room: int


def _block(file: Span, offset: int, size: int, unpacked: _Unpacked) -> Span:
    """The content of a block, checked and unpacked."""
    if offset + size + _TRAILER > len(file) - _FOOTER:
        file.fail(f"a block of {size} bytes is said to be at {offset}, beyond the end", len(file))
    content, trailer = file.part(offset, size), file.part(offset + size, _TRAILER)
    if masked_checksum(content.data, trailer.data[:1]) != trailer.part(1, 4).number():
        content.fail(f"damaged: the checksum of a block of {size} bytes is wrong")
    kind = trailer.data[0]
    if kind == 0:
        return content
    if kind != 1:
        trailer.fail(f"a block of the unknown compression {kind}")
    made = unpack_snappy(content, unpacked.room)
    unpacked.room -= len(made)
    return Span(memoryview(made), f"{file.file}, unpacked block of byte {content.offset}")


def _entries(block: Span) -> Iterator[tuple[bytes, Span]]:
    """Keys and values of one block; each key is stored as its difference from the one before."""
    if len(block) < 4:
        block.fail("a block is cut short")
    end = (
        len(block) - 4 - 4 * block.part(len(block) - 4, 4).number()
    )  # restart points are not needed for reading in order
    if end < 0:
        block.fail("a block has more restart points than bytes")
    entries = block.part(0, end)
    at, key = 0, b""
    while at < end:
        shared, after = entries.varint(at)
        fresh, after = entries.varint(after)
        length, after = entries.varint(after)
        if shared > len(key):
            entries.fail("a key shares more than the one before has", at)
        key = key[:shared] + bytes(entries.part(after, fresh, "a key").data)
        yield key, entries.part(after + fresh, length)
        at = after + fresh + length


def unpack_snappy(packed: Span, most: int) -> bytearray:
    """Undo the raw snappy format.

    Raises:
        ConversionError: damaged, or said to unpack to more than `most` bytes or than the format allows.
    """
    size, at = packed.varint(0)
    if size > most:
        packed.fail(f"said to unpack to {size} bytes, with which the file would be more than twice its size")
    if 3 * size > 64 * len(packed):  # the densest element makes 64 bytes from three
        packed.fail(f"packed data of {len(packed)} bytes is said to unpack to {size}")
    out = bytearray()
    while at < len(packed):
        piece, after = _snappy_element(packed, at, out)
        if len(out) + len(piece) > size:
            packed.fail(f"packed data unpacks to more than the {size} bytes it claims", at)
        out += piece
        at = after
    if len(out) != size:
        packed.fail(f"packed data unpacks to {len(out)} bytes and not to the {size} it claims", at)
    return out


def _snappy_element(packed: Span, at: int, out: bytearray) -> tuple[bytes | memoryview, int]:
    """The bytes that the element at `at` adds to `out`, and the position after it."""
    tag = packed.data[at]
    kind, at = tag & 3, at + 1
    length = (tag >> 2) + 1
    if kind == 0:  # a literal
        if length > 60:
            width = length - 60
            length, at = packed.part(at, width).number() + 1, at + width
        return packed.part(at, length, "a literal").data, at + length
    width = 4 if kind == 3 else kind
    back = packed.part(at, width).number()
    if kind == 1:
        back, length = back | tag >> 5 << 8, (tag >> 2 & 7) + 4
    if not 0 < back <= len(out):
        packed.fail("packed data refers to before its beginning", at)
    start = len(out) - back
    seen = bytes(out[start : start + length])
    return (seen * (length // len(seen) + 1))[:length], at + width  # a copy may overlap its own output
