"""The TFRecord file format: finding records in a file, and the table of values inside each record.

A file is a sequence of records: length uint64, its checksum uint32, the payload, its checksum uint32, all little-endian
(tensorflow/core/lib/io/record_writer.h). The payload is a tf.train.Example (tensorflow/core/example/example.proto): a
table of named lists of bytes, floats or integers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from degrid.protobuf import Span, encode_field, encode_varint, masked_checksum, only_bytes
from degrid.types import ConversionError, UserError

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
# Field numbers in tf.train.Feature.
_BYTES_LIST, _INT_LIST = 1, 3


@dataclass(frozen=True, slots=True)
class Record:
    """The position of one record in a file.

    offset: where its header starts, bytes; length: of its payload, bytes; number: its index in the file, from 0.
    """

    file: Path
    offset: int
    length: int
    number: int

    def __str__(self) -> str:
        return f"{self.file}, record {self.number} (byte {self.offset})"

    def payload(self) -> Span:
        """Read the record's payload. Each call opens the file afresh, so that processes share no file handle.

        Raises:
            ConversionError: the checksum does not match, or the file has become shorter.
            UserError: the file cannot be read.
        """
        try:
            with self.file.open("rb") as stream:
                stream.seek(self.offset + _HEADER.size)
                data = memoryview(stream.read(self.length + _CHECKSUM.size))
        except OSError as error:
            raise UserError(f"cannot read {self.file}: {error.strerror}") from error
        span = Span(data, str(self.file), self.offset + _HEADER.size)
        payload = span.part(0, self.length, "a record")
        if span.part(self.length, _CHECKSUM.size, "a checksum").number() != masked_checksum(payload.data):
            span.fail("the record has changed since it was written (its checksum does not match),")
        return payload


def records_in(file: Path) -> Iterator[Record]:
    """Find the records of a file. Their headers are read and checked; their payloads are not.

    Raises:
        ConversionError: at the first damaged header, or record that extends beyond the end of the file.
        UserError: the file cannot be read.
    """
    try:
        size = file.stat().st_size
        with file.open("rb", buffering=0) as stream:  # buffering would read more than the headers
            offset = number = 0
            while offset < size:
                stream.seek(offset)
                length = _length(Span(memoryview(stream.read(_HEADER.size)), str(file), offset))
                end = offset + _HEADER.size + length + _CHECKSUM.size
                if end > size:
                    raise ConversionError(f"{file}: cut short within record {number}, which begins at byte {offset}")
                yield Record(file, offset, length, number)
                offset, number = end, number + 1
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def _length(header: Span) -> int:
    length, checksum = _HEADER.unpack(header.part(0, _HEADER.size, "the header of a record").data)
    if checksum != masked_checksum(header.data[:8]):
        packed = header.offset == 0 and bytes(header.data[:2]) == b"\x1f\x8b"
        header.fail("compressed by gzip (unpack it first)" if packed else "no TFRecord header, or a damaged one,")
    return int(length)


def without_suffix(file: Path) -> str:
    """The name of a TFRecord file without ".tfrecord", which may be followed by the shard's number."""
    return re.sub(r"\.tfrecords?", "", file.name, flags=re.IGNORECASE)


def framed(payload: bytes) -> bytes:
    """A payload framed as a record, with its length and checksums."""
    length = _HEADER.pack(len(payload), 0)[:8]
    return b"".join(
        (length, _CHECKSUM.pack(masked_checksum(length)), payload, _CHECKSUM.pack(masked_checksum(payload)))
    )


class Features:
    """The table of a tf.train.Example. Only the keys are parsed up front; each value is parsed when it is requested.

    Args:
        example: the bytes of the message.
    Raises:
        ConversionError: the bytes are not such a message.
    """

    def __init__(self, example: Span) -> None:
        self.example = example
        self._found: dict[str, Span] = {}
        for features in example.messages(1):
            self._found |= map(_entry, features.messages(1))

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return sorted(self._found)

    def bytes_of(self, key: str) -> Span:
        """The first entry of a list of bytes.

        Raises:
            ConversionError: the key is missing, or its list is of another kind or empty.
        """
        return only_bytes(self._first(key, _BYTES_LIST, "bytes"), self._found[key], 1)

    def int_of(self, key: str) -> int:
        """The first entry of a list of integers, unsigned. Raises the same errors as `bytes_of`."""
        value = self._first(key, _INT_LIST, "whole numbers")
        return value if isinstance(value, int) else value.varint(0)[0]  # both single and packed values occur

    def _first(self, key: str, kind: int, kind_name: str) -> int | Span:
        if key not in self._found:
            self.example.fail(f'the key "{key}" is missing in the record')
        for values in self._found[key].messages(kind):
            if (value := next(values.values(1), None)) is not None:
                return value
        self._found[key].fail(f'"{key}" holds no {kind_name}')


def _entry(entry: Span) -> tuple[str, Span]:
    """The key and value of one row of the table."""
    parts = {number: only_bytes(value, entry, number) for number, value in entry.fields() if number in (1, 2)}
    return parts[1].text("a key") if 1 in parts else "", parts.get(2, entry.part(len(entry), 0))


def encode_example(features: Mapping[str, int | bytes]) -> bytes:
    """Encode a tf.train.Example with one value per key, in the given order; the bytes are deterministic."""
    rows = []
    for key, value in features.items():
        # Like TensorFlow, write numbers as a packed list.
        kind, item = (_BYTES_LIST, value) if isinstance(value, bytes) else (_INT_LIST, encode_varint(value))
        feature = encode_field(kind, encode_field(1, item))
        rows.append(encode_field(1, encode_field(1, key.encode()) + encode_field(2, feature)))
    return encode_field(1, b"".join(rows))
