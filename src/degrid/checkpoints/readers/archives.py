"""Zip archives, read from memory within bounds: PyTorch's, numpy's, and those around a checkpoint."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

from degrid.checkpoints.readers.values import MAX_TENSORS
from degrid.protobuf import Span
from degrid.types import ConversionError

_MAX_GAIN = 2  # weights hardly compress; an archive that claims more is meant to exhaust the memory
_LINE = 4096
_ENCRYPTED = 1  # a bit of a member's flags
_GRACE = 1 << 20  # bytes: small archives of zeros do compress further
_LOCAL_HEADER, _LOCAL_MAGIC = struct.Struct("<4s22xHH"), b"PK\3\4"  # of an archive member: lengths of the rest


class Stream(io.RawIOBase):
    """Bytes of a file as a stream that never copies more of them than there are, whatever it is asked for."""

    def __init__(self, span: Span) -> None:
        self.span, self.at = span, 0

    def seekable(self) -> bool:
        """Whether `seek` works: it does."""
        return True

    def seek(self, to: int, whence: int = 0) -> int:
        """Go to a position, from the beginning, from here or from the end."""
        self.at = max(0, to + (0, self.at, len(self.span))[whence])
        return self.at

    def tell(self) -> int:
        """The position of the next byte."""
        return self.at

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; all where it is negative."""
        found = bytes(self.span.data[self.at :][: size if size >= 0 else None])
        self.at += len(found)
        return found

    def readline(self, size: int | None = -1, /) -> bytes:
        """Up to the end of a line, or part of a line that is absurdly long."""
        found = bytes(self.span.data[self.at : self.at + _LINE])
        found = found[: found.find(b"\n") + 1] or found
        self.at += len(found)
        return found


def members_of(file: Span) -> list[zipfile.ZipInfo]:
    """The list of contents of an archive.

    Raises:
        ConversionError: damaged.
    """
    try:
        with zipfile.ZipFile(Stream(file)) as archive:
            return archive.infolist()
    except Exception as error:  # zipfile raises many types of errors for malformed archives
        raise ConversionError(
            f"{file.file}: a damaged archive ({str(error) or type(error).__name__}), perhaps cut short; download or "
            "copy it again"
        ) from error


def stored(file: Span, member: zipfile.ZipInfo) -> Span:
    """A part of an archive that is not packed: a view of the file; its checksum is not looked at.

    Raises:
        ConversionError: damaged.
    """
    head = file.part(member.header_offset, _LOCAL_HEADER.size, "the head of a part")
    magic, name_length, extra_length = _LOCAL_HEADER.unpack(head.data)
    if magic != _LOCAL_MAGIC:
        head.fail(f"damaged: no part of the archive begins here, where {member.filename} should")
    start = member.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    return file.part(start, member.file_size, member.filename)


def unpacked(file: Span) -> dict[str, Span]:
    """The parts of an archive by name; of those that are not packed, views of the file.

    Raises:
        ConversionError: damaged, or made to unpack to far more than its size.
    """
    members = [member for member in members_of(file) if not member.is_dir()]
    size = len(file)
    if len(members) > MAX_TENSORS or sum(member.file_size for member in members) > _GRACE + _MAX_GAIN * size:
        raise ConversionError(
            f"{file.file}: claims to unpack to more than twice its {size} bytes, which weights do not; if they do, "
            "unpack it, or save arrays unpacked: numpy.savez(file, **numpy.load(packed))"
        )
    for member in members:
        name = member.filename
        if member.compress_size > size:  # zipfile would allocate that much before reading
            raise ConversionError(f"{file.file}: {name} claims {member.compress_size} bytes, beyond the end")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ConversionError(f"{file.file}: {name} is packed in a way that is not read; unpack the archive")
    try:
        with zipfile.ZipFile(Stream(file)) as archive:  # once for all: each opening reads the whole list of contents
            return {member.filename: _content(archive, member, file) for member in members}
    except Exception as error:
        raise ConversionError(f"{file.file}: a damaged archive ({str(error) or type(error).__name__})") from error


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Span) -> Span:
    """A part of an archive, its checksum verified."""
    if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & _ENCRYPTED:
        data = stored(file, member).data
        if zlib.crc32(data) != member.CRC:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.filename!r}")
    else:
        data = memoryview(archive.read(member))
    return Span(data, f"{file.file}, {member.filename}")
