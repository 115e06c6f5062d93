"""JPEG and PNG files inside other files, such as the records of a TFRecord file, decoded from their bytes."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, UnidentifiedImageError

from degrid.data.formats.masks import MaskReading, rgb_like
from degrid.data.formats.read_mask import mask_values
from degrid.image import decode_jpeg
from degrid.lookup import shortened
from degrid.protobuf import Span
from degrid.types import ConversionError, UserError

# The EXIF tag for the orientation of the camera; 1 is upright.
_ORIENTATION = 0x0112


def open_picture(part: Span, what: str) -> Image.Image:
    """A picture that is not decoded yet. The format that is given for it elsewhere does not count: it is often wrong.

    Args:
        what: "image" or "label", for messages.
    Raises:
        ConversionError: no JPEG or PNG file, or a damaged one.
    """
    try:
        return Image.open(io.BytesIO(part.data), formats=("JPEG", "PNG"))
    except Exception as error:
        _refuse_picture(part, what, error)


def label_values(label: Span, how: MaskReading, image: tuple[int, ...] | None = None) -> np.ndarray:
    """A label's values; its size is compared with the image's before it is decoded.

    Args:
        how: see `degrid.data.formats.read_mask.read_mask`.
        image: width and height of the image, as it is stored; None: not known.
    Raises:
        ConversionError: damaged, of another size than the image, or not one of class ids.
    """
    opened = open_picture(label, "label")
    if image and opened.size not in (image, image[::-1]):
        refuse_size(label, opened.size, image)
    try:
        opened.load()
        return mask_values(opened, f"{label.file}: the label at byte {label.offset}", bytes(label.data[:64]), how)
    except UserError as error:
        raise ConversionError(str(error)) from error
    except Exception as error:
        _refuse_picture(label, "label", error)


def pixels_like(image: Span, size: tuple[int, ...], picture: Image.Image) -> np.ndarray:
    """A picture as RGB uint8 [H,W,3], oriented like a label of this height and width.

    Args:
        picture: what `open_picture` made of the bytes.
    Raises:
        ConversionError: damaged, or of another size than the label.
    """
    try:
        pixels = decode_jpeg(bytes(image.data)) if picture.format == "JPEG" else None
        if pixels is None:
            picture.load()
            pixels = rgb_like(picture, size)
    except Exception as error:
        _refuse_picture(image, "image", error)
    if pixels.shape[:2] != tuple(size):
        refuse_size(image, (size[1], size[0]), (pixels.shape[1], pixels.shape[0]))
    return pixels


def refuse_size(part: Span, label: tuple[int, ...], image: tuple[int, ...]) -> NoReturn:
    """Say that a label of this width and height does not fit the image."""
    part.fail(f"a label of {label[0]}x{label[1]} pixels for an image of {image[0]}x{image[1]}")


def _refuse_picture(part: Span, what: str, error: Exception) -> NoReturn:
    """Pillow complains of damaged bytes with a dozen kinds of exceptions: hence the `except Exception` above."""
    known = isinstance(error, UnidentifiedImageError)
    reason = "" if known else f" ({shortened(str(error), 100) or type(error).__name__})"
    raise ConversionError(
        f"{part.file}: the {what} at byte {part.offset} is not a JPEG or PNG file, or a damaged one{reason}"
    ) from error


def plain_kind(data: bytes, size: tuple[int, ...]) -> str:
    """ ".jpg" or ".png" for a file that every reader decodes to the same pixels; otherwise empty.

    Args:
        data: an image file.
        size: height and width that it must have.
    """
    if not data.startswith((b"\xff\xd8", b"\x89PNG")):
        return ""
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as opened:
        upright = opened.getexif().get(_ORIENTATION, 1) == 1
        # Readers convert CMYK, and treat transparency, differently.
        modes = {"JPEG": ("RGB", "L"), "PNG": ("RGB",)}.get(str(opened.format), ())
        plain = upright and opened.mode in modes and "transparency" not in opened.info
        return f".{'jpg' if opened.format == 'JPEG' else 'png'}" if plain and opened.size == size[1::-1] else ""


def png(pixels: np.ndarray, level: int) -> bytes:
    """Pixels as a PNG file.

    Args:
        level: of compression, 0 to 9. For photographs, level 1 takes a third of the default level's time and yields a
            seventh more bytes.
    """
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG", compress_level=level)
    return stream.getvalue()


def npy(values: np.ndarray) -> bytes:
    """Numbers as a file of NumPy."""
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue()


@contextlib.contextmanager
def as_file(data: bytes, suffix: str) -> Iterator[Path]:
    """Bytes as a file, for readers that need one; it lasts as long as the context."""
    handle, name = tempfile.mkstemp(suffix)
    try:
        with open(handle, "wb") as stream:
            stream.write(data)
        yield Path(name)
    finally:
        os.unlink(name)
