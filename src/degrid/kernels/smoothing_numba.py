"""The compiled parts of `mix_groups`, where a pixel beyond a map's end counts as zero, and `shared_filter_gradient`."""

from __future__ import annotations

import numpy as np
from numba import njit, prange


@njit(parallel=True, cache=True, fastmath={"contract"})
def mix_groups(y, weight, rate, out):  # type: ignore[no-untyped-def]
    """Fill out, float32 [N,h,w,C], from y, float32 [N,H,W,C], and weight, float32 [r^2,r^2]."""
    count, height, width, channels = out.shape
    for row in prange(count * height):
        n, i = row // height, row % height
        top = i - i % rate
        bottom = min(top + rate, y.shape[1])
        for j in range(width):
            left = j - j % rate
            right = min(left + rate, y.shape[2])
            pixel = out[n, i, j]
            pixel[:] = 0
            place = i % rate * rate + j % rate
            for a in range(top, bottom):
                first = (a - top) * rate - left
                for b in range(left, right - 1, 2):
                    one, other = weight[first + b, place], weight[first + b + 1, place]
                    source, beside = y[n, a, b], y[n, a, b + 1]
                    for c in range(channels):
                        pixel[c] += one * source[c] + other * beside[c]
                if (right - left) % 2:
                    one, source = weight[first + right - 1, place], y[n, a, right - 1]
                    for c in range(channels):
                        pixel[c] += one * source[c]


@njit(parallel=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def group_products(y, grad, rate):  # type: ignore[no-untyped-def]
    """Float64 [r^2,r^2]: for pixels j of y and i of grad, the sum of their products over channels and blocks."""
    count, height, width, channels = grad.shape
    parts = np.zeros((count * height, rate**2, rate**2))
    for row in prange(count * height):
        n, i = row // height, row % height
        top = i - i % rate
        for j in range(width):
            left = j - j % rate
            g = grad[n, i, j]
            place = i % rate * rate + j % rate
            for a in range(top, min(top + rate, y.shape[1])):
                for b in range(left, min(left + rate, y.shape[2])):
                    pixel = y[n, a, b]
                    total = np.float32(0)
                    for c in range(channels):
                        total += g[c] * pixel[c]
                    parts[row, (a - top) * rate + b - left, place] += total
    return parts.sum(0)


@njit(parallel=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def shared_filter_gradient(grad, x, size):  # type: ignore[no-untyped-def]
    """Float64 [k,k] from two maps, float32 [N,H,W,C]; see `degrid.kernels.smoothing`.

    Each place sums its channels in float32, with several running sums at once; places and rows add up in float64.
    """
    count, height, width, channels = x.shape
    reach = size // 2
    parts = np.zeros((count * height, size, size))
    for row in prange(count * height):
        n, h = row // height, row % height
        for i in range(max(0, reach - h), min(size, height + reach - h)):
            for w in range(width):
                g = grad[n, h, w]
                for j in range(max(0, reach - w), min(size, width + reach - w)):
                    pixel = x[n, h + i - reach, w + j - reach]
                    total = np.float32(0)
                    for c in range(channels):
                        total += g[c] * pixel[c]
                    parts[row, i, j] += total
    return parts.sum(0)
