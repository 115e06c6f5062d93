"""HDF5 as Keras writes it: groups and contiguous datasets of numbers.

Layout: The HDF Group, "HDF5 File Format Specification", version 3.0; sections are given below.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from degrid.checkpoints.readers.reader import Contents, Reader
from degrid.checkpoints.readers.values import MAX_TENSORS, Cursor, check_shape, map_file, native, raw_values, shaped
from degrid.protobuf import Span

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _LAYOUT, _FILTERS, _CONTINUATION, _SYMBOLS = 1, 2, 3, 6, 8, 11, 16, 17
PRESET = ("model.weights.h5", "task.weights.h5")
"""The files of a preset of keras-hub: its backbone and its head."""

_ADDRESS, _LENGTH = 8, 8  # bytes of each; the specification allows others, which no library writes
_NOWHERE = (1 << 64) - 1
_DEEPEST = 32  # groups within groups, and levels of a tree of names
_MOST_MESSAGES = 10 * MAX_TENSORS  # of all objects

Messages = list[tuple[int, Span]]
"""The kinds and contents of an object's messages."""


class Hdf5(Reader):
    """Tensors are named by their groups and their own name: "aspp0/aspp0/kernel:0".

    keras-hub writes a preset's head into a file beside that of its backbone; its names then follow "task/".
    """

    suffixes = (".h5", ".hdf5")

    def recognise(self, file: Span, path: Path) -> bool:
        """See `Reader`."""
        return bytes(file.data[:8]) == SIGNATURE

    def read(self, file: Span, path: Path) -> Contents:
        """See `Reader`."""
        contents, head = _File(file).contents(), path.with_name(PRESET[1])
        if path.name != PRESET[0] or not head.is_file():
            return contents
        beside = _File(map_file(head)).contents()
        tensors = {f"task/{name}": value for name, value in beside.tensors.items()}
        return Contents(contents.tensors | tensors, (*contents.skipped, *beside.skipped))


class _File:
    """Section II. Addresses count from the beginning of the file."""

    def __init__(self, file: Span) -> None:
        self.file = file
        self.seen: set[int] = set()  # groups and trees may form cycles
        self.messages = 0

    def contents(self) -> Contents:
        skipped: list[str] = []
        tensors: dict[str, np.ndarray] = {}
        for name, messages in self._datasets(self._root(), "", 0):
            array = self._array(messages, name)
            if array is None:
                skipped.append(name)
            else:
                tensors[name] = array
            if len(tensors) + len(skipped) > MAX_TENSORS:
                self.file.fail(f"more than {MAX_TENSORS} datasets")
        return Contents(tensors, tuple(skipped))

    def _root(self) -> int:
        """Section II.A: the address of the first group."""
        version = self.file.part(8, 1).number()
        if version > 3:
            self.file.fail(f"HDF5 of version {version}; degrid reads up to 3")
        sizes = bytes(self.file.part(13 if version < 2 else 9, 2).data)
        if sizes != bytes((_ADDRESS, _LENGTH)):
            self.file.fail("HDF5 with addresses of another size than 8 bytes")
        # Four addresses come first, then the root's entry: its name, and where it is; from version 2 on it is the 4th.
        return self.file.part({0: 64, 1: 68}.get(version, 36), _ADDRESS).number()

    def _datasets(self, address: int, name: str, depth: int) -> Iterator[tuple[str, Messages]]:
        """The object at an address and those in the groups below it, by name."""
        messages = self._messages(address)
        kinds = {kind for kind, _ in messages}
        if _LAYOUT in kinds:
            yield name, messages
            return
        self._enter(address, depth)
        for kind, span in messages:
            for inner, place in self._members(kind, span):
                yield from self._datasets(place, f"{name}/{inner}" if name else inner, depth + 1)

    def _enter(self, address: int, depth: int) -> None:
        if address in self.seen or depth > _DEEPEST:
            self.file.fail("groups that contain themselves", address)
        self.seen.add(address)

    def _messages(self, address: int) -> Messages:
        """Section IV.A: the messages about an object, in one block or several."""
        if bytes(self.file.part(address, 4).data) == b"OHDR":
            return self._messages_of_version_2(address)
        head = self.file.part(address, 16, "an object")
        if head.data[0] != 1:
            head.fail("no object of HDF5")
        blocks, found = [self.file.part(address + 16, head.part(8, 4).number(), "an object")], Messages()
        for block in blocks:  # more are appended
            cursor = Cursor(block)
            while cursor.at + 8 <= len(block):
                kind, size = cursor.number(2), cursor.number(2)
                cursor.take(4)
                self._add(found, blocks, kind, cursor.take(size))
        return found

    def _messages_of_version_2(self, address: int) -> Messages:
        cursor = Cursor(self.file.part(address, min(64, len(self.file) - address)), 5)
        flags = cursor.number(1)
        cursor.take((16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0))
        size = cursor.number(1 << (flags & 3))
        blocks, found = [self.file.part(address + cursor.at, size, "an object")], Messages()
        for index, block in enumerate(blocks):
            # Later blocks have a signature before and a checksum after their messages.
            cursor = Cursor(block if index == 0 else block.part(4, len(block) - 8))
            while cursor.at + 4 <= len(cursor.span):
                kind, size = cursor.number(1), cursor.number(2)
                cursor.take(3 if flags & 4 else 1)
                self._add(found, blocks, kind, cursor.take(size))
        return found

    def _add(self, found: Messages, blocks: list[Span], kind: int, span: Span) -> None:
        if kind == _CONTINUATION:
            cursor = Cursor(span)
            address = cursor.number(_ADDRESS)
            blocks.append(self.file.part(address, cursor.number(_LENGTH), "an object"))
        found.append((kind, span))
        self.messages += 1
        if self.messages > _MOST_MESSAGES:
            span.fail("objects without end")

    def _members(self, kind: int, span: Span) -> Iterator[tuple[str, int]]:
        """Names and addresses in a group, from one of its messages."""
        cursor = Cursor(span)
        if kind == _SYMBOLS:  # section IV.A.2.r: a tree of names, which lie in a heap
            tree, heap = cursor.number(_ADDRESS), cursor.number(_ADDRESS)
            if bytes(self.file.part(heap, 4).data) != b"HEAP":
                self.file.fail("no heap of names", heap)
            size = self.file.part(heap + 8, _LENGTH).number()
            names = self.file.part(self.file.part(heap + 24, _ADDRESS).number(), size, "a heap of names")
            yield from self._in_tree(tree, names, 0)
        elif kind == _LINK:  # section IV.A.2.g
            version, flags = cursor.number(1), cursor.number(1)
            linked = cursor.number(1) if flags & 8 else 0
            cursor.take((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
            name = cursor.take(cursor.number(1 << (flags & 3))).text("a name")
            if version == 1 and linked == 0:  # others are links to other names or files
                yield name, cursor.number(_ADDRESS)
        elif kind == _LINK_INFO:  # section IV.A.2.c
            flags = bytes(span.part(1, 1).data)[0]
            if span.part(2 + (8 if flags & 1 else 0), _ADDRESS).number() != _NOWHERE:
                span.fail("a group with too many names to be written beside each other; save it with h5py's default")

    def _in_tree(self, address: int, names: Span, depth: int) -> Iterator[tuple[str, int]]:
        """Sections III.A.1 and III.B: a tree of version 1, whose leaves list names."""
        self._enter(address, depth)
        mark = bytes(self.file.part(address, 4).data)
        if mark not in (b"TREE", b"SNOD"):
            self.file.fail("no tree of names", address)
        count = self.file.part(address + 6, 2).number()
        if mark == b"TREE":
            for index in range(count):
                child = self.file.part(address + 24 + _LENGTH + index * (_LENGTH + _ADDRESS), _ADDRESS)
                yield from self._in_tree(child.number(), names, depth + 1)
            return
        for index in range(count):
            cursor = Cursor(self.file.part(address + 8 + 40 * index, 40, "a name"))
            at, place, cached = cursor.number(_ADDRESS), cursor.number(_ADDRESS), cursor.number(4)
            text = bytes(names.data[at : at + 1024]).partition(b"\0")[0]
            if cached != 2:  # a link to another name
                yield Span(memoryview(text), names.file, names.offset + at).text("a name"), place

    def _array(self, messages: Messages, name: str) -> np.ndarray | None:
        """A dataset; None where it holds no numbers."""
        by_kind = dict(reversed(messages))
        where = by_kind[_LAYOUT]
        if _DATASPACE not in by_kind or _DATATYPE not in by_kind:
            where.fail(f"{name} has no shape or no type")
        shape, code = _shape(by_kind[_DATASPACE], name), _code(by_kind[_DATATYPE])
        if code is None or shape is None:
            return None
        cursor = Cursor(where)
        version, kind = cursor.number(1), cursor.number(1)
        if version not in (3, 4) or kind not in (0, 1) or _FILTERS in by_kind:
            where.fail(f"{name} is compressed or in pieces; save it in one piece, as h5py and Keras do by default")
        if kind == 0:
            data = cursor.take(cursor.number(2))
        else:
            address, size = cursor.number(_ADDRESS), cursor.number(_LENGTH)
            if address == _NOWHERE:  # values that were never written
                size = address = 0
            data = self.file.part(address, size, name)
        values = raw_values(data.data[: prod(shape) * np.dtype(code).itemsize], code, where, name)
        return native(shaped(values, shape, where, name))


def _shape(span: Span, name: str) -> tuple[int, ...] | None:
    """Section IV.A.2.b; None for a dataset without values."""
    cursor = Cursor(span)
    version, rank = cursor.number(1), cursor.number(1)
    kind = cursor.take(2).data[1]
    if version == 1:
        cursor.take(4)
    elif kind == 2:
        return None
    return check_shape([cursor.number(_LENGTH) for _ in range(rank)], span, name)


def _code(span: Span) -> str | None:
    """Section IV.A.2.d: a type in numpy's notation; None for one that holds no numbers as numpy has them."""
    kind, flags = span.part(0, 1).number() & 15, span.part(1, 1).number()
    size = span.part(4, 4).number()
    order = ">" if flags & 1 else "<"
    if kind == 0 and size in (1, 2, 4, 8):
        return f"{order}{'i' if flags & 8 else 'u'}{size}"
    if kind == 1 and (size, span.part(13, 1).number()) in ((2, 5), (4, 8), (8, 11)):  # bits of the exponent
        return f"{order}f{size}"
    return None
