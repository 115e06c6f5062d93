"""Image files: reading any of them as RGB pixels, and class ids as a palette PNG or as an overlay."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from degrid.raster import TIFF_MARKS, is_tiff, tiff_header
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_SUFFIXES = ".jpg .jpeg .jfif .png .bmp .gif .tif .tiff .webp .ppm .pgm .pnm .jp2 .avif"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
"""Endings of the files that count as images, in lower case."""

_WEBP_IN_TIFF = 50001  # the number of a compression scheme
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_ORIENTED = (b"Exif\0", b"tiff:Orientation")
"""A JPEG that states its orientation, as EXIF or as XMP, contains one of these."""


_PART = 1 << 20
"""Number of values of an array that are processed at a time."""
_BYTES_PER_PIXEL = 12
"""Bytes that a pixel takes while an image is decoded, copied into an array, predicted and shown with its classes."""


class UnreadKindError(UserError):
    """A sound image of a kind that Pillow does not read, such as a TIFF with five bands."""


def open_image(path: str | os.PathLike[str], memory: int | None = None) -> Image.Image:
    """Decode a file completely.

    Args:
        memory: bytes that an image too large to be one may take, with what is made of it; None: refuse it.
    Raises:
        UserError: missing, not an image, of a kind that Pillow does not read, cut short, or too large to be one image.
    """
    with _damage_explained(path), _Bounded(io.FileIO(path)) as stream:
        opened = _identify(stream, path, memory)
        with _without_warning(opened.size):
            opened.load()
        if opened.format != "GIF":
            return opened
        refuse_pages(path, _pages(opened))
        return opened.copy()


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height as stored; the pixels are not decoded.

    Raises:
        UserError: see `open_image`; damage further on in the file is not noticed.
    """
    with _damage_explained(path), _Bounded(io.FileIO(path)) as stream:
        return _identify(stream, path, None).size


@contextlib.contextmanager
def _damage_explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Report a missing or damaged file, whatever error the decoder raises.

    Raises:
        UserError: it is.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UserError(f"no such image: {path}") from error
    except Exception as error:  # AVIF's decoder has RuntimeError, GIF's later frames DecompressionBombError, ...
        raise UserError(f"{path} is damaged or cut short: {error}") from error


class _Bounded(io.BufferedReader):
    """A file that allocates no more than its size, even if damaged bytes claim that gigabytes follow."""

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.BufferedReader`."""
        return super().read(size if size is None or size < 0 else min(size, os.fstat(self.fileno()).st_size))


def _identify(stream: BinaryIO, path: str | os.PathLike[str], memory: int | None) -> Image.Image:
    """An image whose pixels are not read yet.

    As `PIL.Image.open`, which warns of images above half the size that it refuses; that is no concern of the user's.

    Raises:
        UnreadKindError: a TIFF that Pillow does not read.
        UserError: of no known kind, or too large.
    """
    from PIL import Image

    start, name, tried = stream.read(16), os.fsdecode(path), 0
    header = tiff_header(path) if start.startswith(TIFF_MARKS) else None
    if start.startswith(TIFF_MARKS) and header is None:
        raise UserError(f"{path} is damaged or cut short: the tags of a TIFF are missing")
    refuse_pages(path, header.pages if header else 1)
    # Pillow would read the beginning of the file for the missing parts, and call the other kind damaged.
    if header and (header.sparse or header.compression == _WEBP_IN_TIFF):
        how = "leaves out its empty parts (SPARSE_OK of GDAL)" if header.sparse else "is a TIFF compressed as WebP"
        raise UnreadKindError(f'{path} {how}, and is not read as a picture: rewrite it with "gdal_translate"')
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        kinds = Image.ID[tried:]
        tried = len(Image.ID)
        for kind in kinds:
            factory, accept = Image.OPEN[kind]
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
                accepted = accept is None or accept(start)
                if accepted and not isinstance(accepted, str):
                    stream.seek(0)
                    opened = factory(stream, name)
                    _refuse_size(opened.size, path, memory)
                    return opened
    if header:
        raise UnreadKindError(
            f"{path} holds {header}, which is not read as a picture: save it with 3 bands of 8 bits, or with 1 band of "
            "8 or 16 bits"
        )
    raise UserError(f"{path} is not an image that can be read ({Path(path).stat().st_size} bytes)")


def refuse_pages(name: object, pages: int) -> None:
    """Refuse a file of several pictures, of which one would be read in silence.

    Raises:
        UnreadKindError: there are several.
    """
    if pages > 1:
        raise UnreadKindError(f"{name} holds {pages} pages, and a picture is one: save each as a file of its own")


def _pages(image: Image.Image) -> int:
    """How many pictures a film holds; 1 for a photograph with a smaller one beside it (MPO)."""
    return getattr(image, "n_frames", 1) if image.format in ("GIF", "PNG", "WEBP", "AVIF") else 1


def _without_warning(size: tuple[int, int]) -> contextlib.AbstractContextManager[Any]:
    """Reading a TIFF warns once more of images above half the size that is refused."""
    from PIL import Image

    if math.prod(size) <= (Image.MAX_IMAGE_PIXELS or math.inf):
        return contextlib.nullcontext()  # changing the filters of warnings shows earlier ones again
    return warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)


def is_large(size: tuple[int, ...]) -> bool:
    """Whether an image of this size is more than Pillow takes for one image: twice its MAX_IMAGE_PIXELS."""
    from PIL import Image

    return math.prod(size) > 2 * (Image.MAX_IMAGE_PIXELS or math.inf)


def _refuse_size(size: tuple[int, int], path: str | os.PathLike[str], memory: int | None) -> None:
    from PIL import Image

    limit, pixels = 2 * (Image.MAX_IMAGE_PIXELS or math.inf), math.prod(size)
    if memory is not None and is_large(size):
        if _BYTES_PER_PIXEL * pixels > memory:
            raise UserError(
                f"{path} has {size[0]}x{size[1]} pixels, which takes {_BYTES_PER_PIXEL * pixels / 2**30:.1f} GiB to "
                f"decode; {memory / 2**30:.1f} GiB are free. A TIFF in tiles is read part by part: "
                '"gdal_translate -co TILED=YES" makes one'
            )
    elif is_large(size):
        millions = f"{pixels / 1e6:,.0f} million pixels; up to {limit / 1e6:,.0f} million are read as one image"
        raise UserError(
            f'{path} has {size[0]}x{size[1]} = {millions}: cut it into tiles ("gdal_retile.py -ps 4096 4096" does)'
        )


def read_image(path: str | os.PathLike[str], memory: int | None = None) -> np.ndarray:
    """An image file as RGB, uint8 [H,W,3], rotated according to its EXIF orientation.

    Grey becomes three equal channels, 16-bit values are divided by 257, fractions from 0 to 1 are multiplied by 255,
    transparency is dropped, CMYK is converted.

    Args:
        memory: see `open_image`.
    Raises:
        UserError: see `open_image`; or a film.
    """
    pixels = read_jpeg(path)
    return to_array(open_image(path, memory)) if pixels is None else pixels


def read_jpeg(path: str | os.PathLike[str], luma: bool = False) -> np.ndarray | None:
    """An upright colour JPEG, as `read_image` gives it, in four fifths of the time if simplejpeg is installed.

    Args:
        luma: give its brightness, uint8 [H,W,1], in half of the time. The whole file is decoded nevertheless: what is
            damaged is noticed.
    Returns:
        uint8 [H,W,3]; None for any other file and for a damaged one, which Pillow reads as far as it can or explains.
    """
    if _simplejpeg() is None or Path(path).suffix.lower() not in (".jpg", ".jpeg"):
        return None
    try:
        return decode_jpeg(Path(path).read_bytes(), luma)
    except OSError:
        return None


def decode_jpeg(data: bytes, luma: bool = False) -> np.ndarray | None:
    """The bytes of an upright colour JPEG decoded; see `read_jpeg`."""
    library = _simplejpeg()
    if library is None:
        return None
    from PIL import Image

    try:
        height, width, colors, _ = library.decode_jpeg_header(data)
        head = data[: _start_of_scan(data)]
        turned = any(mark in head for mark in _ORIENTED)
        turned = turned and Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION, 1) != 1
        if turned or colors not in ("YCbCr", "RGB") or height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
            return None
        pixels: np.ndarray = library.decode_jpeg(data, "GRAY" if luma else "RGB")
    except (OSError, SyntaxError, ValueError):
        return None
    return pixels


def _start_of_scan(data: bytes) -> int:
    """Where the pixels of a JPEG begin, after all segments that describe them (ITU-T T.81, B.1.1)."""
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] not in (b"", b"\xff", b"\xda"):
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return place if data[place : place + 2] == b"\xff\xda" else len(data)


@functools.cache
def _simplejpeg() -> Any:
    """The library, or None."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def to_array(image: Image.Image) -> np.ndarray:
    """RGB pixels of a PIL image, uint8 [H,W,3]; see `read_image` for the other kinds."""
    import numpy as np

    refuse_pages(getattr(image, "filename", "") or "the image", _pages(image))
    image = oriented(image)
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(values_to_bytes(np.asarray(image))[..., None], 3, axis=2)
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, PIL would warn
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))  # convert() would always copy


def exif_orientation(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """The EXIF orientation of a file (1 is upright), and its width and height as stored, read from its beginning.

    Upright for a TIFF, which Pillow turns itself; upright and zeros for a file that is missing or damaged, and for a
    TIFF of more bands than Pillow reads, of which it would complain on stderr.
    """
    from PIL import Image

    header = tiff_header(path) if is_tiff(path) else None
    if header and header.bands > _MOST_BANDS_OF_PILLOW:
        return 1, 0, 0
    try:
        with Image.open(path) as image:
            turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1)
            return (turned if turned in range(1, 9) else 1), image.width, image.height
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 1, 0, 0


_MOST_BANDS_OF_PILLOW = 6


def oriented(image: Image.Image, size: tuple[int, ...] | None = None) -> Image.Image:
    """An image turned by its EXIF orientation, unless `size`, a height and width, is that of the unturned one alone."""
    from PIL import ImageOps

    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    fits = size is None or (turned.height, turned.width) == tuple(size) or (image.height, image.width) != tuple(size)
    return turned if fits else image


def in_rows(values: np.ndarray) -> Iterator[slice]:
    """The rows of an array [H,..], about a million values at a time: what is made of these takes little memory."""
    rows = max(1, _PART // max(1, math.prod(values.shape[1:])))
    return (slice(first, first + rows) for first in range(0, len(values), rows))


def values_to_bytes(values: np.ndarray) -> np.ndarray:
    """Values of another range as 0-255: floats up to 1 as fractions, wide integers as 16 bits; NaN as 0."""
    import numpy as np

    parts = (values[rows] for rows in in_rows(values))
    highest = max((part.max(initial=0, where=np.isfinite(part)) for part in parts), default=0)
    if values.dtype.kind == "f" and highest <= 1:
        scale = 255.0
    elif (values.dtype.kind == "u" and values.dtype.itemsize == 2) or highest > 255:
        scale = 1 / 257
    else:
        scale = 1.0
    found = np.empty(values.shape, np.uint8)
    for rows in in_rows(values):
        part = values[rows]
        if values.dtype.kind == "f":
            part = np.where(np.isnan(part), part.dtype.type(0), part)
        found[rows] = np.clip(np.rint(part * scale), 0, 255)
    return found


def palette_image(ids: np.ndarray, labels: LabelSpace) -> Image.Image:
    """Class ids, uint8 [H,W], as an 8-bit palette image: its values are the ids, its palette is `color_table`."""
    import numpy as np
    from PIL import Image

    size = ids.shape[1], ids.shape[0]
    image = Image.frombuffer("P", size, np.ascontiguousarray(ids), "raw", "P", 0, 1)  # not copied: it may be large
    image.putpalette(color_table(labels).tobytes())
    return image


def as_rgb(image: np.ndarray) -> np.ndarray:
    """An image uint8 [H,W,C] to look at, uint8 [H,W,3]: its first three bands, or its first as grey if it has fewer."""
    import numpy as np

    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def overlay_classes(image: np.ndarray, ids: np.ndarray, labels: LabelSpace, alpha: float = 0.55) -> np.ndarray:
    """The image, uint8 [H,W,3], with the colours of its ids, uint8 [H,W], laid over with weight `alpha`, 0 to 1.

    Void pixels stay as they are.
    """
    import numpy as np
    from PIL import Image

    weight = np.full(256, round(255 * alpha), np.uint8)
    weight[IGNORE_INDEX] = 0
    mixed = np.empty_like(image)
    for rows in in_rows(image):
        colors, opacity = palette_image(ids[rows], labels).convert("RGB"), Image.fromarray(weight[ids[rows]])
        mixed[rows] = Image.composite(colors, Image.fromarray(image[rows]), opacity)
    return mixed


def color_table(labels: LabelSpace) -> np.ndarray:
    """Colours by id, uint8 [256,3]: the classes', black for ids without a class, light grey for void."""
    import numpy as np

    table = np.zeros((256, 3), np.uint8)
    table[: len(labels)] = labels.colors
    table[IGNORE_INDEX] = (224, 224, 224)
    return table
