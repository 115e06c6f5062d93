"""Class ids at the image's size from small logits, and how sure they are, by NumPy: where there is no torch."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from degrid.kernels.support import use_torch_threads
from degrid.lookup import unknown
from degrid.types import RESIZES

BAND = 1 << 18
"""Most enlarged logits, in numbers, that are held at once: 1 MiB, which stays in a processor's cache."""


def upsample_argmax(logits: np.ndarray, size: tuple[int, ...], convention: str = "half_pixel") -> np.ndarray:
    """The best class of every pixel, see `degrid.kernels.upsample_argmax.upsample_argmax`.

    Args:
        logits: float32 [C,h,w], C up to 256.
        size: (H, W), pixels.
        convention: of the coordinates, see `degrid.types.RESIZES`.
    Returns:
        uint8 [H,W].
    Raises:
        UserError: an unknown convention.
    """
    ids = np.empty(size, np.uint8)
    for first, band in _bands(logits, size, convention):
        ids[first : first + len(band)] = band.argmax(1)
    return ids


def compiled_upsample_argmax(logits: np.ndarray, size: tuple[int, ...], convention: str) -> np.ndarray:
    """The same by compiled code, for which numba must be installed; the first call loads it.

    Args:
        logits: float32 [N,h,w,C]; copied unless they are in that order.
        size, convention: as above.
    Returns:
        uint8 [N,H,W].
    """
    from degrid.kernels.upsample_argmax_numba import upsample_argmax

    use_torch_threads()
    ids = np.empty((len(logits), *size), np.uint8)
    starts, weights = zip(*(_cells(logits.shape[1 + axis], size[axis], convention) for axis in (0, 1)), strict=True)
    upsample_argmax(np.ascontiguousarray(logits), starts[0], weights[0], starts[1], weights[1], ids)
    return ids


def _cells(count: int, size: int, convention: str) -> tuple[np.ndarray, np.ndarray]:
    """Where in `size` the places after each of `count` pixels begin, [count + 1], and the weights of `places`."""
    before, weight = places(count, size, convention)
    return before.searchsorted(np.arange(count + 1)), weight


def confidence(logits: np.ndarray, size: tuple[int, ...], convention: str = "half_pixel") -> np.ndarray:
    """The probability of the best class of every pixel, float32 [H,W], 0 to 1; of the same arguments."""
    found = np.empty(size, np.float32)
    for first, band in _bands(logits, size, convention):
        # The largest softmax is 1 / sum exp(logit - largest logit).
        band -= band.max(1, keepdims=True)
        found[first : first + len(band)] = 1 / np.exp(band, out=band).sum(1)
    return found


@functools.lru_cache(maxsize=64)
def places(count: int, size: int, convention: str) -> tuple[np.ndarray, np.ndarray]:
    """Where `degrid.resize.resize` looks for `size` places on an axis of `count` pixels.

    Returns:
        The pixel before each place, int64 [size], and the weight of the one after it, float32 [size]: 0 at the end.
    Raises:
        UserError: an unknown convention.
    """
    if convention not in RESIZES:
        raise unknown("way to resize", convention, RESIZES)
    at = np.arange(size, dtype=np.float32)
    if convention == "align_corners":
        place = at * np.float32((count - 1) / max(1, size - 1))
    elif convention == "half_pixel":
        place = np.maximum((at + np.float32(0.5)) * np.float32(count / size) - np.float32(0.5), np.float32(0))
    else:
        place = at * np.float32(count / size)
    before = np.minimum(place.astype(np.int64), count - 1)
    return before, np.where(before < count - 1, place - before.astype(np.float32), np.float32(0))


def _bands(logits: np.ndarray, size: tuple[int, ...], convention: str) -> Iterator[tuple[int, np.ndarray]]:
    """Logits [C,h,w] enlarged from top to bottom: (first row, [rows,C,W])."""
    classes, height, width = logits.shape
    before, weight = places(width, size[1], convention)
    wide = _mixed(logits.transpose(1, 0, 2), before, weight, 2)
    before, weight = places(height, size[0], convention)
    rows = max(1, BAND // (classes * size[1]))
    for first in range(0, size[0], rows):
        part = slice(first, first + rows)
        yield first, _mixed(wide, before[part], weight[part, None, None], 0)


def _mixed(values: np.ndarray, before: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
    """One axis at these places."""
    low = values.take(before, axis)
    mixed: np.ndarray = values.take(np.minimum(before + 1, values.shape[axis] - 1), axis)
    mixed -= low
    mixed *= weight
    mixed += low
    return mixed
