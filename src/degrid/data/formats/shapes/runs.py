"""Run-length codes: COCO's, packed or not, and Label Studio's."""

from __future__ import annotations

from collections.abc import Mapping
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
