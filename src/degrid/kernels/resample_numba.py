"""The compiled part of `resample` and `nearest`; the arithmetic and its order are Pillow's, in double precision."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _across(row, left, right, shares, wide, out):  # type: ignore[no-untyped-def]
    """One row of the picture at the output's columns; `wide` takes the row as floats, which are gathered faster."""
    for k in range(len(row)):
        wide[k] = row[k]
    for k in range(len(left)):
        low = wide[left[k]]
        out[k] = low + (wide[right[k]] - low) * shares[k]


@njit(cache=True, nogil=True)
def fill_in(image, rows, row_shares, begin, count, left, right, shares, out, top, start):  # type: ignore[no-untyped-def]
    """Write the part of out, uint8 [h, w * 3], that begins at row `top` and value `start`.

    Args:
        image: uint8 [H, W * 3].
        rows, row_shares: [part's height], the upper of each output row's two rows in the image, the lower one's share.
        begin, count: the values of a row of the image that are needed.
        left, right, shares: [part's width * 3], the two neighbours' places among those, and the right one's share.
    """
    last, width = len(image) - 1, len(left)
    end = begin + count
    upper, lower, wide = np.empty(width), np.empty(width), np.empty(count)
    have_upper, have_lower = -1, -1  # the rows that they hold; output rows that follow one another share them
    for i in range(len(rows)):
        first, second = max(rows[i], 0), min(rows[i] + 1, last)
        if first == have_lower or second == have_upper:
            upper, lower, have_upper, have_lower = lower, upper, have_lower, have_upper
        if first != have_upper:
            _across(image[first][begin:end], left, right, shares, wide, upper)
            have_upper = first
        if second != have_lower:
            _across(image[second][begin:end], left, right, shares, wide, lower)
            have_lower = second
        share, target = row_shares[i], out[top + i][start : start + width]
        for k in range(width):
            target[k] = np.uint8(np.int32(upper[k] + (lower[k] - upper[k]) * share))


@njit(cache=True, nogil=True)
def pick(label, rows, columns, out, top, left):  # type: ignore[no-untyped-def]
    """Write the part of out, uint8 [h,w], that begins at (top, left): label at unsigned rows and columns."""
    for i in range(len(rows)):
        line, target = label[rows[i]], out[top + i][left : left + len(columns)]
        for j in range(len(columns)):
            target[j] = line[columns[j]]
