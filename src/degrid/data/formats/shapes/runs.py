"""Run-length codes: COCO's, packed or not, and Label Studio's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from degrid.data.formats.shapes.region import NOTHING, Region


def runs_region(code: Mapping[str, Any], height: int, width: int) -> Region:
    """The pixels of COCO's run-length code of an image of this size.

    Args:
        code: "size", height and width; "counts", lengths of runs of background and object in turn, column by column,
            as numbers or packed into a string.
    Raises:
        KeyError, TypeError, ValueError: it has another form or size, or its runs do not add up to the image;
            pycocotools would make up the rest.
    """
    if list(code["size"]) != [height, width]:
        raise ValueError(f"its size is {list(code['size'])} (height, width)")
    written = code["counts"]
    counts = np.asarray(unpacked(written) if isinstance(written, str | bytes) else written, np.int64)
    if counts.min(initial=0) < 0 or counts.sum() != height * width:
        raise ValueError(f"its runs add up to {counts.sum()} pixels")
    used = np.flatnonzero(counts[1::2]) * 2 + 1
    if not len(used):
        return NOTHING
    # Whole columns, from the first to the last that is touched.
    ends = np.cumsum(counts)
    left, right = int(ends[used[0] - 1]) // height, (int(ends[used[-1]]) - 1) // height + 1
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)[left * height : right * height]
    return Region(0, left, inside.reshape(right - left, height).T)


def unpacked(text: str | bytes) -> list[int]:
    """Unpack run lengths: 5 bits per character, low bits first; from the fourth on, relative to the run two before.

    Source: COCO's maskApi, rleFrString.

    Raises:
        ValueError: the code is cut short, or a run is negative.
    """
    letters = text.encode() if isinstance(text, str) else text
    counts: list[int] = []
    value = shift = 0
    for letter in letters:
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of a number
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift or min(counts, default=0) < 0:
        raise ValueError("its packed runs are cut short or negative")
    return counts


def runs_of(mask: np.ndarray) -> list[int]:
    """COCO's run lengths of a mask, bool [H,W]: the inverse of `runs_region`."""
    flat = mask.ravel(order="F")
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(turns, prepend=0, append=flat.size).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def packed(counts: Sequence[int]) -> str:
    """Run lengths as COCO packs them: the inverse of `unpacked`.

    Source: COCO's maskApi, rleToString.
    """
    letters = bytearray()
    for place, count in enumerate(counts):
        value = count - (counts[place - 2] if place > 2 else 0)
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(48 + (bits | 32 if more else bits))
    return letters.decode()


def label_studio_code(pixels: np.ndarray) -> list[int]:
    """Label Studio's code of an RGBA image that is white and opaque at some pixels, bool [H,W]; bytes.

    It is the inverse of `label_studio_pixels`, in runs of at most 2^16 values.
    """
    lengths = (3, 4, 8, 16)
    bits = [f"{4 * pixels.size:032b}{7:05b}", *(f"{length - 1:04b}" for length in lengths)]
    value = 0
    for count in runs_of(pixels.T):
        for first in range(0, 4 * count, 1 << lengths[-1]):
            number = min(4 * count - first, 1 << lengths[-1])
            place = next(place for place, length in enumerate(lengths) if number <= 1 << length)
            bits.append(f"1{place:02b}{number - 1:0{lengths[place]}b}{value:08b}")
        value = 255 - value
    return np.packbits(np.frombuffer("".join(bits).encode(), np.uint8) - ord("0")).tolist()


def label_studio_pixels(code: Sequence[int], height: int, width: int) -> np.ndarray:
    """The pixels of Label Studio's code of an RGBA image: those that are not transparent, bool [H,W].

    Source: @thi.ng/rle-pack, as label_studio_sdk's converter/brush.py reads it: the number of values (32 bits), their
    size in bits less one (5), four lengths in bits less one (4 each); then a bit that says whether one value is
    repeated, which of the four lengths (2), the number of values less one, and the value or values.

    Args:
        code: bytes.
    Raises:
        ValueError: it is cut short, or of an image of another size.
    """
    bits = np.unpackbits(np.asarray(code, np.uint8))
    if len(bits) < 53:
        raise ValueError("its brush code is cut short")
    digits = (bits + ord("0")).tobytes()
    place = 0

    def read(size: int) -> int:
        nonlocal place
        place += size
        if place > len(bits):
            raise ValueError("its brush code is cut short")
        return int(digits[place - size : place], 2)

    number, word = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if number != 4 * height * width:
        raise ValueError(f"its brush code has {number} values, expected {4 * height * width}")
    values = np.zeros(number, "u4" if word > 8 else "u1")
    powers = 1 << np.arange(word - 1, -1, -1, dtype=np.uint32)
    done = 0
    while done < number:
        repeated = read(1)
        count = min(1 + read(lengths[read(2)]), number - done)
        if repeated:
            values[done : done + count] = read(word)
        else:
            place += count * word
            if place > len(bits):
                raise ValueError("its brush code is cut short")
            values[done : done + count] = bits[place - count * word : place].reshape(count, word) @ powers
        done += count
    opaque: np.ndarray = values.reshape(height, width, 4)[..., 3] > 0
    return opaque
