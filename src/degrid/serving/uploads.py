"""Uploaded files: only images are accepted, and only up to the size that the server is willing to decode."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from degrid.image import UnreadKindError, image_size
from degrid.raster import TIFF_MARKS, tiff_header
from degrid.types import UserError

_MARKS: tuple[tuple[bytes, int, str], ...] = (
    (b"\xff\xd8\xff", 0, ".jpg"),
    (b"\x89PNG\r\n\x1a\n", 0, ".png"),
    (b"WEBP", 8, ".webp"),
    (b"GIF8", 0, ".gif"),
    (b"BM", 0, ".bmp"),
    (b"ftypavif", 4, ".avif"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", 0, ".jp2"),
    *((mark, 0, ".tif") for mark in TIFF_MARKS),
    *((b"P%d" % kind, 0, ".ppm") for kind in range(1, 7)),
)
"""Bytes, where they are in the file, and its ending: the kinds of `degrid.image.IMAGE_SUFFIXES`.

Pillow opens many more kinds, some by running other programs.
"""
_VALUES = 16
"""Bytes for each pixel that is allowed which a TIFF may have: eight bands of 16 bits."""


class RefusedError(UserError):
    """An upload that is not taken.

    status: of HTTP, which says why.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def save_images(uploads: Sequence[tuple[str, BinaryIO]], held: ExitStack, most_pixels: int) -> list[Path]:
    """Write uploads as temporary files whose endings say what they are.

    Each is a file of its own and not one of a folder: to remove a folder took 8 ms on a busy machine (Linux, ext4).

    Args:
        uploads: the name and content of each.
        held: where it ends, the files are removed.
        most_pixels: of all together.
    Raises:
        RefusedError: one is no image of a kind that is read, is damaged at its beginning, or there are more pixels.
    """
    files, left = [], most_pixels
    for name, content in uploads:
        start = content.read(16)
        content.seek(0)
        ending = next((end for mark, place, end in _MARKS if start[place:].startswith(mark)), None)
        if ending is None:
            kinds = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or PNM"
            raise RefusedError(415, f"{name} is not an image that is read here; expected {kinds}")
        place, path = tempfile.mkstemp(ending, "degrid-")
        file = Path(path)
        held.callback(file.unlink, missing_ok=True)
        with os.fdopen(place, "wb") as stream:
            shutil.copyfileobj(content, stream)
        with named(file, name):
            left -= _pixels(file, most_pixels)
        if left < 0:
            few = f"{most_pixels / 1e6:,.1f} million pixels"
            raise RefusedError(413, f"{name}: a request may have {few} in all; send smaller images, or fewer at a time")
        files.append(file)
    return files


def _pixels(file: Path, most: int) -> int:
    """How many pixels a file says that it has; more than there may be for a TIFF of too many bands."""
    header = tiff_header(file)
    if header is None:
        return math.prod(image_size(file))
    too_much = math.prod(header.size) * header.bands * header.bits > 8 * _VALUES * most
    return most + 1 if too_much else math.prod(header.size)


@contextmanager
def named(file: Path, name: str) -> Iterator[None]:
    """Call a file by the name that its sender gave it in errors about it.

    Raises:
        RefusedError: for any UserError inside.
    """
    try:
        yield
    except RefusedError:
        raise
    except UserError as error:
        status = 415 if isinstance(error, UnreadKindError) else 422
        raise RefusedError(status, str(error).replace(str(file), name)) from error
