"""The compiled part of Winograd's convolution: both transforms.

The arithmetic runs on a small buffer of constant strides, in loops of constant length, and the channel that a block
starts with is visibly not negative; otherwise the compiler does not vectorise, and it takes two to four times as long.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

BLOCK = 64
"""Channels at a time, and the fewest there can be; a last block that would be narrower overlaps the one before."""
ROW = 8 * BLOCK + 16  # a multiple of 2 KiB would put all rows into few sets of the cache
HALF, TWO, THREE, FOUR, FIVE, EIGHT = (np.float32(value) for value in (0.5, 2, 3, 4, 5, 8))
QUARTER, SIXTEEN, THIRTY_TWO = (np.float32(value) for value in (0.25, 16, 32))
EIGHTH, SIXTEENTH, THIRTY_SECOND = (np.float32(1 / value) for value in (8, 16, 32))
OUTER, MIDDLE, INNER, LAST = (np.float32(value) for value in (21 / 4, 17 / 4, 5 / 2, 5 / 4))


@njit(inline="always", fastmath={"contract"})
def _forward(points, d, start, step):  # type: ignore[no-untyped-def]
    """B^T on that many lines of a block, in place."""
    if points == 8:
        for c in range(start, start + BLOCK):
            a0, a1, a2, a3 = d[c], d[c + step], d[c + 2 * step], d[c + 3 * step]
            a4, a5, a6, a7 = d[c + 4 * step], d[c + 5 * step], d[c + 6 * step], d[c + 7 * step]
            u, v = a2 + a6 - MIDDLE * a4, a1 + a5 - MIDDLE * a3
            w, s = a6 + QUARTER * a2 - LAST * a4, HALF * a1 - INNER * a3 + TWO * a5
            p, q = a6 + FOUR * a2 - FIVE * a4, TWO * a1 - INNER * a3 + HALF * a5
            d[c], d[c + step], d[c + 2 * step] = a0 - a6 + OUTER * (a4 - a2), u + v, u - v
            d[c + 3 * step], d[c + 4 * step] = w + s, w - s
            d[c + 5 * step], d[c + 6 * step] = p + q, p - q
            d[c + 7 * step] = a7 - a1 + OUTER * (a3 - a5)
    elif points == 6:
        for c in range(start, start + BLOCK):
            a0, a1, a2 = d[c], d[c + step], d[c + 2 * step]
            a3, a4, a5 = d[c + 3 * step], d[c + 4 * step], d[c + 5 * step]
            u, v, w, s = a4 - FOUR * a2, a3 - FOUR * a1, a4 - a2, TWO * (a3 - a1)
            d[c], d[c + step], d[c + 2 * step] = FOUR * a0 - FIVE * a2 + a4, u + v, u - v
            d[c + 3 * step], d[c + 4 * step], d[c + 5 * step] = w + s, w - s, FOUR * a1 - FIVE * a3 + a5
    else:
        for c in range(start, start + BLOCK):
            a0, a1, a2, a3, a4 = d[c], d[c + step], d[c + 2 * step], d[c + 3 * step], d[c + 4 * step]
            w = a3 - a1
            d[c], d[c + step], d[c + 2 * step] = TWO * (a0 - a2) + w, a3 - a2 - TWO * a1, w + THREE * (a1 - a2)
            d[c + 3 * step], d[c + 4 * step] = w, a4 - a2 - TWO * w


@njit(inline="always", fastmath={"contract"})
def _backward(points, d, start, step):  # type: ignore[no-untyped-def]
    """A^T on that many lines of a block, in place: all but the last two are the result."""
    if points == 8:
        for c in range(start, start + BLOCK):
            a0, a1, a2, a3 = d[c], d[c + step], d[c + 2 * step], d[c + 3 * step]
            a4, a5, a6, a7 = d[c + 4 * step], d[c + 5 * step], d[c + 6 * step], d[c + 7 * step]
            u, v, w, s, p, q = a1 + a2, a1 - a2, a3 + a4, a3 - a4, a5 + a6, a5 - a6
            d[c], d[c + step] = a0 + u + w + p, v + TWO * s + HALF * q
            d[c + 2 * step], d[c + 3 * step] = u + FOUR * w + QUARTER * p, v + EIGHT * s + EIGHTH * q
            d[c + 4 * step] = u + SIXTEEN * w + SIXTEENTH * p
            d[c + 5 * step] = v + THIRTY_TWO * s + THIRTY_SECOND * q + a7
    elif points == 6:
        for c in range(start, start + BLOCK):
            a0, a1, a2 = d[c], d[c + step], d[c + 2 * step]
            a3, a4, a5 = d[c + 3 * step], d[c + 4 * step], d[c + 5 * step]
            u, v, w, s = a1 + a2, a1 - a2, a3 + a4, a3 - a4
            d[c], d[c + step] = a0 + u + w, v + TWO * s
            d[c + 2 * step], d[c + 3 * step] = u + FOUR * w, v + EIGHT * s + a5
    else:
        for c in range(start, start + BLOCK):
            a0, a1, a2, a3, a4 = d[c], d[c + step], d[c + 2 * step], d[c + 3 * step], d[c + 4 * step]
            u = a1 + a2
            d[c], d[c + step], d[c + 2 * step] = a0 + u + a3, a1 - a2 + TWO * a3, u + FOUR * a3 + a4


@njit(inline="always")
def _load(x, image, y, z, at, d, line):  # type: ignore[no-untyped-def]
    """A pixel's channels from `at` on into a line of the block; zeros outside the map."""
    if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
        for c in range(BLOCK):
            d[line + c] = x[image, y, z, at + c]
    else:
        for c in range(BLOCK):
            d[line + c] = 0


@njit(parallel=True, cache=True, fastmath={"contract"})
def transform_input(x, rows, columns, rate, tile, first, tiles):  # type: ignore[no-untyped-def]
    """Fill tiles, float32 [n,p,C], with B^T d B of n tiles from number `first`; x is float32 [N,H,W,C], C >= BLOCK."""
    channels = x.shape[3]
    down, across = tile[0] + 2, tile[1] + 2
    for n in prange(len(tiles)):
        d = np.empty(8 * ROW, np.float32)
        number = first + n
        image = number // (rows.size * columns.size)
        top = rows[number // columns.size % rows.size] - rate
        left = columns[number % columns.size] - rate
        for block in range(0, channels, BLOCK):
            at = max(0, min(block, channels - BLOCK))
            for i in range(down):
                for j in range(across):
                    _load(x, image, top + i * rate, left + j * rate, at, d, i * ROW + j * BLOCK)
            for j in range(8):
                if j < across:
                    _forward(down, d, j * BLOCK, ROW)
            for i in range(8):
                if i < down:
                    _forward(across, d, i * ROW, BLOCK)
            for i in range(down):
                for j in range(across):
                    for c in range(BLOCK):
                        tiles[n, i * across + j, at + c] = d[i * ROW + j * BLOCK + c]


@njit(inline="always", fastmath={"contract"})
def _store(d, line, bias, out, image, y, z, at):  # type: ignore[no-untyped-def]
    """A line of the block, with bias, into a pixel's channels from `at` on; nothing outside the map."""
    if z < out.shape[2]:
        for c in range(BLOCK):
            out[image, y, z, at + c] = d[line + c] + bias[at + c]


@njit(parallel=True, cache=True, fastmath={"contract"})
def transform_output(tiles, rows, columns, rate, tile, first, bias, out):  # type: ignore[no-untyped-def]
    """Fill n tiles from number `first` of out, float32 [N,H,W,K], with A^T m A + bias; tiles is float32 [n,p,K]."""
    height, channels = out.shape[1], out.shape[3]
    down, across = tile[0] + 2, tile[1] + 2
    for n in prange(len(tiles)):
        d = np.empty(8 * ROW, np.float32)
        number = first + n
        image = number // (rows.size * columns.size)
        top = rows[number // columns.size % rows.size]
        left = columns[number % columns.size]
        for block in range(0, channels, BLOCK):
            at = max(0, min(block, channels - BLOCK))
            for i in range(down):
                for j in range(across):
                    for c in range(BLOCK):
                        d[i * ROW + j * BLOCK + c] = tiles[n, i * across + j, at + c]
            for j in range(8):
                if j < across:
                    _backward(down, d, j * BLOCK, ROW)
            for i in range(6):
                y = top + i * rate
                if i < tile[0] and y < height:
                    _backward(across, d, i * ROW, BLOCK)
                    for j in range(tile[1]):
                        _store(d, i * ROW + j * BLOCK, bias, out, image, y, left + j * rate, at)
