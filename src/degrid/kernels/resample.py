"""A part of an image, scaled and perhaps mirrored: Pillow's bilinear affine transform, but rounded, and faster.

Pillow truncates the values to whole numbers, so that scaled images are half a grey level darker than others.
"""

from __future__ import annotations

import numpy as np

from degrid.kernels.support import can_import_numba


def resample(
    image: np.ndarray,
    size: tuple[int, int],
    start: tuple[float, float],
    step: tuple[float, float],
    fill: tuple[int, ...],
) -> np.ndarray:
    """The image at evenly spaced places, bilinear; uint8 [h,w,C].

    Output pixel (i, j) lies at row start[0] + (i + 0.5) * step[0] and column start[1] + (j + 0.5) * step[1] of the
    image, whose pixel (0, 0) extends from 0 to 1. Values are rounded to whole numbers, halves up. Where numba is
    installed it runs compiled, else in NumPy, with the same result to the last bit.

    Args:
        image: uint8 [H,W,C].
        size: h and w.
        start: row and column where the output begins, pixels.
        step: image pixels per output pixel, down and to the right; negative ones mirror it.
        fill: the colour outside the image, C values.
    """
    rows, row_weights, top, bottom = _places(size[0], image.shape[0], start[0], step[0])
    columns, column_weights, left, right = _places(size[1], image.shape[1], start[1], step[1])
    count = image.shape[2]
    out = np.empty((size[0], count * size[1]), np.uint8)
    if (bottom - top, right - left) != tuple(size):
        out.reshape(*size, count)[:] = fill
    if bottom > top and right > left:
        low, high = np.maximum(columns, 0), np.minimum(columns + 1, image.shape[1] - 1)
        first = int(low.min())
        # Unsigned, so that compiled code does not check each index for being negative.
        low, high = (
            (count * (each - first)[:, None] + np.arange(count)).ravel().astype(np.uint64) for each in (low, high)
        )
        flat = np.ascontiguousarray(image).reshape(len(image), -1)
        weights = np.repeat(column_weights, count)
        if not can_import_numba():
            part = _bilinear(flat[:, count * first :], rows, row_weights, low, high, weights)
            out[top:bottom, count * left : count * right] = part
            return out.reshape(*size, count)
        from degrid.kernels.resample_numba import fill_in

        columns_read = count * first, count * first + int(high.max()) + 1
        fill_in(flat, columns_read, rows, row_weights, low, high, weights, out, (top, count * left))
    return out.reshape(*size, count)


def _bilinear(
    image: np.ndarray,
    rows: np.ndarray,
    row_weights: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """What `resample_numba.fill_in` computes, with the same arguments, but for `image` from the first column read."""
    near, far = np.clip([rows, rows + 1], 0, len(image) - 1)
    used, place = np.unique([near, far], return_inverse=True)
    wide = image[used].astype(float)
    low = wide[:, left.astype(np.intp)]
    low += (wide[:, right.astype(np.intp)] - low) * weights
    upper, lower = low[place.reshape(2, -1)]
    rounded: np.ndarray = (upper + (lower - upper) * row_weights[:, None] + 0.5).astype(np.uint8)
    return rounded


def nearest(
    label: np.ndarray, size: tuple[int, int], start: tuple[float, float], step: tuple[float, float], fill: int
) -> np.ndarray:
    """Class ids at the same places, each of the pixel that contains the place; uint8 [h,w]. Arguments as `resample`."""
    out = np.full(size, fill, np.uint8)
    found = [step[axis] * (np.arange(size[axis]) + 0.5) + start[axis] for axis in (0, 1)]
    inside = [np.flatnonzero((place >= 0) & (place < label.shape[axis])) for axis, place in enumerate(found)]
    if len(inside[0]) and len(inside[1]):
        rows, columns = (place[within].astype(np.uint64) for place, within in zip(found, inside, strict=True))
        top, left = (int(within[0]) for within in inside)
        if can_import_numba():
            from degrid.kernels.resample_numba import pick

            pick(label, rows, columns, out, top, left)
        else:
            part = label.take(rows.astype(np.intp), 0).take(columns.astype(np.intp), 1)
            out[top : top + len(rows), left : left + len(columns)] = part
    return out


def _places(count: int, length: int, start: float, step: float) -> tuple[np.ndarray, np.ndarray, int, int]:
    """The left (or upper) neighbour of the outputs inside the image, the right one's weight, and their range [a, b).

    A neighbour may lie one pixel outside; the pixel at the edge stands for it.
    """
    place = step * (np.arange(count) + 0.5) + start
    inside = np.flatnonzero((place >= 0) & (place < length))
    first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
    place = place[first:last] - 0.5
    before = np.floor(place)
    return before.astype(np.int64), place - before, first, last
