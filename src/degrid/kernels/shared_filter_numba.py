"""The compiled part of `shared_filter_gradient`."""

from __future__ import annotations

import numpy as np
from numba import njit, prange


@njit(parallel=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def shared_filter_gradient(grad, x, size):  # type: ignore[no-untyped-def]
    """Float64 [k,k] from two maps, float32 [N,H,W,C]; see `degrid.kernels.shared_filter`.

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
