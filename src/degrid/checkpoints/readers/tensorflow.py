"""Checkpoints of TensorFlow, V1 and V2, read without TensorFlow.

Formats: `tensorflow/core/util/tensor_slice_writer.cc` (V1), `tensor_bundle.cc` and `tensor_bundle.proto` (V2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path

import numpy as np

from degrid.checkpoints.readers.find import is_shard, shards_of
from degrid.checkpoints.readers.leveldb import is_table, records
from degrid.checkpoints.readers.reader import Contents, Reader
from degrid.checkpoints.readers.slices import Extents, assemble, slice_key
from degrid.checkpoints.readers.values import (
    MAX_TENSORS,
    check_shape,
    joined,
    map_file,
    numbers,
    raw_values,
    shaped,
    widened,
)
from degrid.protobuf import Span, masked_checksum, only_bytes, only_int
from degrid.types import ConversionError

_BFLOAT16 = 14
# Leaves of variables' names, where a graph has lost the nodes that read them.
_LEAVES = ("weights", "depthwise_weights", "biases", "gamma", "beta", "moving_mean", "moving_variance")
_NO_NUMBERS = (7, 21)  # string; variant, which holds any object
# DataType of types.proto -> what numpy calls it, and the field of TensorProto that V1 keeps the values in.
_TYPES = {
    1: ("<f4", 5),
    2: ("<f8", 6),
    3: ("<i4", 7),
    4: ("|u1", 7),
    5: ("<i2", 7),
    6: ("|i1", 7),
    8: ("<c8", 9),
    9: ("<i8", 10),
    10: ("|b1", 11),
    _BFLOAT16: ("<u2", 13),
    17: ("<u2", 7),
    18: ("<c16", 12),
    19: ("<f2", 13),
    22: ("<u4", 16),
    23: ("<u8", 17),
}
# Fields of TensorProto: bytes as they are in memory, bit patterns of two bytes, and values that are not varints.
_RAW, _HALF, _FIXED_WIDTH = 4, 13, (5, 6, 9, 12)


@dataclass(frozen=True, slots=True)
class _Variable:
    """What a checkpoint says about a variable or, in V2, about a slice of one."""

    name: str
    shape: tuple[int, ...]
    kind: int
    where: Span


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where V2 keeps the bytes."""

    variable: _Variable
    shard: int
    offset: int
    size: int
    checksum: int
    sliced: bool


class TensorFlowV1(Reader):
    """One table with the values in it, or several, each of them a shard."""

    def recognise(self, file: Span, path: Path) -> bool:
        """See `Reader`."""
        return is_table(file) and table_version(file) == 1

    def read(self, file: Span, path: Path) -> Contents:
        """See `Reader`."""
        return read_v1(shards_of(path) if is_shard(path) else [path])


class TensorFlowV2(Reader):
    """A table as the index, with the values in files beside it."""

    suffixes = (".index",)

    def recognise(self, file: Span, path: Path) -> bool:
        """See `Reader`. A file called .index is taken for one, so that its damage is named."""
        return path.suffix in self.suffixes or (is_table(file) and table_version(file) == 2)

    def read(self, file: Span, path: Path) -> Contents:
        """See `Reader`."""
        if path.suffix not in self.suffixes:
            raise ConversionError(
                f"{path}: the index of a V2 checkpoint; its name must be that of the data files + .index"
            )
        return read_v2(path.with_suffix(""))


class GraphDef(Reader):
    """A graph whose variables were frozen into constants: .pb."""

    suffixes = (".pb",)

    def recognise(self, file: Span, path: Path) -> bool:
        """See `Reader`. The first field of the first node is its name, the second what it computes."""
        try:
            number, value = next(file.fields())
            node = only_bytes(value, file, 1)
            names = [only_bytes(found, file, key).text("a name") for key, found in islice(node.fields(), 2)]
        except (ConversionError, StopIteration):
            return False
        return number == 1 and len(names) == 2 and re.fullmatch("[A-Z][A-Za-z0-9]*", names[1]) is not None

    def read(self, file: Span, path: Path) -> Contents:
        """See `Reader`. Constants that were no variables are left out.

        The setting "Relu6" names the nodes of that kind.
        """
        constants: dict[str, Span] = {}
        read: set[str] = set()
        bounded: list[str] = []
        for node in file.messages(1):
            name, kind = (next((each.text("a name") for each in node.messages(key)), "") for key in (1, 2))
            if kind == "Const":
                constants[name] = node
            elif kind == "Identity" and name.endswith("/read"):
                read.add(name.removesuffix("/read"))
            elif kind == "Relu6":
                bounded.append(name)
            if len(constants) > MAX_TENSORS:
                node.fail(f"more than {MAX_TENSORS} constants")
        variables = [name for name in constants if name in read or name.rpartition("/")[2] in _LEAVES]
        tensors = {name: _constant(constants[name], name, len(file)) for name in variables}
        return Contents(tensors, settings={"Relu6": bounded})


def _constant(node: Span, name: str, size: int) -> np.ndarray:
    """The value of a node of the kind Const in a file of `size` bytes; a single value may stand for a whole tensor."""
    for entry in node.messages(5):
        found = {number: only_bytes(value, entry, number) for number, value in entry.fields() if number in (1, 2)}
        if 1 not in found or found[1].text("a name") != "value" or 2 not in found:
            continue
        tensor = next(found[2].messages(8), None)
        if tensor is not None:
            variable = _variable(tensor, name_field=0, kind_field=1, name=name)
            flat = _v1_values(tensor, variable)
            if flat.size == 1 and prod(variable.shape) <= size:
                flat = np.broadcast_to(flat, prod(variable.shape))
            return shaped(flat, variable.shape, tensor, name)
    node.fail(f"{name} is a constant without a value")


def table_version(file: Span) -> int:
    """1 for a V1 checkpoint, 2 for the index of a V2 checkpoint.

    Raises:
        ConversionError: damaged, or another table.
    """
    for key, value in records(file):
        first = next(value.fields(), None)
        if key or first is None:
            break
        return 2 if isinstance(first[1], int) else 1
    file.fail("a table, but not of a checkpoint of TensorFlow")


def read_v1(files: Sequence[Path]) -> Contents:
    """A V1 checkpoint from its file, or all its shards.

    Partitioned variables are joined under their name. float32 and other types of fixed width that are stored in one
    piece are views of the mapped file; bfloat16 becomes float32.

    Raises:
        UserError: a file is missing.
        ConversionError: damaged, or a type of values that numpy does not know.
    """
    variables: dict[str, _Variable] = {}
    pieces: dict[str, list[tuple[Extents, np.ndarray]]] = {}
    for path in files:
        here: set[str] = set()
        for key, value in records(map_file(path)):
            if key == b"":
                for variable in _v1_variables(value):
                    known = variables.setdefault(variable.name, variable)
                    if variable.name in here or (known.shape, known.kind) != (variable.shape, variable.kind):
                        variable.where.fail(f"{variable.name} is listed twice")
                    here.add(variable.name)
                    if len(variables) > MAX_TENSORS:
                        value.fail(f"more than {MAX_TENSORS} variables")
                continue
            for message in value.messages(2):
                _v1_slice(message, variables, pieces)
    skipped = tuple(name for name, variable in variables.items() if variable.kind in _NO_NUMBERS)
    tensors = {
        name: assemble(pieces.get(name, []), variable.shape, variable.where, name)
        for name, variable in variables.items()
        if variable.kind not in _NO_NUMBERS
    }
    return Contents(tensors, skipped)


def read_v2(prefix: Path) -> Contents:
    """A V2 checkpoint from `prefix.index` and the files `prefix.data-SSSSS-of-NNNNN` that it refers to.

    Partitioned variables are joined under their name; all others are views of the mapped files, except
    bfloat16, which becomes float32, and bool.

    Raises:
        UserError: a file is missing.
        ConversionError: damaged, big-endian, or a type of values that numpy does not know.
    """
    index = map_file(prefix.with_name(prefix.name + ".index"))
    num_shards = 0
    whole: dict[str, _Stored] = {}
    parts: dict[str, list[tuple[Extents, _Stored]]] = {}
    for key, value in records(index):
        if key == b"":
            num_shards = _v2_header(value)
        elif key[0] == 0:
            name, extents = slice_key(Span(memoryview(key), f"{index.file}, a key"))
            parts.setdefault(name, []).append((extents, _v2_entry(name, value)))
        else:
            name = Span(memoryview(key), index.file, value.offset).text("a name")
            whole[name] = _v2_entry(name, value)
    if not num_shards:
        index.fail("no index of a V2 checkpoint", len(index))
    shards = _Shards(prefix, num_shards)
    shards.check([*whole.values(), *(entry for entries in parts.values() for _, entry in entries)])
    tensors, skipped = {}, []
    for name, entry in whole.items():
        if entry.variable.kind in _NO_NUMBERS:
            skipped.append(name)
        elif entry.sliced:
            slices = parts.get(name, [])
            if any(part.variable.kind != entry.variable.kind for _, part in slices):
                entry.variable.where.fail(f"the parts of {name} are of another type")
            pieces = [(extents, shards.values(part)) for extents, part in slices]
            tensors[name] = assemble(pieces, entry.variable.shape, entry.variable.where, name)
        else:
            tensors[name] = shaped(shards.values(entry), entry.variable.shape, entry.variable.where, name)
    return Contents(tensors, tuple(skipped))


class _Shards:
    """The data files of a V2 checkpoint, opened when first needed, as the index may claim any number of them."""

    def __init__(self, prefix: Path, num_shards: int) -> None:
        self.prefix, self.num_shards = prefix, num_shards
        self.open: dict[int, Span] = {}

    def file(self, shard: int) -> Span:
        if shard not in self.open:
            name = f"{self.prefix.name}.data-{shard:05d}-of-{self.num_shards:05d}"
            self.open[shard] = map_file(self.prefix.with_name(name))
        return self.open[shard]

    def check(self, entries: list[_Stored]) -> None:
        """Every entry lies in a shard, and no two overlap: otherwise a small file could describe endless variables."""
        shard = end = 0
        for entry in sorted(entries, key=lambda entry: (entry.shard, entry.offset, entry.size)):
            where, name = entry.variable.where, entry.variable.name
            if entry.shard != shard:
                shard, end = entry.shard, 0
            if shard >= self.num_shards:
                where.fail(f"{name} is said to lie in shard {shard} of {self.num_shards}")
            if not entry.size:
                continue
            if entry.offset < end:
                where.fail(f"{name} overlaps another variable")
            end = entry.offset + entry.size
            if end > len(self.file(shard)):
                where.fail(f"{name} is said to reach to {end}, beyond the end of {self.file(shard).file}")

    def values(self, entry: _Stored) -> np.ndarray:
        """The values of an entry, without shape."""
        data = self.file(entry.shard).part(entry.offset, entry.size) if entry.size else Span(memoryview(b""), "")
        if masked_checksum(data.data) != entry.checksum:
            where = data if entry.size else entry.variable.where
            where.fail(f"damaged: the checksum of {entry.variable.name} is wrong")
        return _from_raw(data.data, entry.variable)


def _v1_variables(value: Span) -> Iterator[_Variable]:
    """The variables listed in SavedTensorSlices.meta."""
    for meta in value.messages(1):
        for message in meta.messages(1):
            yield _variable(message, name_field=1, kind_field=3)


def _variable(message: Span, name_field: int, kind_field: int, name: str = "") -> _Variable:
    shape: tuple[int, ...] = ()
    kind = 0
    for number, value in message.fields():
        if number == name_field:
            name = only_bytes(value, message, number).text("a name")
        elif number == 2:
            shape = _shape(only_bytes(value, message, number), name)
        elif number == kind_field:
            kind = only_int(value, message, number)
    if kind not in _TYPES and kind not in _NO_NUMBERS:
        message.fail(f"{name} holds values of type {kind}, which is not supported")
    return _Variable(name, shape, kind, message)


def _shape(message: Span, name: str) -> tuple[int, ...]:
    """TensorShapeProto."""
    sizes = [only_int(next(dim.values(1), 0), dim, 1) for dim in islice(message.messages(2), 256)]
    return check_shape(sizes, message, name)


def _v1_slice(
    message: Span, variables: dict[str, _Variable], pieces: dict[str, list[tuple[Extents, np.ndarray]]]
) -> None:
    """Add the values of one SavedSlice to `pieces`."""
    name, tensor = "", Span(memoryview(b""), message.file, message.offset)
    extents: Extents = ()
    for number, value in message.fields():
        if number == 1:
            name = only_bytes(value, message, number).text("a name")
        elif number == 2:
            extents = _v1_extents(only_bytes(value, message, number))
        elif number == 3:
            tensor = only_bytes(value, message, number)
    if name not in variables:
        message.fail(f"values for {name[:200]!r}, which is not listed")
    if variables[name].kind not in _NO_NUMBERS:
        pieces.setdefault(name, []).append((extents, _v1_values(tensor, variables[name])))


def _v1_extents(message: Span) -> Extents:
    """TensorSliceProto."""
    extents = []
    for extent in message.messages(1):
        found = {inner: only_int(size, extent, inner) for inner, size in extent.fields() if inner in (1, 2)}
        extents.append((found.get(1, 0), found.get(2)))
        if len(extents) > 256:
            message.fail("a slice with more than 256 axes")
    return tuple(extents)


def _v1_values(tensor: Span, variable: _Variable) -> np.ndarray:
    """The values of a TensorProto, without shape."""
    content = joined(tensor.messages(_RAW))
    if len(content):
        return _from_raw(content, variable)
    code, number = _TYPES[variable.kind]
    if number in _FIXED_WIDTH:
        return _from_raw(joined(tensor.messages(number)), variable)
    bits = "<u2" if number == _HALF else code
    return _widened(numbers(tensor.values(number), np.dtype(bits), tensor).view(code), variable.kind)


def _from_raw(data: memoryview, variable: _Variable) -> np.ndarray:
    """Values as they are in memory, without shape; a view where numpy knows the type."""
    return _widened(raw_values(data, _TYPES[variable.kind][0], variable.where, variable.name), variable.kind)


def _widened(stored: np.ndarray, kind: int) -> np.ndarray:
    return widened(stored) if kind == _BFLOAT16 else stored


def _v2_header(message: Span) -> int:
    """The number of shards of a BundleHeaderProto."""
    found = {number: value for number, value in message.fields() if number in (1, 2)}
    if found.get(2, 0) != 0:
        message.fail("big-endian values, which are not supported")
    count = only_int(found.get(1, 0), message, 1)
    if not count:
        message.fail("no index of a V2 checkpoint")
    return count


def _v2_entry(name: str, message: Span) -> _Stored:
    """A BundleEntryProto."""
    found = {number: value for number, value in message.fields() if 3 <= number <= 7}
    shard, offset, size = (only_int(found.get(number, 0), message, number) for number in (3, 4, 5))
    checksum = only_bytes(found[6], message, 6).number() if 6 in found else 0
    variable = _variable(message, name_field=0, kind_field=1, name=name)
    return _Stored(variable, shard, offset, size, checksum, sliced=7 in found)
