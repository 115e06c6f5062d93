"""Scientific images as the bytes that networks read: any number of bands, of any type, through a range of values."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from degrid.image import in_rows, is_large, open_image, oriented, read_image, refuse_pages, values_to_bytes
from degrid.raster import TiffHeader, png_in_rows, rasterio_or_none, read_bands, read_reduced, read_rows, tiff_header
from degrid.types import RGB, Bands, UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

PERCENTILES = (0.5, 99.5)
"""Percentiles of the pixels that a range found in the images ends at; values outside it become 0 or 255."""
_REDUCED = 2048
_PIXELS = 1 << 16
"""How many pixels of an image are examined to find a range."""
DIM = 25
"""The highest value, of 255, of images that are nearly black."""
_IN_PARTS = 50_000_000
"""Pixels from which an image that is predicted in windows is read in parts; fewer take up to 0.6 GB of bytes."""
_TILE, PART = 256, 32 << 20
"""Rows that are read at once: a multiple of the first number, of about as many bytes as the second."""
_LUMA = (0.299, 0.587, 0.114)
_PNG_START, _PNG_BITS, _PNG_COLORS = b"\x89PNG\r\n\x1a\n", 24, 25
_DIRECT = ("uint16", "int16", "int32", "float32")
"""Types of a single band that Pillow reads without loss."""


_BANDS_FIRST = 16
"""An array of at most so many rows, and of more columns and bands, has its bands first."""


class Scene(NamedTuple):
    """An image as a network reads it, uint8 [H,W,C], and which pixels hold no data, bool [H,W] (None: all hold some).

    Pixels without data are 0.
    """

    pixels: np.ndarray
    empty: np.ndarray | None = None


def read_scene(path: str | os.PathLike[str], bands: Bands = RGB) -> Scene:
    """An image file as a network reads it, with bands.count channels; "no data" is what a TIFF calls so (GDAL_NODATA).

    Raises:
        UserError: missing, damaged, of a kind that is not read, or of another number of bands.
    """
    no_data = no_data_of(path)
    if bands == RGB and no_data is None and not is_by_values(path):
        return Scene(read_image(path))
    return scene_of(read_values(path), bands, no_data, path)


class LargeScene:
    """A TIFF or PNG of too many pixels to be read at once, which is read from top to bottom; else as `read_scene`.

    A range that depends on the file's values is found in a smaller copy of it.

    Attributes:
        size: height and width, pixels.
        reduced: the copy, no side longer than 2048 pixels.
    Raises:
        UserError: another number of bands; or the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], bands: Bands) -> None:
        header = tiff_header(path)
        size = header.size if header else png_in_rows(path)
        assert size is not None
        refuse_pages(path, header.pages if header else 1)
        self.path, self.no_data, self.size = path, header.no_data if header else None, (size[1], size[0])
        sample = read_reduced(path, _REDUCED)
        self._step = max(1, PART // (size[0] * sample.shape[2] * sample.itemsize * _TILE)) * _TILE
        if bands.range == "file":
            bands = Bands(bands.count, ranges_of([sample]))
        elif bands.range == "bytes" and sample.dtype.name != "uint8":
            fractions = sample.dtype.kind == "f" and sample.max(initial=0) <= 1
            bands = Bands(bands.count, ((0.0, 1.0 if fractions else 65535.0),))
        self.bands = bands
        self.reduced = scene_of(sample, bands, self.no_data, path)

    def rows(self, first: int, last: int) -> Scene:
        """The rows first to last - 1."""
        import numpy as np

        ends = [*range((first // self._step + 1) * self._step, last, self._step), last]
        parts = []
        for start, end in zip([first, *ends], ends, strict=False):
            parts.append(scene_of(read_rows(self.path, start, end), self.bands, self.no_data, self.path))
        if len(parts) == 1:
            return parts[0]
        empty = (
            None if self.no_data is None else np.concatenate([part.empty for part in parts if part.empty is not None])
        )
        return Scene(np.concatenate([part.pixels for part in parts]), empty)


def open_scene(path: str | os.PathLike[str], bands: Bands, memory: int, windows: bool = False) -> Scene | LargeScene:
    """As `read_scene`, but images of any size: with rasterio TIFFs and PNGs part by part, others at once.

    Args:
        memory: bytes that are free.
        windows: it will be predicted in windows: read a TIFF of more than 50 million pixels part by part where that
            gives the same values.
    Raises:
        UserError: see `read_scene`; or an image that is no TIFF takes more memory.
    """
    if _is_for_parts(path, bands, windows) and rasterio_or_none() is not None:
        return LargeScene(path, bands)
    if bands == RGB and no_data_of(path) is None and not is_by_values(path):
        return Scene(read_image(path, memory))
    return read_scene(path, bands)


def _is_for_parts(path: str | os.PathLike[str], bands: Bands, windows: bool) -> bool:
    """Whether an image is so large that it is read part by part, see `open_scene`."""
    header = tiff_header(path)
    if header is not None:
        in_parts = windows and math.prod(header.size) > _IN_PARTS and _is_same_in_parts(header, bands)
        return in_parts or is_large(header.size)
    png = png_in_rows(path)
    in_parts = png is not None and windows and math.prod(png) > _IN_PARTS and bands.range != "file"
    return png is not None and (in_parts or is_large(png))


def _is_same_in_parts(header: TiffHeader, bands: Bands) -> bool:
    """Whether rasterio's parts are those of the whole: no range is found in the values, and Pillow converts nothing."""
    if header.pages > 1:
        return False
    if header.bands > 1 and (header.bits > 8 or header.bands > 4):
        return not isinstance(bands.range, str)
    return header.colors and header.upright and (header.kind, header.bands) == ("uint8", 3) and bands.range != "file"


def scene_of(values: np.ndarray, bands: Bands, no_data: float | None, place: object) -> Scene:
    """Values [H,W,C] through `to_bytes`; pixels without data are 0."""
    pixels, empty = to_bytes(values, bands, place), None
    if no_data is not None:
        empty = without_data(values, no_data)
        pixels[empty] = 0
    return Scene(pixels, empty)


def no_data_of(path: str | os.PathLike[str]) -> float | None:
    """The value that a TIFF calls "no data"; None for another file."""
    header = tiff_header(path) if Path(path).suffix.lower() in (".tif", ".tiff") else None
    return header.no_data if header else None


def without_data(values: np.ndarray, no_data: float) -> np.ndarray:
    """The pixels of [H,W,C] whose bands all have the value for "no data", or are NaN where there is none; [H,W]."""
    import numpy as np

    if math.isnan(no_data):
        same = np.isnan(values)
    else:
        with np.errstate(over="ignore"):
            wanted = np.float32(no_data) if values.dtype == np.float32 else no_data
            same = values == wanted
    found: np.ndarray = same.all(axis=2)
    return found


def is_array(path: str | os.PathLike[str]) -> bool:
    """Whether a file is named like an array of NumPy."""
    return Path(path).suffix.lower() == ".npy"


def is_by_values(path: str | os.PathLike[str]) -> bool:
    """Whether a file is no picture to Pillow, whatever its values are: an array, or a TIFF as of 3 bands of uint16."""
    if is_array(path):
        return True
    header = tiff_header(path) if Path(path).suffix.lower() in (".tif", ".tiff") else None
    return header is not None and header.pages == 1 and _has_other_bands(header)


def _has_other_bands(header: TiffHeader) -> bool:
    """Whether a TIFF holds bands that only rasterio reads."""
    many = header.bands > 1 and (header.bits > 8 or header.bands > 4 or (header.bands == 2 and not header.alpha))
    return many or (header.bands == 1 and header.bits >= 8 and header.kind not in ("uint8", *_DIRECT))


def is_plain(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds grey or colours of 8 bits (with transparency, perhaps), so that `read_image` loses nothing.

    Reads the beginning of the file only; true for one that is missing or damaged.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".jpg", ".jpeg"):
        return True
    if is_array(path):
        return False
    if suffix in (".tif", ".tiff"):
        header = tiff_header(path)
        return header is None or (header.kind.startswith("uint") and header.bits <= 8 and not _has_other_bands(header))
    start = _start(path)
    return not start.startswith(_PNG_START) or start[_PNG_BITS] <= 8


def is_dim(image: str | os.PathLike[str] | Image.Image, bands: Bands, pixels: np.ndarray) -> bool:
    """Whether a network sees an image of more than 8 bits nearly black, since it was trained without a range.

    Args:
        image: a file, or what Pillow made of it.
        pixels: as the network sees it, uint8 [H,W,C].
    """
    if bands.range != "bytes" or int(pixels.max(initial=0)) > DIM:
        return False
    return not is_plain(image) if isinstance(image, str | os.PathLike) else image.mode[0] in "IF"


DIM_SENTENCE = (
    "since the model has no range and values are divided by 257; train it with model.range, or save them as 8 bits"
)
"""Why images look dim to a network, and what to do."""


def read_values(path: str | os.PathLike[str], size: tuple[int, ...] | None = None) -> np.ndarray:
    """The bands of an image file as they are stored, [H,W,C] of any type of numbers; [H,W] of a .npy file is one band.

    Colours of 16 bits, and TIFFs of many bands, are read through rasterio. Transparency of a PNG of 16 bits is dropped.

    Args:
        size: height and width of the label: an image stored sideways is turned by its EXIF orientation unless only
            the unturned image has this size.
    Raises:
        UserError: missing, damaged, or of a kind that is not read.
    """
    import numpy as np

    if is_array(path):
        return _read_array(path)
    header, start = tiff_header(path), _start(path)
    refuse_pages(path, header.pages if header else 1)
    other = header is not None and _has_other_bands(header)
    deep = start.startswith(_PNG_START) and start[_PNG_BITS] == 16 and start[_PNG_COLORS] in (2, 4, 6)
    if other or deep:
        found = np.moveaxis(read_bands(path), 0, -1)
        if found.dtype.kind == "c":
            raise UserError(f"{path} holds complex numbers, which no network reads: save np.abs of them, or both parts")
        return found[..., : {4: 1}.get(start[_PNG_COLORS], 3)] if deep else found
    return values_of(oriented(open_image(path), size))


def values_of(image: Image.Image) -> np.ndarray:
    """The bands of a PIL image, [H,W,C]: 1 for grey, 4 for colours with transparency, else 3."""
    import numpy as np

    if image.mode in ("1", "LA", "La"):
        image = image.convert("L")
    if image.mode in ("L", "F") or image.mode.startswith("I"):
        return np.asarray(image)[..., None]
    if image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return np.asarray(image)


def _read_array(path: str | os.PathLike[str]) -> np.ndarray:
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a NumPy array that can be read: {error}") from error
    if not isinstance(found, np.ndarray) or found.ndim not in (2, 3) or found.dtype.kind not in "buif":
        kind = f"{list(found.shape)} of {found.dtype}" if isinstance(found, np.ndarray) else "several arrays"
        raise UserError(f"{path} holds {kind}; expected numbers [H,W] or [H,W,C], channels last")
    if found.ndim == 3 and found.shape[0] <= _BANDS_FIRST < min(found.shape[1:]):
        raise UserError(
            f"{path} is an array {list(found.shape)}, which seems to have its channels first: save "
            "array.transpose(1, 2, 0), which is [H,W,C]"
        )
    return found[..., None] if found.ndim == 2 else found


def _start(path: str | os.PathLike[str]) -> bytes:
    """The first 32 bytes, padded with zeros; all zeros if there is no such file."""
    start = b""
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        start = stream.read(32)
    return start.ljust(32, b"\0")


def to_bytes(values: np.ndarray, bands: Bands, place: object) -> np.ndarray:
    """Values [H,W,C] as uint8 [H,W,bands.count]: grey for every channel, colours as grey, and through the range.

    Values that are no numbers become 0.

    Args:
        place: what messages call the image.
    Raises:
        UserError: another number of bands.
    """
    import numpy as np

    if bands.range == "bytes":
        plain = values.shape[2] == 1 and values.dtype != np.uint8  # repeated later, as bytes
        pixels = _with_channels(values_to_bytes(values) if plain else values, bands.count, place)
        return np.array(pixels if pixels.dtype == np.uint8 else values_to_bytes(pixels), order="C")
    if bands.range == "file":
        pairs = ranges_of([_with_channels(thinned(values), bands.count, place)])
    else:
        assert not isinstance(bands.range, str)
        pairs = bands.range
    if len(pairs) not in (1, bands.count):
        raise UserError(f"model.range: expected 1 pair of values or {bands.count}, one per channel; got {len(pairs)}")
    low, high = (np.array(side, np.float64) for side in zip(*pairs, strict=True))
    low, high = low.astype(np.float32), high.astype(np.float32)
    found = np.empty((*values.shape[:2], bands.count), np.uint8)
    for rows in in_rows(values):
        pixels = _with_channels(values[rows], bands.count, place).astype(np.float32)
        scaled = (np.clip(pixels, low, high) - low) * (255 / np.maximum(high - low, 1e-30))
        found[rows] = np.rint(np.nan_to_num(scaled, nan=0.0))
    return found


def _with_channels(values: np.ndarray, count: int, place: object) -> np.ndarray:
    import numpy as np

    found = values.shape[2]
    if found == count:
        return values
    if found == 1:
        return np.repeat(values, count, axis=2)
    if (found, count) == (4, 3):  # transparency
        return values[..., :3]
    if found in (3, 4) and count == 1:
        grey: np.ndarray = np.dot(values[..., :3].astype(np.float32, order="C"), np.array(_LUMA, np.float32))[..., None]
        return np.rint(grey).astype(values.dtype) if values.dtype.kind in "iu" else grey
    raise UserError(
        f"{place} has {found} bands; expected {count}: the network's input has as many channels as the images that it "
        "was trained on (model.in_channels)"
    )


def thinned(values: np.ndarray) -> np.ndarray:
    """Pixels of an image [H,W,C], evenly spread over it, that are enough to find a range."""
    step = max(1, math.isqrt(values.shape[0] * values.shape[1] // _PIXELS))
    return values[::step, ::step].copy()


def ranges_of(pictures: list[np.ndarray]) -> tuple[tuple[float, float], ...]:
    """The values of each band between which nearly all pixels of the pictures [H,W,C] lie (see `PERCENTILES`).

    Values that are no numbers do not count; (0, 1) for a band without any.
    """
    import numpy as np

    found = []
    for band in range(pictures[0].shape[2]):
        values = np.concatenate([thinned(picture[..., band : band + 1]).ravel() for picture in pictures])
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, PERCENTILES) if values.size else (0.0, 1.0)
        found.append((float(f"{low:.6g}"), float(f"{high:.6g}")))
    return tuple(found)


def find_bands(pictures: list[np.ndarray], wanted: Bands) -> tuple[Bands, str]:
    """What is not said about the bands, from pictures [H,W,C] that were read by `read_values`, and a sentence on it.

    Without more said, 1 or 3 bands give 3 channels, other images as many as they have. 8-bit images keep their values,
    and so do images of 16 bits or of fractions whose values reach the upper half of what they can hold; for others the
    range is found in the images.

    Args:
        pictures: a sample of the data; not empty.
        wanted: with count 0, range "auto", or both, to be found.
    Raises:
        UserError: the pictures differ in their number of bands.
    """
    count = _count_of(pictures, wanted.count)
    if wanted.range != "auto":
        return Bands(count, wanted.range), ""
    kinds = sorted({picture.dtype.name for picture in pictures})
    if "uint8" in kinds:
        return Bands(count, "bytes"), _mixed(kinds)
    grey = all(picture.shape[2] == 1 for picture in pictures)
    pictures = pictures if grey else [_with_channels(picture, count, "an image") for picture in pictures]
    pairs = ranges_of(pictures)
    if _is_full(pictures, pairs):
        return Bands(count, "bytes"), ""
    shown = ", ".join(f"{low:g} to {high:g}" for low, high in pairs[:4]) + (", .." if len(pairs) > 4 else "")
    each = " of each channel" if len(pairs) > 1 else ""
    return Bands(count, pairs), (
        f"images of {' and '.join(kinds)}: the values {shown}{each} become 0 to 255 (between them lie "
        f"{PERCENTILES[1] - PERCENTILES[0]:g} % of the pixels; model.range gives others)"
    )


class MixedBandsError(UserError):
    """Images of different numbers of bands. commonest: the number that most of them have."""

    def __init__(self, counts: list[int]) -> None:
        self.commonest = max(set(counts), key=counts.count)
        super().__init__(
            f"the images have {' or '.join(map(str, sorted(set(counts))))} bands; expected the same number in all: "
            "leave some images out, or store the bands that all have"
        )


def _count_of(pictures: list[np.ndarray], wanted: int) -> int:
    """Channels of pictures [H,W,C], with grey counted as colours; or `wanted`, if that is not 0."""
    counts = [picture.shape[2] for picture in pictures]
    found = wanted or next((count for count in sorted(counts) if count != 1), 3)
    if not wanted and not {*counts} <= {1, found}:
        raise MixedBandsError(counts)
    return found


def _mixed(kinds: list[str]) -> str:
    if len(kinds) == 1:
        return ""
    return f"images are of {' and '.join(kinds)}, and are read as bytes; model.range gives all the same range"


def _is_full(pictures: list[np.ndarray], pairs: tuple[tuple[float, float], ...]) -> bool:
    """Whether values reach the upper half of 16 bits, or of fractions, and never leave them."""
    full = 1.0 if all(picture.dtype.kind == "f" for picture in pictures) else 65535.0
    largest = max(picture.max(initial=0) for picture in pictures)
    return min(low for low, _ in pairs) >= 0 and full / 2 <= max(high for _, high in pairs) and bool(largest <= full)
