"""Label images of every kind, many written by hand: no library writes them all, and some change the values."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from test_data_faults import png

FORMATS = {"u": 1, "i": 2, "f": 3, "b": 1}


def packed(values, bits):
    """Rows of small numbers, each row padded to whole bytes, the first value in the highest bits."""
    rows = ["".join(format(int(value), f"0{bits}b") for value in row) for row in values]
    return b"".join(int(row + "0" * (-len(row) % 8), 2).to_bytes((len(row) + 7) // 8, "big") for row in rows)


def tiff(*pages, order="<", **tags):
    """A TIFF written by hand: each page an array [H,W] or [H,W,C], uncompressed, in one strip.

    tags: photometric, bits (1, 2 or 4: packed), nodata, kinds (of the pages, tag 254).
    """
    out = bytearray({"<": b"II*\0", ">": b"MM\0*"}[order] + bytes(4))
    link = 4
    for number, values in enumerate(pages):
        bits = tags.get("bits", values.dtype.itemsize * 8)
        bands = values.shape[2] if values.ndim == 3 else 1
        data = packed(values, bits) if bits < 8 else values.astype(values.dtype.newbyteorder(order)).tobytes()
        where = len(out)
        out += data + bytes(len(data) % 2)

        def text(value):
            return (2, len(value) + 1, value.encode() + b"\0")

        def shorts(*items):
            return (3, len(items), struct.pack(f"{order}{len(items)}H", *items))

        def long(value):
            return (4, 1, struct.pack(f"{order}I", value))

        entries = {
            254: long(tags.get("kinds", [0] * len(pages))[number]),
            256: long(values.shape[1]),
            257: long(values.shape[0]),
            258: shorts(*[bits] * bands),
            259: shorts(1),
            262: shorts(tags.get("photometric", 1)),
            273: long(0 if tags.get("sparse") else where),
            277: shorts(bands),
            278: long(values.shape[0]),
            279: long(0 if tags.get("sparse") else len(data)),
            339: shorts(*[FORMATS[values.dtype.kind]] * bands),
        }
        if "nodata" in tags:
            entries[42113] = text(tags["nodata"])
        fields = b""
        for tag, (kind, count, value) in sorted(entries.items()):
            if len(value) > 4:
                place = struct.pack(f"{order}I", len(out))
                out += value + bytes(len(value) % 2)
            else:
                place = value.ljust(4, b"\0")
            fields += struct.pack(f"{order}HHI", tag, kind, count) + place
        struct.pack_into(f"{order}I", out, link, len(out))
        out += struct.pack(f"{order}H", len(entries)) + fields
        link = len(out)
        out += bytes(4)
    return bytes(out)


class Encoding(NamedTuple):
    """A way to write a label image.

    colors: it holds the colours of the classes, not their ids.
    low, high: the ids that fit.
    write: called with the file, ids [H,W] or colours uint8 [H,W,3], and the colour of each id, uint8 [256,3].
    """

    suffix: str
    colors: bool
    low: int
    high: int
    write: Callable[[Path, np.ndarray, np.ndarray], object]


def _ids(suffix: str, high: int, write, low: int = 0) -> Encoding:
    return Encoding(suffix, False, low, high, write)


def _colors(suffix: str, write) -> Encoding:
    return Encoding(suffix, True, 0, 255, write)


def _saved(prepare, **options):
    return lambda file, values, table: prepare(values, table).save(file, **options)


def _grey(values, table):
    return Image.fromarray(values.astype(np.uint8))


def _wide(values, table):
    return Image.fromarray(values.astype(np.uint16))


def _three(values, table):
    return Image.fromarray(np.dstack([values.astype(np.uint8)] * 3))


def _palette(values, table):
    image = _grey(values, table)
    image.putpalette(table.tobytes())
    return image


def _rgb(values, table):
    return Image.fromarray(values)


def _shuffled(values, table):
    """A palette image whose indices mean nothing."""
    colors, indices = np.unique(values.reshape(-1, 3), axis=0, return_inverse=True)
    order = np.random.default_rng(values.sum()).permutation(len(colors))
    image = Image.fromarray(np.argsort(order)[indices].reshape(values.shape[:2]).astype(np.uint8))
    image.putpalette(colors[order].tobytes())
    return image


def _rgba(values, table):
    return Image.fromarray(np.dstack([values, np.full(values.shape[:2], 255, np.uint8)]))


def _by_hand(dtype, **tags):
    return lambda file, values, table: file.write_bytes(tiff(values.astype(dtype), **tags))


def _pgm(highest: int, plain: bool = False):
    def write(file, values, table):
        height, width = values.shape
        body = values.astype(">u2" if highest > 255 else np.uint8).tobytes()
        text = " ".join(map(str, values.flat)).encode()
        head = f"P{2 if plain else 5} {width} {height} {highest}\n".encode()
        file.write_bytes(head + (text if plain else body))

    return write


ENCODINGS: dict[str, Encoding] = {
    "grey PNG": _ids(".png", 255, _saved(_grey)),
    "16-bit PNG": _ids(".png", 65535, _saved(_wide)),
    "palette PNG": _ids(".png", 255, _saved(_palette)),
    "palette PNG with transparency": _ids(".png", 255, _saved(_palette, transparency=0)),
    **{f"{b}-bit PNG": _ids(".png", 2**b - 1, lambda file, v, _, b=b: file.write_bytes(png(b, v))) for b in (1, 2, 4)},
    "ids in an RGB PNG": _ids(".png", 255, _saved(_three)),
    "BMP": _ids(".bmp", 255, _saved(_grey)),
    "palette BMP": _ids(".bmp", 255, _saved(_palette)),
    "PGM to 255": _ids(".pgm", 255, _pgm(255)),
    "PGM to 9": _ids(".pgm", 9, _pgm(9)),
    "PGM to 999": _ids(".pgm", 999, _pgm(999)),
    "plain PGM": _ids(".pgm", 63, _pgm(63, plain=True)),
    "ids in a WebP": _ids(".webp", 255, _saved(_three, lossless=True)),
    **{
        f"{b}-bit TIFF{', 0 is white' * (not p)}": _ids(".tif", 2**b - 1, _by_hand(np.uint8, bits=b, photometric=p))
        for b in (1, 2, 4, 8)
        for p in (0, 1)
    },
    **{
        f"TIFF of {dtype.__name__}, {order}": _ids(
            ".tif", min(high, 2**24), _by_hand(dtype, order=order), 0 if high in (65535, 2**32 - 1) else -(2**7)
        )
        for dtype, high in (
            (np.int8, 127),
            (np.uint16, 65535),
            (np.int16, 32767),
            (np.int32, 2**31 - 1),
            (np.float32, 2**24),
        )
        for order in "<>"
    },
    "16-bit TIFF, 0 is white": _ids(".tiff", 65535, _by_hand(np.uint16, photometric=0)),
    "TIFF of int64": _ids(".tif", 2**40, _by_hand(np.int64), -(2**40)),
    "TIFF of float64": _ids(".tif", 2**40, _by_hand(np.float64), -(2**40)),
    **{
        f"TIFF, {how}": _ids(".tif", 255, _saved(_grey, compression=how))
        for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
    },
    "palette TIFF": _ids(".tif", 255, _saved(_palette)),
    "grey GIF": _ids(".gif", 255, _saved(_grey)),
    "JPEG 2000": _ids(".jp2", 255, _saved(_grey)),
    "NumPy, bytes": _ids(".npy", 255, lambda file, values, _: np.save(file, values.astype(np.uint8))),
    "NumPy": _ids(".npy", 2**40, lambda file, values, _: np.save(file, values), -(2**40)),
    "NumPy, floats": _ids(".npy", 2**40, lambda file, values, _: np.save(file, values[None].astype(float)), -(2**40)),
    "palette PNG in any order": _colors(".png", _saved(_shuffled)),
    "palette BMP in any order": _colors(".bmp", _saved(_shuffled)),
    "palette TIFF in any order": _colors(".tif", _saved(_shuffled)),
    "palette GIF": _colors(".gif", _saved(_shuffled)),
    "NumPy, colours": _colors(".npy", lambda file, values, _: np.save(file, values)),
    "RGB PNG": _colors(".png", _saved(_rgb)),
    "RGBA PNG": _colors(".png", _saved(_rgba)),
    "RGB BMP": _colors(".bmp", _saved(_rgb)),
    "RGB WebP": _colors(".webp", _saved(_rgb, lossless=True)),
    "RGBA WebP": _colors(".webp", _saved(_rgba, lossless=True)),
    "RGB TIFF": _colors(".tif", _saved(_rgb)),
    "RGB TIFF, deflate": _colors(".tif", _saved(_rgb, compression="tiff_deflate")),
    "RGBA TIFF": _colors(".tif", _saved(_rgba)),
    "RGB TIFF by hand": _colors(".tif", _by_hand(np.uint8, photometric=2)),
}
"""Every way in which a mask may be written that a dataset format pairs with an image, by its name."""
