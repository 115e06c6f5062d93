"""What a TIFF file says about its values, and its bands as they are stored, through rasterio."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from degrid.types import UserError

if TYPE_CHECKING:
    import numpy as np

TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first four bytes of a TIFF, the last two of a BigTIFF."""

# Tags of TIFF 6.0, and GDAL's own.
_KIND_OF_PAGE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_TEXT, _STRIPS, _ORIENTATION = 270, 273, 274
_BANDS, _TILES, _SAMPLE_FORMAT, _SCALE, _TIE_POINT, _TRANSFORM, _NO_DATA = 277, 324, 339, 33550, 33922, 34264, 42113
_ROWS_OF_STRIP, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA_BANDS, _GEO_KEYS = 278, 284, 322, 323, 338, 34735
_TAGS = {254, 256, 257, 258, 259, 262, 270, 273, 274, 277, 278, 284, 322, 323, 324, 338, 339}
_TAGS |= {33550, 33922, 34264, 34735, 42113}
_SYSTEMS = (3072, 2048)
"""GeoTIFF's keys of a coordinate system, in metres and in degrees."""
_LARGEST_SYSTEM = 32766  # larger numbers, and 0, are no EPSG codes
_TYPES = {1: "B", 2: "c", 3: "H", 4: "I", 12: "d", 13: "I", 16: "Q", 18: "Q"}  # TIFF's numbers, as in `struct`
_REDUCED_OR_MASK = 0b101  # a page that is a smaller copy of another (an overview), or its transparency
_MOST_PAGES = 4096
CACHE = 64 << 20
"""Bytes of decoded tiles that GDAL keeps; a twentieth of the memory without it."""
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_GREY = (0, 3)
"""Colour types of one band: grey and indices of a palette."""
_TURNED = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_LONG_TEXT = 1 << 16  # ImageJ's is short
_LETTERS = {1: "uint", 2: "int", 3: "float", 5: "complexint", 6: "complex"}


@dataclass(frozen=True)
class TiffHeader:
    """What the tags of a TIFF say.

    Attributes:
        size: width and height, pixels.
        bands: values per pixel.
        kind: of the values, such as "uint8" or "float32"; "uint4" for four bits.
        bits: per value.
        white_is_zero: 0 is white (PhotometricInterpretation 0); readers that show pictures turn such values round.
        colors: the first three bands are red, green and blue.
        by_luma: the bands are brightness and two differences of colour (YCbCr), as JPEG stores pictures.
        compression: the number of its scheme (tag 259).
        pages: images of full size, without overviews and transparency masks; those of a stack of ImageJ's have the tags
            of one.
        no_data: the value of pixels without data (GDAL_NODATA, tag 42113), or None.
        sparse: parts are not stored (GDAL's SPARSE_OK) and stand for no data, or 0.
        on_map: it says where on a map its pixels lie (GeoTIFF).
        corners: x and y on the map of its first and last corner; None where it lies askew, or does not say so.
        system: the EPSG code of the map's coordinate system; 0 where it does not say it so.
        upright: its first row is the top one, from left to right (Orientation 1).
        complete: it lists as many strips or tiles as an image of its size has; of those that it does not list, GDAL
            reads zeros.
        alpha: the band after those of grey or colours is transparency.
    """

    size: tuple[int, int]
    bands: int
    kind: str
    bits: int
    white_is_zero: bool
    colors: bool
    compression: int
    pages: int
    no_data: float | None
    sparse: bool
    on_map: bool = False
    corners: tuple[float, float, float, float] | None = None
    system: int = 0
    upright: bool = True
    complete: bool = True
    alpha: bool = False
    by_luma: bool = False

    def __str__(self) -> str:
        """Such as "3 bands of uint16"."""
        return f"{self.bands} {'bands' if self.bands > 1 else 'band'} of {self.kind}"


def tiff_header(path: str | os.PathLike[str]) -> TiffHeader | None:
    """The header of a TIFF; None for any other file, and for one that is damaged or missing."""
    try:
        with open(path, "rb") as stream:
            mark = stream.read(4)
            return _header(stream, "<" if mark[0] == 73 else ">", 43 in mark) if mark in TIFF_MARKS else None
    except (OSError, ValueError, IndexError, struct.error):
        return None


def is_tiff(path: str | os.PathLike[str]) -> bool:
    """Whether a file is called as TIFFs are."""
    return os.fspath(path).lower().endswith((".tif", ".tiff"))


def png_in_rows(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Width and height of a PNG whose rows follow one another: grey, with a palette, or of 8 bits in colours, and not
    said to lie turned; None for any other file."""
    with contextlib.suppress(OSError, struct.error), open(path, "rb") as stream:
        head = stream.read(len(_PNG))
        head += stream.read(1 << 16) if head == _PNG else b""
        width, height, bits, colors, _, _, interlaced = struct.unpack(">IIBBBBB", head[16:29])
        before = head[: head.find(b"IDAT")]
        turned = b"IDAT" not in head or any(mark in before for mark in _TURNED)
        if (colors in _PNG_GREY or bits == 8) and not interlaced and not turned:
            return width, height
    return None


def _header(stream: BinaryIO, order: str, big: bool) -> TiffHeader | None:
    first: dict[int, tuple[Any, ...]] = {}
    pages, seen = 0, set[int]()
    stream.seek(8 if big else 4)
    (place,) = struct.unpack(order + ("Q" if big else "I"), stream.read(8 if big else 4))
    while place and place not in seen and len(seen) < _MOST_PAGES:
        seen.add(place)
        tags, place = _directory(stream, order, big, place)
        pages += not tags.get(_KIND_OF_PAGE, (0,))[0] & _REDUCED_OR_MASK
        first = first or tags
    if not first:
        return None
    bits = first.get(_BITS, (1,))[0]
    no_data = None
    with contextlib.suppress(ValueError):
        no_data = float(b"".join(first.get(_NO_DATA, ())).strip(b"\0 "))
    return TiffHeader(
        size=(first.get(_WIDTH, (0,))[0], first.get(_HEIGHT, (0,))[0]),
        bands=first.get(_BANDS, (1,))[0],
        kind=f"{_LETTERS.get(first.get(_SAMPLE_FORMAT, (1,))[0], 'uint')}{bits}",
        bits=bits,
        white_is_zero=first.get(_PHOTOMETRIC) == (0,),
        colors=first.get(_PHOTOMETRIC) == (2,),
        compression=first.get(_COMPRESSION, (1,))[0],
        pages=max(pages, _stack(first)),
        no_data=no_data,
        sparse=0 in first.get(_STRIPS, first.get(_TILES, ())),
        on_map=_SCALE in first or _TRANSFORM in first,
        corners=_corners(first),
        system=_system(first),
        upright=first.get(_ORIENTATION, (1,))[0] == 1,
        complete=_is_complete(first),
        alpha=first.get(_EXTRA_BANDS, (0,))[0] in (1, 2),
        by_luma=first.get(_PHOTOMETRIC) == (6,),
    )


def _corners(tags: dict[int, tuple[Any, ...]]) -> tuple[float, float, float, float] | None:
    """See `TiffHeader`; GeoTIFF 1.1, B.6: a matrix; or a point of the image, and the size of a pixel (y goes up)."""
    width, height = (tags.get(tag, (0,))[0] for tag in (_WIDTH, _HEIGHT))
    scale, point, matrix = (tags.get(tag, ()) for tag in (_SCALE, _TIE_POINT, _TRANSFORM))
    if len(matrix) == 16 and not matrix[1] and not matrix[4]:
        left, top, right, down = matrix[3], matrix[7], matrix[0], matrix[5]
    elif len(scale) >= 2 and len(point) == 6:
        right, down = scale[0], -scale[1]
        left, top = point[3] - point[0] * right, point[4] - point[1] * down
    else:
        return None
    return left, top, left + width * right, top + height * down


def _system(tags: dict[int, tuple[Any, ...]]) -> int:
    """See `TiffHeader`; GeoTIFF 1.1, 7.1: after four numbers, each key with its place (0: here), count and value."""
    keys = tags.get(_GEO_KEYS, ())[4:]
    said = {key: value for key, place, value in zip(keys[::4], keys[1::4], keys[3::4], strict=False) if place == 0}
    return next((code for key in _SYSTEMS if 0 < (code := said.get(key, 0)) <= _LARGEST_SYSTEM), 0)


def _is_complete(tags: dict[int, tuple[Any, ...]]) -> bool:
    """See `TiffHeader`."""
    listed = tags.get(_STRIPS, tags.get(_TILES))
    if listed is None:
        return True
    width, height = (max(1, tags.get(tag, (0,))[0]) for tag in (_WIDTH, _HEIGHT))
    wide, tall = width, tags.get(_ROWS_OF_STRIP, (height,))[0]
    if _TILE_WIDTH in tags:
        wide, tall = tags.get(_TILE_WIDTH, (width,))[0], tags.get(_TILE_HEIGHT, (height,))[0]
    planes = tags.get(_BANDS, (1,))[0] if tags.get(_PLANAR) == (2,) else 1
    needed: int = math.ceil(width / max(1, wide)) * math.ceil(height / max(1, tall)) * planes
    return len(listed) >= needed


def _stack(tags: dict[int, tuple[Any, ...]]) -> int:
    """How many images of one size follow each other in an ImageJ file, by its description."""
    found = re.match(rb"ImageJ=.*?^images=(\d+)", b"".join(tags.get(_TEXT, ())), re.DOTALL | re.MULTILINE)
    return int(found[1]) if found else 1


def _directory(stream: BinaryIO, order: str, big: bool, place: int) -> tuple[dict[int, tuple[Any, ...]], int]:
    """The relevant tags of a page, and where the next page begins (0: nowhere)."""
    count, entry, word = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    count_bytes, entry_bytes, word_bytes = (struct.calcsize(f"{order}{each}") for each in (count, entry, word))
    room = stream.seek(0, os.SEEK_END)
    stream.seek(place)
    (number,) = struct.unpack(order + count, stream.read(count_bytes))
    table = stream.read(min(number * entry_bytes, room))
    (following,) = struct.unpack(order + word, stream.read(word_bytes))
    tags = {}
    for tag, kind, length, value in struct.iter_unpack(order + entry, table):
        fitting = "c" if tag in (_TEXT, _NO_DATA) else "d" if tag in (_SCALE, _TIE_POINT, _TRANSFORM) else "BHIQ"
        if tag not in _TAGS or _TYPES.get(kind, "-") not in fitting or (tag == _TEXT and length > _LONG_TEXT):
            continue
        form = f"{order}{length}{_TYPES[kind]}"
        size = struct.calcsize(form)
        if size > room:
            raise ValueError(f"a tag of {size} bytes in a file of {room}")
        if size > word_bytes:
            stream.seek(struct.unpack(order + word, value)[0])
            value = stream.read(size)
        tags[tag] = struct.unpack(form, value[:size])
    return tags, following


def read_bands(path: str | os.PathLike[str]) -> np.ndarray:
    """All bands of a TIFF as they are stored, [C,H,W], of any type, through rasterio.

    Raises:
        UserError: rasterio is not installed, or cannot read the file, or parts of it are missing.
    """
    _refuse_incomplete(path)
    with _opened(path) as opened:
        values: np.ndarray = opened.read()
    return values


def _refuse_incomplete(path: str | os.PathLike[str]) -> None:
    """GDAL reads zeros instead of missing parts, which takes minutes if the header claims a huge image."""
    header = tiff_header(path)
    if header is not None and not header.complete:
        raise UserError(
            f"{path} is damaged or cut short: it lists fewer strips or tiles than an image of "
            f"{header.size[0]}x{header.size[1]} pixels has"
        )


def read_rows(path: str | os.PathLike[str], first: int, last: int) -> np.ndarray:
    """Rows of a TIFF or PNG, first to last - 1, as they are stored: [rows,W,C].

    Raises:
        UserError: see `read_bands`.
    """
    with _opened(path) as opened:
        values: np.ndarray = opened.read(window=((first, last), (0, opened.width)))
        shown = _as_shown(opened, values)
    return shown.transpose(1, 2, 0)


def read_reduced(path: str | os.PathLike[str], side: int) -> np.ndarray:
    """A TIFF or PNG made smaller, no side longer than `side` pixels: of each part one pixel as it is, [h,w,C].

    Raises:
        UserError: see `read_bands`.
    """
    _refuse_incomplete(path)
    with _opened(path) as opened:
        factor = max(1.0, opened.height / side, opened.width / side)
        size = (opened.count, max(1, int(opened.height / factor)), max(1, int(opened.width / factor)))
        values: np.ndarray = opened.read(out_shape=size)
        shown = _as_shown(opened, values)
    return shown.transpose(1, 2, 0)


def _as_shown(opened: Any, values: np.ndarray) -> np.ndarray:
    """Values [C,H,W] of a file that rasterio opened as Pillow gives them: indices as the colours of their palette, grey
    of fewer than 8 bits in a PNG from 0 to 255, grey without its transparency."""
    import numpy as np

    kinds = [kind.name for kind in opened.colorinterp]
    if kinds == ["palette"]:
        table = np.zeros((256, 3), np.uint8)
        for index, color in opened.colormap(1).items():
            table[index % 256] = color[:3]
        colors: np.ndarray = table[values[0]].transpose(2, 0, 1)
        return colors
    bits = opened.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    if opened.driver == "PNG" and bits:
        values = (values * np.uint8(255 // ((1 << int(bits)) - 1))).astype(np.uint8)
    return values[:1] if kinds == ["gray", "alpha"] else values


@contextlib.contextmanager
def _placed_or_not(rasterio: Any) -> Iterator[None]:
    """Silences the warning about files without a transform."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A file opened by rasterio, whose errors become ours."""
    rasterio = rasterio_or_none()
    if rasterio is None:
        raise UserError(
            f"{path} holds {tiff_header(path) or '16-bit colours'}, which is read with rasterio: pip install "
            "degrid[geo], or save it as PNG of 8 bits"
        )
    with _placed_or_not(rasterio), rasterio.Env(GDAL_CACHEMAX=CACHE):
        try:
            with rasterio.open(path) as opened:
                yield opened
        except (rasterio.errors.RasterioError, OSError) as error:
            raise UserError(f"{path} holds {tiff_header(path)}, and rasterio cannot read it: {error}") from error


@functools.cache
def rasterio_or_none() -> Any:
    """The library, or None where it is not installed."""
    try:
        import rasterio
    except ImportError:
        return None
    return rasterio


def is_on_map(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a GeoTIFF, and `write_map` can write another one for the same place."""
    header = tiff_header(path)
    return header is not None and header.on_map and rasterio_or_none() is not None


def write_map(path: str | os.PathLike[str], ids: np.ndarray, colors: np.ndarray, place: object, software: str) -> None:
    """Write class ids, uint8 [H,W], as a GeoTIFF in tiles with a palette; 255 is "no data".

    Args:
        colors: by id, uint8 [256,3].
        place: a GeoTIFF of the same size, whose coordinate system and transform the file gets.
        software: what it says that it was written by.
    """
    rasterio = rasterio_or_none()
    with _opened(str(place)) as model:
        profile = {"crs": model.crs, "transform": model.transform, "height": ids.shape[0], "width": ids.shape[1]}
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "bigtiff": "if_safer"}
    kind = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 255}
    with _placed_or_not(rasterio), rasterio.open(path, "w", **kind, **tiles, **profile) as opened:
        opened.write_colormap(1, {value: (*map(int, color), 255) for value, color in enumerate(colors)})
        opened.update_tags(TIFFTAG_SOFTWARE=software)
        opened.write(ids, 1)
