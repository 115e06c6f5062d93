"""The compiled part of `dense_crf`: the lattice of an image's pixels, and steps of mean field on it.

Rows of class values are a multiple of 8 long, so that they fill vectors. The lattice has one row more than it has
points, which stays zero: neighbours that do not exist point to it.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange, uint64, uintp

DIMS = 5  # x, y, red, green, blue
CORNERS = DIMS + 1


@njit(parallel=True, cache=True, fastmath={"contract"})
def embed(image, scale, low, strides, keys, weights):  # type: ignore[no-untyped-def]
    """The keys, int64 [N,6], and the barycentric weights, float32 [N,6], of the corners of each pixel's simplex.

    image: uint8 [H,W,3]; scale: float32 [5], by which x, y, red, green and blue are multiplied;
    low, strides: int64 [5], from the first five coordinates of a lattice point to its key.
    """
    height, width, _ = image.shape
    for y in prange(height):
        elevated = np.empty(CORNERS, np.float32)
        zero = np.empty(CORNERS, np.int64)
        rank = np.empty(CORNERS, np.int64)
        spread = np.empty(CORNERS + 1, np.float32)
        for x in range(width):
            pixel = y * width + x
            tail = np.float32(0)
            for i in range(DIMS, 0, -1):
                value = x if i == 1 else y if i == 2 else image[y, x, i - 3]
                feature = np.float32(value) * scale[i - 1]
                elevated[i] = tail - i * feature
                tail += feature
            elevated[0] = tail
            _simplex(elevated, zero, rank, spread)
            for k in range(CORNERS):
                key = np.int64(0)
                for i in range(DIMS):
                    coordinate = zero[i] + k - (CORNERS if rank[i] > DIMS - k else 0)
                    key += (coordinate - low[i]) * strides[i]
                keys[pixel, k] = key
                weights[pixel, k] = spread[k]


@njit(cache=True)
def _simplex(elevated, zero, rank, spread):  # type: ignore[no-untyped-def]
    """Fill in the corner of remainder 0, the ranks of the coordinates, and the corners' weights; see `_simplex` of
    `dense_crf`."""
    excess = 0
    for i in range(CORNERS):
        nearest = int(np.rint(elevated[i] * np.float32(1 / CORNERS)))
        zero[i] = nearest * CORNERS
        excess += nearest
        rank[i] = 0
    for i in range(DIMS):
        for j in range(i + 1, CORNERS):
            lower = elevated[i] - zero[i] < elevated[j] - zero[j]
            rank[i] += lower
            rank[j] += not lower
    spread[:] = 0
    for i in range(CORNERS):
        rank[i] += excess
        change = CORNERS * ((rank[i] < 0) - (rank[i] > DIMS))
        rank[i] += change
        zero[i] += change
        share = (elevated[i] - zero[i]) * np.float32(1 / CORNERS)
        spread[DIMS - rank[i]] += share
        spread[CORNERS - rank[i]] -= share
    spread[0] += 1 + spread[CORNERS]


@njit(cache=True, inline="always")
def _slot(key, mask):  # type: ignore[no-untyped-def]
    mixed = uint64(key) * uint64(0x9E3779B97F4A7C15)
    return (mixed ^ (mixed >> uint64(32))) & mask


@njit(cache=True)
def number(keys, table, ids, corners, points):  # type: ignore[no-untyped-def]
    """Number the distinct keys in the order in which they come; returns how many there are.

    table, ids: a hash table, int64 and int32 (filled with -1), of a power of two entries, over twice the keys' number;
    corners: int32, like keys, is filled with the numbers; points: int64, as long as all keys, with the distinct ones.
    """
    mask = uint64(len(table) - 1)
    count = 0
    for pixel in range(len(keys)):
        for k in range(CORNERS):
            key = keys[pixel, k]
            slot = _slot(key, mask)
            while ids[slot] >= 0 and table[slot] != key:
                slot = (slot + uint64(1)) & mask
            if ids[slot] < 0:
                table[slot], ids[slot], points[count] = key, count, key
                count += 1
            corners[pixel, k] = ids[slot]
    return count


@njit(parallel=True, cache=True)
def find_neighbours(points, steps, table, ids, near):  # type: ignore[no-untyped-def]
    """Fill near, int32 [6,M,2], with the points before and after each one along each axis; M where there is none."""
    count = len(points)
    mask = uint64(len(table) - 1)
    near[:] = count
    for axis in range(CORNERS):
        for point in prange(count):
            key = points[point] + steps[axis]
            slot = _slot(key, mask)
            while ids[slot] >= 0 and table[slot] != key:
                slot = (slot + uint64(1)) & mask
            if ids[slot] >= 0:
                near[axis, point, 1] = ids[slot]
                near[axis, ids[slot], 0] = point


@njit(cache=True)
def invert(corners, weights, starts, pixels, shares):  # type: ignore[no-untyped-def]
    """The pixels with a corner on each lattice point, in pixels[starts[p]:starts[p+1]], and their weights."""
    for pixel in range(len(corners)):
        for k in range(CORNERS):
            starts[corners[pixel, k] + 1] += 1
    for point in range(len(starts) - 1):
        starts[point + 1] += starts[point]
    place = starts[:-1].copy()
    for pixel in range(len(corners)):
        for k in range(CORNERS):
            at = uintp(place[corners[pixel, k]])
            pixels[at], shares[at] = pixel, weights[pixel, k]
            place[corners[pixel, k]] += 1


@njit(parallel=True, cache=True, fastmath={"contract"})
def splat(values, starts, pixels, shares, lattice):  # type: ignore[no-untyped-def]
    """Sum the pixels' values, float32 [N,C], onto the lattice, float32 [M+1,C]; four at a time, for fewer passes."""
    channels = values.shape[1]
    for point in prange(len(starts) - 1):
        p, first, last = uintp(point), starts[point], starts[point + 1]
        for c in range(channels):
            lattice[p, c] = 0
        for place in range(first, last - 3, 4):
            at = uintp(place)
            i, j = uintp(pixels[at]), uintp(pixels[at + uintp(1)])
            m, n = uintp(pixels[at + uintp(2)]), uintp(pixels[at + uintp(3)])
            u, v = shares[at], shares[at + uintp(1)]
            w, x = shares[at + uintp(2)], shares[at + uintp(3)]
            for c in range(channels):
                lattice[p, c] += (u * values[i, c] + v * values[j, c]) + (w * values[m, c] + x * values[n, c])
        for place in range(last - (last - first) % 4, last):
            i, u = uintp(pixels[uintp(place)]), shares[uintp(place)]
            for c in range(channels):
                lattice[p, c] += u * values[i, c]


@njit(parallel=True, cache=True, fastmath={"contract"})
def blur(old, new, near):  # type: ignore[no-untyped-def]
    """Each point plus half of its two neighbours along an axis, near, int32 [M,2]: from old to new, float32 [M+1,C]."""
    channels = old.shape[1]
    for point in prange(len(near)):
        p, before, after = uintp(point), uintp(near[point, 0]), uintp(near[point, 1])
        for c in range(channels):
            new[p, c] = old[p, c] + np.float32(0.5) * (old[before, c] + old[after, c])


@njit(parallel=True, cache=True, fastmath={"contract"})
def gather(lattice, corners, weights, out):  # type: ignore[no-untyped-def]
    """Read one value per pixel, float32 [N], from a lattice, float32 [M+1,1]."""
    for pixel in prange(len(corners)):
        total = np.float32(0)
        for k in range(CORNERS):
            total += weights[pixel, k] * lattice[uintp(corners[pixel, k]), 0]
        out[pixel] = total


@njit(parallel=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def step(q, unary, lattice, corners, weights, line, row_norm, column_norm, out):  # type: ignore[no-untyped-def]
    """One step of mean field: out = softmax(appearance + smoothness - unary), row by row of the image.

    q, unary, out: float32 [H,W,C]; lattice: q splatted and blurred; corners, weights: [H*W,6]; line: float32 [T], the
    smoothness kernel along one axis, T a multiple of 4 and its middle at T // 2; row_norm, float32 [H], and
    column_norm, [W], are multiplied to it on both sides.

    Loops run over whole rows where they can: over the classes of one pixel they are too short to be fast.
    """
    height, width, channels = q.shape
    taps, half, length = len(line), len(line) // 2, width * channels
    for y in prange(height):
        near = np.zeros((width + taps) * channels, np.float32)
        inner = near[half * channels : half * channels + length]
        for tap in range(0, taps, 4):
            top = y - half + tap
            _add_rows(q, top, line[tap : tap + 4], row_norm, inner)
        for x in range(width):
            factor = column_norm[x] * row_norm[y]
            for k in range(x * channels, (x + 1) * channels):
                inner[k] *= factor
        scores = np.zeros(length, np.float32)
        for tap in range(0, taps, 4):
            first, second, third, fourth = line[tap], line[tap + 1], line[tap + 2], line[tap + 3]
            a, b = near[tap * channels :], near[(tap + 1) * channels :]
            c, d = near[(tap + 2) * channels :], near[(tap + 3) * channels :]
            for k in range(length):
                scores[k] += (first * a[k] + second * b[k]) + (third * c[k] + fourth * d[k])
        for x in range(width):
            at = uintp(y * width + x)
            a, b, c = uintp(corners[at, 0]), uintp(corners[at, 1]), uintp(corners[at, 2])
            d, e, f = uintp(corners[at, 3]), uintp(corners[at, 4]), uintp(corners[at, 5])
            first, second, third = weights[at, 0], weights[at, 1], weights[at, 2]
            fourth, fifth, sixth = weights[at, 3], weights[at, 4], weights[at, 5]
            pixel, own, factor = scores[x * channels : (x + 1) * channels], unary[y, x], column_norm[x]
            for k in range(channels):
                pixel[k] = (
                    (factor * pixel[k] - own[k])
                    + (first * lattice[a, k] + second * lattice[b, k])
                    + (third * lattice[c, k] + fourth * lattice[d, k])
                    + (fifth * lattice[e, k] + sixth * lattice[f, k])
                )
        _exponential(scores)
        for x in range(width):
            pixel, final = scores[x * channels : (x + 1) * channels], out[y, x]
            total = np.float32(0)
            for k in range(channels):
                total += pixel[k]
            share = 1 / total
            for k in range(channels):
                final[k] = pixel[k] * share


@njit(cache=True, fastmath={"contract", "reassoc", "nsz"})
def _add_rows(q, top, taps, norm, out):  # type: ignore[no-untyped-def]
    """Add four rows of q, from row `top` on, to out [W*C], with their weights; rows beyond the image count as zero."""
    last = len(q) - 1
    rows = np.empty(4, np.int64)
    shares = np.zeros(4, np.float32)
    for k in range(4):
        rows[k] = min(max(top + k, 0), last)
        if rows[k] == top + k:
            shares[k] = taps[k] * norm[top + k]
    a, b = q[rows[0]].reshape(-1), q[rows[1]].reshape(-1)
    c, d = q[rows[2]].reshape(-1), q[rows[3]].reshape(-1)
    first, second, third, fourth = shares[0], shares[1], shares[2], shares[3]
    for k in range(len(out)):
        out[k] += (first * a[k] + second * b[k]) + (third * c[k] + fourth * d[k])


@njit(cache=True, fastmath={"contract", "nsz"})
def _exponential(values):  # type: ignore[no-untyped-def]
    """exp of values from -87 to 87, in place, to 3e-7 of each; math.exp would take one value at a time.

    exp(v) = 2^n * exp(r), where |r| <= ln(2)/2; 2^n is written into the exponent of a float.
    """
    bits = np.empty(len(values), np.int32)
    for k in range(len(values)):
        value = min(max(values[k], np.float32(-87)), np.float32(87))
        whole = np.floor(value * np.float32(1.4426950408889634) + np.float32(0.5))
        bits[k] = (np.int32(whole) + np.int32(127)) << np.int32(23)
        # ln(2) in two parts, the first of few digits, so that the remainder is exact.
        r = (value - whole * np.float32(0.693359375)) + whole * np.float32(2.12194440e-4)
        tail = np.float32(1 / 120) + r * np.float32(1 / 720)
        tail = np.float32(1 / 6) + r * (np.float32(1 / 24) + r * tail)
        values[k] = np.float32(1) + r * (np.float32(1) + r * (np.float32(0.5) + r * tail))
    powers = bits.view(np.float32)
    for k in range(len(values)):
        values[k] *= powers[k]
