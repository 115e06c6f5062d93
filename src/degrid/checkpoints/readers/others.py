"""Files that are mistaken for checkpoints: what each really is, and what to do instead."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from degrid.checkpoints.readers.archives import members_of
from degrid.checkpoints.readers.hdf5 import SIGNATURE
from degrid.protobuf import Span
from degrid.types import ConversionError

_UNPACK = "unpack it, and give the file inside"
_WITHOUT_NAMES = "whose weights are folded together and have lost their names; convert the checkpoint it was made from"

_OLD_PICKLE = (
    "a pickle of protocol 0 or 1; pickle it with the program that wrote it and protocol=2, or save it with numpy.savez"
)
_NOT_WEIGHTS = "and not a checkpoint; give the file with the network's weights"
_PICTURE = (
    "which is not a checkpoint; degrid predict takes pictures and videos, degrid convert the weights of a network"
)

# (position, bytes there, what the file is and what to do).
_MARKS = (
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer instead of the file itself; run git lfs pull, or download it",
    ),
    (257, b"ustar", f"an archive (tar); {_UNPACK}"),
    (0, b"\x1f\x8b", f"packed (gzip); {_UNPACK}"),
    (0, b"BZh", f"packed (bzip2); {_UNPACK}"),
    (0, b"\xfd7zXZ\0", f"packed (xz); {_UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"packed (zstd); {_UNPACK}"),
    (0, b"\x04\x22\x4d\x18", f"packed (lz4); {_UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"an archive (7z); {_UNPACK}"),
    (0, b"Rar!", f"an archive (rar); {_UNPACK}"),
    (4, b"TFL3", f"a model of TensorFlow Lite, {_WITHOUT_NAMES}"),
    (4, b"ET12", f"a program of ExecuTorch, {_WITHOUT_NAMES}"),
    (0, b"GGUF", f"a model of llama.cpp or ggml (GGUF), {_NOT_WEIGHTS}"),
    (0, b"ftrt", f"an engine of TensorRT, {_WITHOUT_NAMES}"),
    (0, b"\x89PNG", f"a picture (PNG), {_PICTURE}"),
    (0, b"\xff\xd8\xff", f"a picture (JPEG), {_PICTURE}"),
    (0, b"GIF8", f"a picture (GIF), {_PICTURE}"),
    (0, b"II*\0", f"a picture (TIFF), {_PICTURE}"),
    (0, b"MM\0*", f"a picture (TIFF), {_PICTURE}"),
    (4, b"jP  \r\n\x87\n", f"a picture (JPEG 2000), {_PICTURE}"),
    (8, b"WEBP", f"a picture (WebP), {_PICTURE}"),
    (8, b"AVI ", f"a video (AVI), {_PICTURE}"),
    (4, b"ftyp", f"a video or a picture (MP4, MOV, HEIC), {_PICTURE}"),
    (0, b"\x1aE\xdf\xa3", f"a video (Matroska, WebM), {_PICTURE}"),
    (0, b"%PDF-", f"a document (PDF), {_NOT_WEIGHTS}"),
    (8, b"WAVE", f"a sound (WAV), {_NOT_WEIGHTS}"),
    (0, b"OggS", f"a sound or a video (Ogg), {_NOT_WEIGHTS}"),
    (0, b"ID3", f"a sound (MP3), {_NOT_WEIGHTS}"),
    (0, b"ARROW1", f"a table (Arrow, Feather), {_NOT_WEIGHTS}"),
    (16, b"\xde\xc0\xef\xbe", f"a database (LMDB), {_NOT_WEIGHTS}"),
    (0, b"PAR1", f"a table (Parquet), {_NOT_WEIGHTS}"),
    (0, b"SQLite format 3\0", f"a database (SQLite), {_NOT_WEIGHTS}"),
    (0, b"MATLAB 5.0", "a file of MATLAB; save its arrays as a dictionary by name with numpy.savez"),
    (0, b"(dp", _OLD_PICKLE),
    (0, b"}q\0", _OLD_PICKLE),
    (0, b"ccollections\nOrderedDict", _OLD_PICKLE),
    (0, b"\x7fELF", f"a program (ELF), {_NOT_WEIGHTS}"),
    (0, b"MZ\x90\0", f"a program of Windows, {_NOT_WEIGHTS}"),
)
# A Windows bitmap or a Netpbm picture; both begin with two letters, which alone are not enough.
_BITMAP = re.compile(rb"BM.{4}\0{4}.{4}[\x0c\x28\x40\x6c\x7c]\0{3}|P[1-7]\s[\s#\dW]", re.DOTALL)
_PAGE = re.compile(
    # The last is the answer of object stores (AccessDenied, NoSuchKey).
    rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body|\?xml[^>]*>\s*<Error>)",
    re.IGNORECASE | re.DOTALL,
)
_CONTROL = re.compile(r"[^\t\n\f\r\x20-\x7e\xa0-\U0010ffff]")


def what_else(file: Span, path: Path) -> str | None:
    """What a file is instead of a checkpoint, and what to do about it; None where nothing says that it is not one."""
    head = bytes(file.data[:4096])
    for place, mark, words in _MARKS:
        if head[place : place + len(mark)] == mark:
            return words
    if not any(head) and all(not any(file.data[at : at + (1 << 20)]) for at in range(0, len(file), 1 << 20)):
        return "empty; download or copy it again" if not head else "nothing but zeros; download or copy it again"
    if _BITMAP.match(head):
        return f"a picture ({'BMP' if head[:1] == b'B' else 'Netpbm'}), {_PICTURE}"
    if _PAGE.match(head):
        return "a web page instead of the file, perhaps asking to log in or to confirm; download it with a browser"
    if head.startswith(SIGNATURE):
        return None
    if head[:2] == b"PK":
        return _archive([member.filename for member in members_of(file)])
    if text := _text(head):
        return f"a text that begins {text[:40].strip()!r}, {_NOT_WEIGHTS}"
    return _message(file, path)


def _text(head: bytes) -> str:
    """The beginning of a file as text; "" if it is not text. Its last character may be cut."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return ""
    return "" if _CONTROL.search(text) else text


def _archive(names: list[str]) -> str | None:
    """What kind of file an archive with members of these names is."""
    found = [last for name in names if (last := name.rpartition("/")[2])]
    if not found:
        return "an archive (zip) with no file in it; download or copy it again"
    if "constants.pkl" in found:
        return "a TorchScript program; save its weights: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
    if "archive_format" in found or "serialized_exported_program.json" in found:
        return (
            "a program of torch.export; save its weights: torch.save(torch.export.load(FILE).state_dict, 'weights.pth')"
        )
    return None


def _message(file: Span, path: Path) -> str | None:
    """What kind of file a protocol buffer is. Formats: onnx.proto, Core ML's Model.proto, saved_model.proto."""
    numbers = dict(islice(_numbers(file), 64))
    version = numbers.get(1)
    if isinstance(version, int) and version < 1000:
        if numbers.keys() & {7, 8} and not numbers.keys() & {100}:
            return f"a model of ONNX, {_WITHOUT_NAMES}"
        if any(200 <= number < 4000 for number in numbers):
            return f"a model of Core ML, {_WITHOUT_NAMES}"
        if path.name == "saved_model.pb":
            return (
                "the graph of a SavedModel of TensorFlow, whose weights lie beside it; give "
                f"{path.parent / 'variables' / 'variables'}"
            )
    return None


def _numbers(file: Span) -> Iterator[tuple[int, int | Span]]:
    """The fields of a message, up to damage."""
    try:
        yield from file.fields()
    except ConversionError:
        return
