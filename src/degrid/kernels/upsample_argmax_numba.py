"""The compiled part of `upsample_argmax`. It goes from cell to cell: the space between four neighbouring logits."""

from __future__ import annotations

import numpy as np
from numba import njit, prange


@njit
def _best(values):  # type: ignore[no-untyped-def]
    """Index of the first largest value, or of the first NaN."""
    best = 0
    for k in range(len(values)):
        if values[k] != values[k]:
            return k
        if values[k] > values[best]:
            best = k
    return best


@njit
def _ahead(winner, k, a, b, c, d):  # type: ignore[no-untyped-def]
    """Whether the winner beats class k at all four corners; the higher class must have more to beat the lower."""
    if winner < k:
        return a[winner] >= a[k] and b[winner] >= b[k] and c[winner] >= c[k] and d[winner] >= d[k]
    return a[winner] > a[k] and b[winner] > b[k] and c[winner] > c[k] and d[winner] > d[k]


@njit
def _candidates(winners, a, b, c, d, ids, values):  # type: ignore[no-untyped-def]
    """The classes that can be best inside a cell, in order, and their values [number, 4] at its corners.

    A class that another one beats at all four corners is beaten inside too, since no weight is negative.
    """
    number = 0
    for k in range(len(a)):
        beaten = False
        for winner in winners:
            beaten |= _ahead(winner, k, a, b, c, d)
        if not beaten:
            ids[number] = k
            values[number, 0], values[number, 1], values[number, 2], values[number, 3] = a[k], b[k], c[k], d[k]
            number += 1
    return number


@njit
def _fill(number, ids, values, y_weight, x_weight, out):  # type: ignore[no-untyped-def]
    """The best candidate at each pixel of a cell; the arithmetic is PyTorch's for channels-last maps."""
    for y in range(len(y_weight)):
        down = y_weight[y]
        up = np.float32(1) - down
        for x in range(len(x_weight)):
            right = x_weight[x]
            left = np.float32(1) - right
            a, b, c, d = up * left, up * right, down * left, down * right
            best, most = 0, np.float32(-np.inf)
            for j in range(number):
                value = a * values[j, 0] + b * values[j, 1] + c * values[j, 2] + d * values[j, 3]
                if value != value:
                    best = j
                    break
                if value > most:
                    best, most = j, value
            out[y, x] = ids[best]


@njit(parallel=True, cache=True)
def upsample_argmax(logits, y_start, y_weight, x_start, x_weight, ids):  # type: ignore[no-untyped-def]
    """Fill ids, uint8 [N,H,W], from logits, float32 [N,h,w,C]; see `degrid.kernels.upsample_argmax`.

    y_start [h+1]: the output rows from y_start[i] to y_start[i+1] lie between the rows i and i+1 of the logits;
    y_weight [H]: the weight of row i+1. Likewise for x.
    """
    count, height, width, classes = logits.shape
    best = np.empty((count, height, width), np.int64)
    for row in prange(count * height):
        n, y = row // height, row % height
        for x in range(width):
            best[n, y, x] = _best(logits[n, y, x])
    for row in prange(count * height):
        n, top = row // height, row % height
        bottom = min(top + 1, height - 1)
        rows = slice(y_start[top], y_start[top + 1])
        chosen = np.empty(classes, np.int64)
        values = np.empty((classes, 4), np.float32)
        for left in range(width):
            columns = slice(x_start[left], x_start[left + 1])
            out = ids[n, rows, columns]
            if out.size == 0:
                continue
            right = min(left + 1, width - 1)
            winners = best[n, top, left], best[n, top, right], best[n, bottom, left], best[n, bottom, right]
            if winners[0] == winners[1] == winners[2] == winners[3]:
                out[:] = winners[0]
                continue
            a, b, c, d = logits[n, top, left], logits[n, top, right], logits[n, bottom, left], logits[n, bottom, right]
            number = _candidates(winners, a, b, c, d, chosen, values)
            _fill(number, chosen, values, y_weight[rows], x_weight[columns], out)
