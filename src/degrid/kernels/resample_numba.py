"""The compiled part of `resample` and `nearest`; in double precision, in the order of its twin."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _across(row, left, right, weights, wide, out):  # type: ignore[no-untyped-def]
    """One row of the image at the output's columns; `wide` takes the row as floats, which are gathered faster."""
    for k in range(len(row)):
        wide[k] = row[k]
    for k in range(len(left)):
        low = wide[left[k]]
        out[k] = low + (wide[right[k]] - low) * weights[k]


@njit(cache=True, nogil=True)
def fill_in(image, read, rows, row_weights, left, right, weights, out, corner):  # type: ignore[no-untyped-def]
    """Write a part of out, uint8 [h, w * C].

    Args:
        image: uint8 [H, W * C].
        read: the range of a row's values that is needed, first and last + 1.
        rows, row_weights: [part's height], of the two image rows of each output row the upper one, and the lower one's
            weight.
        left, right, weights: [part's width * C], where in that range the two neighbours are, and the right one's
            weight.
        corner: row and value of `out` where the part begins.
    """
    last, width = len(image) - 1, len(left)
    (begin, end), (top, start) = read, corner
    upper, lower, wide = np.empty(width), np.empty(width), np.empty(end - begin)
    have_upper, have_lower = -1, -1  # the rows that they hold, which successive output rows have in common
    for i in range(len(rows)):
        first, second = max(rows[i], 0), min(rows[i] + 1, last)
        if first == have_lower or second == have_upper:
            upper, lower, have_upper, have_lower = lower, upper, have_lower, have_upper
        if first != have_upper:
            _across(image[first][begin:end], left, right, weights, wide, upper)
            have_upper = first
        if second != have_lower:
            _across(image[second][begin:end], left, right, weights, wide, lower)
            have_lower = second
        weight, target = row_weights[i], out[top + i][start : start + width]
        for k in range(width):
            target[k] = np.uint8(np.int32(upper[k] + (lower[k] - upper[k]) * weight + 0.5))


@njit(cache=True, nogil=True)
def pick(label, rows, columns, out, top, left):  # type: ignore[no-untyped-def]
    """Write the part of out, uint8 [h,w], that begins at (top, left): label at unsigned rows and columns."""
    for i in range(len(rows)):
        line, target = label[rows[i]], out[top + i][left : left + len(columns)]
        for j in range(len(columns)):
            target[j] = line[columns[j]]
