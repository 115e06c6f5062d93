"""Reading the values of label images as they are stored, whatever the kind of file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from degrid.data.formats.masks import AS_STORED, LARGEST_WHOLE, NO_DATA, SIDEWAYS, MaskReading
from degrid.data.formats.read_array import ARRAY_SUFFIXES, UnusableMaskError, read_array
from degrid.data.formats.unread import MASK_OF_CUTOUT
from degrid.image import UnreadKindError, exif_orientation, open_image
from degrid.raster import TIFF_MARKS, TiffHeader, read_bands, tiff_header
from degrid.types import IGNORE_INDEX, UserError

# The beginning of a file, in which a PNG says its bit depth and a PGM its highest value, after comments.
_HEAD = 2048
_PNG_SIGNATURE = b"\x89PNG"
_PNG_BITS, _PNG_COLORS = 24, 25  # where a PNG says its bit depth and its colour type
_LARGEST_PALETTE = 768  # bytes, of 256 colours
# Pillow stretches values of few bits so that white becomes 255; this is the factor by the number of bits.
_EXIF = (b"eXIf", b"Exif\0")  # in a PNG, in other files
_STRETCHED = {2: 85, 4: 17}
_LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "AVIF": "AVIF"}  # names of Pillow's formats in messages
_JPEG_IN_TIFF = (6, 7)  # numbers of compression schemes


class LossyMaskError(UnusableMaskError):
    """A label image whose compression has changed its values. kind: of the file, such as "JPEG"."""

    def __init__(self, name: object, kind: str) -> None:
        self.kind = kind
        article = "an" if kind.startswith("A") else "a"
        super().__init__(
            f"{name} is {article} {kind}: its compression blurs class ids. Save masks as PNG; for a black-and-white "
            f'mask: Image.open("mask{Path(str(name)).suffix}").convert("L").point(lambda v: v >= 128).save("mask.png")'
            ", or threshold: 128 in dataset.yaml"
        )


def read_mask(path: Path, how: MaskReading = AS_STORED, image: Path | None = None) -> np.ndarray:
    """Read the values of a label image: ids [H,W], or colours uint8 [H,W,3].

    Values are those that the file stores: palette images yield their indices, PNG and TIFF of few bits are not
    stretched, TIFF whose 0 is white are not turned round. GIF is the exception: programs renumber its palette, so that
    only colours or grey values are reliable. NaN, numbers no id can have, and what a GeoTIFF calls "no data" outside
    0 to 255 become `NO_DATA`. A .npy or .mat file holds one array: ids [H,W] or colours uint8 [H,W,3].

    Args:
        how: to read colours in place of indices, what was compressed with loss, or fractions.
        image: the file that it is the mask of.
    Raises:
        UserError: the file is missing or damaged, holds fractions, several pages or bands, or was compressed with loss;
            or wants to be turned (EXIF), and its size does not show whether it lies as the image does.
    """
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return _ids_of_array(read_array(path), path, how)
    with _opened(path) as stream:
        head = stream.read(_HEAD)
        if head[8:12] == b"WEBP" and not how.lossy and _is_lossy_webp(stream):
            raise LossyMaskError(path, "lossy WebP")
    if image and any(mark in head for mark in _EXIF):
        _refuse_turned(path, image)
    header = tiff_header(path) if head.startswith(TIFF_MARKS) else None
    if header:
        return _from_tiff(path, header, how)
    if head.startswith(b"GIF"):
        _refuse_pages(path, _frames(path))
    return mask_values(open_image(path), path, head, how)


def _refuse_turned(path: Path, image: Path) -> None:
    """Refuse a mask with an orientation, unless only one way of reading its image has its size."""
    orientation, *_ = exif_orientation(path)
    turned, width, height = exif_orientation(image)
    if orientation != 1 and (turned < SIDEWAYS or width == height):
        raise UnusableMaskError(
            f"{path} is to be rotated for display (EXIF orientation {orientation}), its image "
            f"{f'has orientation {turned}' if turned != 1 else 'does not'}, and its size does not tell how they lie to "
            "each other: save it without EXIF, lying as the image is shown"
        )


def _frames(path: Path) -> int:
    """The number of pictures in a GIF; 1 if the file is damaged."""
    try:
        with Image.open(path) as film:
            return int(getattr(film, "n_frames", 1))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return 1


def remarks_on(path: Path) -> list[str]:
    """What may surprise about how the values of a label image are read, in words that follow "3 ".

    Told from the header of the file; nothing for files that are missing or no TIFF.
    """
    header = tiff_header(path) if path.suffix.lower() in (".tif", ".tiff") else None
    remarks = []
    if header and header.white_is_zero and header.bits <= 8:
        remarks.append("TIFF masks in which 0 is white (their numbers count, not their appearance)")
    if header and header.no_data is not None and 0 <= header.no_data < IGNORE_INDEX:
        remarks.append(
            f'masks that call the id {header.no_data:g} "no data" (it is read as an id; if it means nothing, list it '
            "under void in dataset.yaml)"
        )
    return remarks


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"no such image: {path}") from error
    except (OSError, ValueError) as error:  # a file may hold names that no file can have
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error


def mask_values(image: Image.Image, name: object, head: bytes, how: MaskReading = AS_STORED) -> np.ndarray:
    """The values of a decoded label image other than TIFF: ids [H,W], or colours uint8 [H,W,3]; see `read_mask`.

    Args:
        name: of the file, for messages.
        head: the first 64 bytes of the file or more.
        how: see `read_mask`.
    Raises:
        UserError: the image holds fractions, several pages, or 16 bits per colour, or is a JPEG.
    """
    if not how.lossy and image.format in _LOSSY:
        raise LossyMaskError(name, _LOSSY[image.format])
    if not how.lossy and image.format == "JPEG2000" and _is_lossy_jpeg2000(head):
        raise LossyMaskError(name, "lossy JPEG 2000")
    _refuse_pages(name, getattr(image, "n_frames", 1) if image.format != "MPO" else 1)
    if head.startswith(_PNG_SIGNATURE) and head[_PNG_BITS] == 16 and head[_PNG_COLORS] != 0:
        raise UnusableMaskError(
            f"{name} has colours of 16 bits; expected one channel of class ids, of 8 or 16 bits, or colours of 8 bits"
        )
    if head.startswith(b"GIF"):
        colors = np.asarray(image.convert("RGB"))
        return colors[..., 0] if (colors == colors[..., :1]).all() else colors
    return _values(image, name, _stretch(image, head), how)


def read_palette(path: Path) -> np.ndarray | None:
    """The colours of a palette image, uint8 [N,3]; None for any other file, and for GIF, which is read by colour."""
    try:
        if path.suffix.lower() == ".png":  # most masks, whose palette is in a few bytes
            with path.open("rb") as stream:
                if stream.read(8).startswith(_PNG_SIGNATURE):
                    return _png_palette(stream)
        with Image.open(path) as image:
            if image.mode not in ("P", "PA") or image.palette is None or image.format == "GIF":
                return None
            kind, data = image.palette.getdata()  # unlike `getpalette`, does not decode the pixels
            colors = bytes(data) if kind == "RGB" else bytes(image.getpalette("RGB") or ())
    except (OSError, SyntaxError, ValueError):
        return None
    return np.frombuffer(colors, np.uint8, len(colors) // 3 * 3).reshape(-1, 3)


def _png_palette(stream: BinaryIO) -> np.ndarray | None:
    """The chunk PLTE of a PNG behind its signature, if its pixels are indices (PNG specification, 11.2.2)."""
    while len(start := stream.read(8)) == 8 and start[4:] != b"IDAT":
        size, wanted = int.from_bytes(start[:4], "big"), start[4:] in (b"IHDR", b"PLTE")
        data = stream.read(min(size, _LARGEST_PALETTE)) if wanted else b""
        if start[4:] == b"IHDR" and data[9:10] != b"\x03":
            return None
        if start[4:] == b"PLTE":
            return np.frombuffer(data, np.uint8, len(data) // 3 * 3).reshape(-1, 3)
        stream.seek(size - len(data) + 4, os.SEEK_CUR)  # 4: the checksum
    return None


def _refuse_pages(name: object, pages: int) -> None:
    if pages > 1:
        raise UnusableMaskError(
            f"{name} holds {pages} pages; expected one image of class ids: save the page that holds them as a file of "
            "its own (of a stack with one mask per class, save the number of the page that is set at each pixel)"
        )


def _values(image: Image.Image, name: object, stretch: float, how: MaskReading) -> np.ndarray:
    """The values of an image: ids [H,W], divided by `stretch`, or colours uint8 [H,W,3]."""
    if image.mode in ("P", "PA") and how.by_color:
        return np.asarray(image.convert("RGBA"))[..., :3]
    if image.mode == "F":
        return _whole_numbers(np.asarray(image), name, how)
    if image.mode in ("P", "L", "I", "I;16", "I;16B", "1"):
        raw = np.asarray(image)
        if raw.dtype == bool:
            return raw.astype(np.uint8)
        return raw if stretch == 1 else np.rint(raw / stretch).astype(raw.dtype)
    if image.mode == "PA":
        return np.asarray(image)[..., 0]
    if image.mode == "LA":
        return _seen(np.asarray(image), name)[..., 0]
    if image.mode == "RGBA":
        return _seen(np.asarray(image), name)
    return np.asarray(image.convert("RGB"))


def _seen(pixels: np.ndarray, name: object) -> np.ndarray:
    """Pixels uint8 [H,W,C] without their last channel, the transparency.

    Raises:
        UserError: transparency is all that distinguishes some pixels from others.
    """
    colors, clear = pixels[..., :-1], pixels[..., -1] == 0
    if clear.any() and not clear.all():
        packed = colors.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)[-colors.shape[-1] :]
        both = np.intersect1d(packed[clear], packed[~clear])
        # Black and clear is how most programs store nothing at all, and black is background as a rule.
        if both.any() or (both.size and packed.max() == 0):
            raise UnusableMaskError(
                f"{name} has transparent and opaque pixels of the same colour, so the mask is lost with its "
                "transparency: fill the transparent part with another colour, and save without transparency; or, if "
                f"the transparency is the mask: {MASK_OF_CUTOUT}"
            )
    return colors


def _stretch(image: Image.Image, head: bytes) -> float:
    """The factor by which Pillow stretches the values of a greyscale PNG or PGM."""
    if image.mode == "L" and head.startswith(_PNG_SIGNATURE) and head[_PNG_COLORS] == 0:
        return _STRETCHED.get(head[_PNG_BITS], 1)
    if image.mode in ("L", "I") and head[:2] in (b"P2", b"P5"):
        words = re.sub(rb"#[^\n]*", b"", head).split(maxsplit=4)
        highest = int(words[3])
        return (255 if highest < 256 else 65535) / highest
    return 1


def _whole_numbers(values: np.ndarray, name: object, how: MaskReading, no_data: float | None = None) -> np.ndarray:
    """Floats [H,W] as int64, with `NO_DATA` for values that cannot be ids."""
    with np.errstate(invalid="ignore"):
        void = ~(np.abs(values) < LARGEST_WHOLE)
    if no_data is not None and not 0 <= no_data <= IGNORE_INDEX:
        void |= values == values.dtype.type(no_data)
    ids = np.where(void, 0, values)
    fractions = bool((ids != np.rint(ids)).any())
    if fractions and how.threshold is not None:
        ids = np.where(ids < how.threshold, 0, IGNORE_INDEX)
    elif fractions:
        raise UnusableMaskError(
            f"{name} holds fractions, such as a map of probabilities; expected a class id in every pixel, or "
            "threshold: 0.5 in dataset.yaml to divide them into background and object"
        )
    whole: np.ndarray = ids.astype(np.int64)
    whole[void] = NO_DATA
    return whole


def _from_tiff(path: Path, header: TiffHeader, how: MaskReading) -> np.ndarray:
    _refuse_pages(path, header.pages)
    if header.compression in _JPEG_IN_TIFF and not how.lossy:
        raise LossyMaskError(path, "JPEG-compressed TIFF")
    if header.by_luma and header.compression not in _JPEG_IN_TIFF:
        raise UnusableMaskError(
            f"{path} is a TIFF in YCbCr, as JPEG stores pictures, in which classes do not keep their colours: save "
            "masks as PNG, or as TIFF in RGB without JPEG"
        )
    if header.bands > 1 and header.kind != "uint8":
        raise _too_many(path, header)
    values = _from_tiff_by_pillow(path, header, how)
    if values is None:
        bands = read_bands(path)
        if len(bands) != 1 and not (header.colors and len(bands) in (3, 4)):
            raise _too_many(path, header)
        values = bands[0] if len(bands) == 1 else np.ascontiguousarray(np.moveaxis(bands[:3], 0, -1))
    if values.dtype.kind == "f":
        return _whole_numbers(values, path, how, header.no_data)
    if values.dtype.kind not in "iu":
        raise UnusableMaskError(f"{path} holds {header}; expected class ids, which are whole numbers")
    return _without_no_data(values, header.no_data)


def _too_many(path: Path, header: TiffHeader) -> UnusableMaskError:
    return UnusableMaskError(
        f"{path} holds {header}; expected 1 band of class ids, or 3 bands of 8-bit colours: save the band with the ids "
        "as a file of its own"
    )


def _from_tiff_by_pillow(path: Path, header: TiffHeader, how: MaskReading) -> np.ndarray | None:
    """The values of a TIFF; None for one that Pillow does not read."""
    try:
        image = open_image(path)
    except UnreadKindError:
        return None
    if image.mode == "F":
        return np.asarray(image)
    if header.white_is_zero and image.mode in ("1", "L"):
        image = image.point(lambda value: 255 - value)  # as Pillow inverts them
    values = _values(image, path, _STRETCHED.get(header.bits, 1) if image.mode == "L" else 1, how)
    stored = {"int8": np.int8, "uint32": np.uint32}.get(header.kind)
    return values.view(stored) if stored and values.ndim == 2 else values


def _without_no_data(values: np.ndarray, no_data: float | None) -> np.ndarray:
    """Replace the value for "no data", unless it may be a class id or is void in any case."""
    if no_data is None or not no_data.is_integer() or 0 <= no_data <= IGNORE_INDEX or values.ndim != 2:
        return values
    void = values == int(no_data)
    if not void.any():
        return values
    wide = values.astype(np.int64)
    wide[void] = NO_DATA
    return wide


def _ids_of_array(values: np.ndarray, path: Path, how: MaskReading) -> np.ndarray:
    """Numbers of any type and shape as a label: ids [H,W], or colours uint8 [H,W,3]."""
    ids = values[0] if values.ndim == 3 and len(values) == 1 else values
    ids = ids[..., 0] if ids.ndim == 3 and ids.shape[-1] == 1 else ids
    colors = ids.ndim == 3 and ids.shape[-1] == 3 and ids.dtype == np.uint8 and not (ids.sum(axis=-1) == 1).all()
    if ids.ndim != 2 and not colors:
        axis = 0 if ids.ndim == 3 and ids.shape[0] < ids.shape[-1] else -1
        raise UnusableMaskError(
            f"{path} is an array {list(values.shape)} of {values.dtype}; expected class ids [H,W] (a stack of one mask "
            f"per class becomes ids with array.argmax({axis}))"
        )
    if ids.dtype.kind == "f":
        return _whole_numbers(ids, path, how)
    return ids.astype(np.uint8) if ids.dtype == bool else ids


def _is_lossy_jpeg2000(head: bytes) -> bool:
    """Whether the wavelets of a JPEG 2000 file are those of fractions (9-7), of which rounding loses some.

    The segment COD of the codestream says so: after its mark and 11 bytes, 0; ISO/IEC 15444-1, A.6.1.
    """
    place = head.find(b"\xff\x52", head.find(b"\xff\x4f\xff\x51"))
    return place >= 0 and head[place + 13 : place + 14] == b"\0"


def _is_lossy_webp(stream: BinaryIO) -> bool:
    """Whether any picture in a WebP file is coded with loss: a chunk "VP8 " rather than "VP8L"."""
    place = 12
    while True:
        stream.seek(place)
        chunk = stream.read(8)
        if len(chunk) < 8 or chunk[:4] == b"VP8L":
            return False
        if chunk[:4] == b"VP8 ":
            return True
        # A frame of an animation (ANMF) holds chunks of its own after 16 bytes.
        size = int.from_bytes(chunk[4:], "little")
        place += 8 + (16 if chunk[:4] == b"ANMF" else size + size % 2)
