"""Images that are the same although their files differ: in another format, recompressed, or rotated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from degrid.data.formats.source import Source
from degrid.lookup import grouped
from degrid.types import UserError

_SIDE, _EXAMINED = 16, 96
"""Parts of a look, in height and width; and about how many rows and columns of pixels it is made of."""
_FINE, _LEAST_PIXELS = 64, 5
"""Parts, in height and width, in which two pictures are compared when their looks are alike, and what each has at least
in each direction."""
_LEAST_CONTRAST, _CONTRAST = 8, 24
"""Between the darkest and the brightest part, of 255: below the first, it may be any picture of an even surface; below
the second, the grain must tell."""
# Of 255. Compressed as JPEG once more (quality 50), frames of CamVid differ by up to 8 in a fine part; of different
# frames the two most alike, of a car that waits, differ by 15.
_CLOSE, _CLOSE_FINE = 8, 10
_GRAIN = 0.4
"""In copies, details finer than the parts correlate this much; the noise of two photographs of one thing does not."""
_LEAST_GRAIN = 1.0
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)
_STEP, _MARGIN = 4.0, 2.0
_MOST_ALIKE = 500
"""Largest number of pictures that are compared with one, if very many look alike."""
# By which of the quarters is the brightest: how often it takes 90 degrees to make it the first; and, by that, which
# quarters are the second and the third then.
_TURNS, _BESIDE = np.array((0, 1, 3, 2)), np.array(((1, 2), (3, 0), (2, 1), (0, 3)))


def look_of(pixels: np.ndarray) -> bytes:
    """The brightness of 16x16 parts of a picture uint8 [H,W,C]; empty where they hardly differ."""
    height, width = pixels.shape[:2]
    if min(height, width) < _SIDE:
        return b""
    some = pixels[:: max(1, height // _EXAMINED), :: max(1, width // _EXAMINED)]
    rows, columns = some.shape[0] // _SIDE, some.shape[1] // _SIDE
    # A few rows and columns are cut off around it, alike in copies.
    top, left = (some.shape[0] - _SIDE * rows) // 2, (some.shape[1] - _SIDE * columns) // 2
    chosen = np.ascontiguousarray(some[top : top + _SIDE * rows, left : left + _SIDE * columns])
    # The rows first: long sums of short rows take half the time of `mean` over both.
    sums = chosen.reshape(_SIDE, rows, _SIDE * columns, -1).sum(1, np.float32)
    parts = sums.reshape(_SIDE, _SIDE, columns, -1).sum(2) / np.float32(rows * columns)
    grey = parts[..., :3] @ _LUMA if parts.shape[2] >= 3 else parts[..., 0]
    look = np.rint(grey).astype(np.uint8).tobytes()
    return look if max(look) - min(look) >= _LEAST_CONTRAST else b""


class Looks:
    """Pictures among which those that look like another one are found, in a time that hardly depends on their number.

    Args:
        sources: the pictures.
        looks: of each, see `look_of`.
        turned: those count that are turned by 90 degrees or mirrored, too.
    """

    def __init__(self, sources: Sequence[Source], looks: Sequence[bytes], turned: bool = False) -> None:
        kept = [index for index, look in enumerate(looks) if look]
        self._sources = [sources[index] for index in kept]
        self._turned = turned
        self._looks = self._array([looks[index] for index in kept])
        places = np.floor(_quarters(self._looks) / _STEP).astype(int).tolist()
        self._places = grouped((tuple(place), index) for index, place in enumerate(places))

    def like(self, look: bytes) -> Iterator[Source]:
        """The pictures that look so, the most alike first."""
        if not look or not self._places:
            return
        own = self._array([look])
        quarters = _quarters(own)[0]
        ends = [np.floor((quarters + margin) / _STEP).astype(int).tolist() for margin in (-_MARGIN, _MARGIN)]
        near = itertools.product(*(range(low, high + 1) for low, high in zip(*ends, strict=True)))
        among = itertools.chain.from_iterable(self._places.get(place, ()) for place in near)
        found = list(itertools.islice(among, _MOST_ALIKE))
        apart = np.abs(self._looks[found].astype(np.int16) - own).max(axis=(1, 2))
        yield from (self._sources[found[index]] for index in np.argsort(apart) if apart[index] <= _CLOSE)

    def _array(self, looks: Sequence[bytes]) -> np.ndarray:
        found = np.frombuffer(b"".join(looks), np.uint8).reshape(-1, _SIDE, _SIDE)
        return _upright(found) if self._turned else found


def is_same_picture(one: Source, other: Source, turned: bool = False) -> bool:
    """Whether two images are one picture, up to what compressing it changes; false where one cannot be read.

    Args:
        turned: one of them may be turned by 90 degrees, or mirrored.
    """
    try:
        grey = [_brightness(source.read_values(), turned) for source in (one, other)]
    except (UserError, OSError):
        return False
    side = min(_FINE, min(grey[0].shape) // _LEAST_PIXELS)
    if grey[0].shape != grey[1].shape or side < 2:
        return False
    if not (one.is_plain() and other.is_plain()):
        low, high = min(float(image.min()) for image in grey), max(float(image.max()) for image in grey)
        grey = [(image - low) * (255 / max(high - low, 1e-30)) for image in grey]
    parts = [_parts(image, side) for image in grey]
    if np.abs(parts[0] - parts[1]).max() > _CLOSE_FINE:
        return False
    grain = [image[1:, 1:] - image[:-1, :-1] for image in grey]
    if min(image.std() for image in grain) < _LEAST_GRAIN:
        return bool(np.ptp(parts[0]) >= _CONTRAST)
    return bool(np.corrcoef(grain[0].ravel(), grain[1].ravel())[0, 1] >= _GRAIN)


def _brightness(pixels: np.ndarray, turned: bool) -> np.ndarray:
    """The brightness, float32 [H,W], of values [H,W,C]; as `_upright` turns it, or as it is."""
    values = pixels.astype(np.float32)
    weighed: np.ndarray = values[..., :3] @ _LUMA if values.shape[2] >= 3 else values[..., 0]
    return np.ascontiguousarray(_upright(weighed[None])[0] if turned else weighed)


def _parts(grey: np.ndarray, side: int) -> np.ndarray:
    """The mean brightness of side x side parts of an image [H,W]."""
    from PIL import Image  # only for the few that look alike: importing it takes long for `data check`

    return np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BOX))


def _upright(images: np.ndarray) -> np.ndarray:
    """Images [N,H,W], of which all lie alike that are turned by 90 degrees, or mirrored, copies of each other.

    Of their quarters the first is the brightest then, and the second is brighter than the third.
    """
    quarters = _quarters(images)
    turns = _TURNS[quarters.argmax(1)]
    beside = np.take_along_axis(quarters, _BESIDE[turns], 1)
    places = grouped(
        ((int(turn), bool(two[0] < two[1])), k) for k, (turn, two) in enumerate(zip(turns, beside, strict=True))
    )
    parts = [np.rot90(images[chosen], turn, (1, 2)) for (turn, _), chosen in places.items()]
    upright = [part.swapaxes(1, 2) if mirrored else part for part, (_, mirrored) in zip(parts, places, strict=True)]
    order = np.argsort([index for chosen in places.values() for index in chosen])
    return np.concatenate(upright)[order] if upright else images


def _quarters(images: np.ndarray) -> np.ndarray:
    """The mean brightness of the four quarters of images [N,H,W], [N,4]."""
    height, width = images.shape[1] // 2, images.shape[2] // 2
    rows, columns = (slice(height), slice(-height, None)), (slice(width), slice(-width, None))
    return np.stack([images[:, row, column].mean(axis=(1, 2)) for row in rows for column in columns], 1)
