"""Writes checkpoints of TensorFlow (V1, V2) and caffemodels, so that tests can hold what no small real file does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from degrid.protobuf import encode_field, encode_varint, masked_checksum

Extents = Sequence[tuple[int, int] | None]
Parts = dict[str, list[Extents]]

KINDS = {
    "float32": 1,
    "float64": 2,
    "int32": 3,
    "uint8": 4,
    "int16": 5,
    "int8": 6,
    "complex64": 8,
    "int64": 9,
    "bool": 10,
    "uint16": 17,
    "complex128": 18,
    "float16": 19,
    "uint32": 22,
    "uint64": 23,
}
FIELDS = {1: 5, 2: 6, 3: 7, 4: 7, 5: 7, 6: 7, 8: 9, 9: 10, 10: 11, 14: 13, 17: 7, 18: 12, 19: 13, 22: 16, 23: 17}


class BFloat16(np.ndarray):
    """Bit patterns, uint16."""


def kind_of(value: np.ndarray) -> int:
    if isinstance(value, BFloat16):
        return 14
    return 7 if value.dtype == object else KINDS[value.dtype.name]


# --- the table of LevelDB


def table(entries: Iterable[tuple[bytes, bytes]], block_size: int = 256, snappy: bool = False) -> bytes:
    out = bytearray()
    index, block, filled = [], [], 0
    for key, value in sorted(entries):
        block.append((key, value))
        filled += len(key) + len(value)
        if filled >= block_size:
            index.append((key, add_block(out, block, snappy)))
            block, filled = [], 0
    if block:
        index.append((block[-1][0], add_block(out, block, snappy)))
    handles = add_block(out, [], snappy) + add_block(out, index, snappy)
    return bytes(out) + handles.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


def add_block(out: bytearray, entries: list[tuple[bytes, bytes]], snappy: bool) -> bytes:
    """Append a block; returns its handle."""
    body, previous, restarts = bytearray(), b"", [0]
    for number, (key, value) in enumerate(entries):
        if number % 16 == 0 and number:
            restarts.append(len(body))
            previous = b""
        shared = next((i for i, (a, b) in enumerate(zip(previous, key, strict=False)) if a != b), None)
        shared = min(len(previous), len(key)) if shared is None else shared
        body += encode_varint(shared) + encode_varint(len(key) - shared) + encode_varint(len(value))
        body += key[shared:] + value
        previous = key
    body += np.array([*restarts, len(restarts)], "<u4").tobytes()
    content, kind = (pack_snappy(bytes(body)), b"\1") if snappy else (bytes(body), b"\0")
    handle = encode_varint(len(out)) + encode_varint(len(content))
    out += content + kind + masked_checksum(content, kind).to_bytes(4, "little")
    return handle


def pack_snappy(data: bytes) -> bytes:
    """Greedy, with all four kinds of elements; copies may overlap what they make."""
    out, at, literal, seen = bytearray(encode_varint(len(data))), 0, 0, {}

    def flush(end: int) -> None:
        for start in range(literal, end, 70000):
            piece = data[start : min(end, start + 70000)]
            size = len(piece) - 1
            width = 0 if size < 60 else (size.bit_length() + 7) // 8
            out.extend([size << 2] if not width else [(59 + width) << 2, *size.to_bytes(width, "little")])
            out.extend(piece)

    while at + 4 <= len(data):
        start = seen.get(data[at : at + 4])
        seen[data[at : at + 4]] = at
        if start is None:
            at += 1
            continue
        flush(at)
        length = 4
        while length < 64 and at + length < len(data) and data[start + length] == data[at + length]:
            length += 1
        back = at - start
        if length < 12 and back < 2048:
            out.extend([1 | (length - 4) << 2 | back >> 8 << 5, back & 255])
        elif back < 65536:
            out.extend([2 | (length - 1) << 2, *back.to_bytes(2, "little")])
        else:
            out.extend([3 | (length - 1) << 2, *back.to_bytes(4, "little")])
        at += length
        literal = at
    flush(len(data))
    return bytes(out)


# --- messages


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """Fields that are 0 or empty are left out, as proto3 does."""
    return b"".join(encode_field(n, v % 2**64 if isinstance(v, int) else v) for n, v in fields if v or v == b"")


def shape_message(shape: Iterable[int]) -> bytes:
    return message(*((2, message((1, size))) for size in shape))


def slice_message(extents: Extents) -> bytes:
    """TensorSliceProto; a length of 0 is written, as it is in a oneof."""
    return message(
        *((1, b"" if e is None else message((1, e[0])) + encode_field(2, e[1])) for e in extents),
    )


def whole(value: np.ndarray) -> Extents:
    return [None] * value.ndim


def cut(value: np.ndarray, extents: Extents) -> np.ndarray:
    part = value[tuple(slice(None) if e is None else slice(e[0], e[0] + e[1]) for e in extents)]
    return np.array(part, order="C", subok=True)


def ordered_number(value: int) -> bytes:
    width = (value.bit_length() + 7) // 8
    return bytes([width]) + value.to_bytes(width, "big")


def ordered_signed(value: int) -> bytes:
    bits = value if value >= 0 else ~value
    width = next(n for n in range(1, 11) if bits < 1 << 7 * n - 1)
    code = ((1 << width) - 1 << 7 * width | bits).to_bytes(width, "big")
    return code if value >= 0 else bytes(byte ^ 255 for byte in code)


def slice_key(name: str, extents: Extents) -> bytes:
    text = name.encode().replace(b"\0", b"\0\xff") + b"\0\1"
    ends = [(0, -1) if e is None else e for e in extents]
    return (
        ordered_number(0)
        + text
        + ordered_number(len(ends))
        + b"".join(ordered_signed(start) + ordered_signed(length) for start, length in ends)
    )


# --- checkpoints


def tensor_message(value: np.ndarray, raw: bool = False, single: bool = False) -> bytes:
    """TensorProto. raw: as in memory; single: numbers one by one, not packed."""
    if value.dtype == object:
        return message(*((8, text) for text in value.ravel()))
    if raw:
        return message((4, value.tobytes()))
    field = FIELDS[kind_of(value)]
    if field in (5, 6, 9, 12):
        return message((field, value.tobytes()))
    bits = value.view(np.uint16) if value.dtype == np.float16 else value
    numbers = [int(number) % 2**64 for number in bits.ravel()]
    if single:
        return b"".join(encode_field(field, number) for number in numbers)
    return message((field, b"".join(map(encode_varint, numbers))))


def write_v1(
    path: Path,
    tensors: dict[str, np.ndarray],
    parts: Parts | None = None,
    shards: int = 1,
    snappy: bool = False,
    **how: bool,
) -> None:
    """`parts`: the slices a variable is cut into; with several shards, slices go to them in turn."""
    places: list[list[tuple[str, Extents]]] = [[] for _ in range(shards)]
    for name, extents in ((n, e) for n, v in tensors.items() for e in (parts or {}).get(n, [whole(v)])):
        places[sum(map(len, places)) % shards].append((name, extents))
    for number, place in enumerate(places):
        metas, entries = [], []
        for name in dict.fromkeys(name for name, _ in place):
            value, own = tensors[name], [extents for other, extents in place if other == name]
            fields = [(1, name.encode()), (2, shape_message(value.shape)), (3, kind_of(value))]
            metas.append((1, message(*fields, *((4, slice_message(extents)) for extents in own))))
            for extents in own:
                saved = [(1, name.encode()), (2, slice_message(extents))]
                saved.append((3, tensor_message(cut(value, extents), **how)))
                entries.append((slice_key(name, extents), message((2, message(*saved)))))
        entries.append((b"", message((1, message(*metas)))))
        target = path if shards == 1 else path.with_name(f"{path.name}-{number:05d}-of-{shards:05d}")
        target.write_bytes(table(entries, snappy=snappy))


def write_v2(
    prefix: Path, tensors: dict[str, np.ndarray], parts: Parts | None = None, shards: int = 1, snappy: bool = False
) -> None:
    """Whole variables go to the shards in turn, slices of one variable too; the last of three shards stays empty."""
    files = [bytearray() for _ in range(shards)]
    entries = [(b"", message((1, shards), (3, message((1, 1)))))]

    def entry(value: np.ndarray, extra: list[tuple[int, bytes]], stored: bool = True) -> bytes:
        shard = len(entries) % min(shards, 2)
        if value.dtype == object:
            lengths = b"".join(encode_varint(len(text)) for text in value.ravel())
            data = lengths + b"\0\0\0\0" + b"".join(value.ravel())
        else:
            data = value.tobytes() if stored else b""
        checksum = bytes([6 << 3 | 5]) + masked_checksum(data).to_bytes(4, "little") if stored else b""
        head = [(1, kind_of(value)), (2, shape_message(value.shape))]
        place = [(3, shard), (4, len(files[shard])), (5, len(data))] if stored else []
        files[shard] += data
        return message(*head, *place) + checksum + message(*extra)

    for name, value in tensors.items():
        pieces = (parts or {}).get(name, [])
        entries.append((name.encode(), entry(value, [(7, slice_message(p)) for p in pieces], stored=not pieces)))
        for extents in pieces:
            part = cut(value, extents)
            entries.append((slice_key(name, extents), entry(part, [])))
    prefix.with_name(prefix.name + ".index").write_bytes(table(entries, snappy=snappy))
    for number, data in enumerate(files):
        prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{shards:05d}").write_bytes(data)


def caffemodel(
    layers: dict[str, list[np.ndarray]], old: bool = False, pieces: int = 1, double: bool = False, single: bool = False
) -> bytes:
    """old: layers and shapes of V1; pieces: data fields per blob; single: values one by one, not packed."""

    def blob(value: np.ndarray) -> bytes:
        shape = [*(1,) * (4 - value.ndim), *value.shape]
        dims = b"".join(map(encode_varint, value.shape))
        head = message(*enumerate(shape, 1)) if old else message((7, message((1, dims))))
        flat = value.ravel().astype("<f8" if double else "<f4")
        if single:
            return head + b"".join((b"\x41" if double else b"\x2d") + number.tobytes() for number in flat)
        return head + message(*((8 if double else 5, part.tobytes()) for part in np.array_split(flat, pieces)))

    number, name_field, blob_field = (2, 4, 6) if old else (100, 1, 7)
    return message((1, b"net")) + message(
        *(
            (number, message((name_field, name.encode()), *((blob_field, blob(value)) for value in values)))
            for name, values in layers.items()
        )
    )
