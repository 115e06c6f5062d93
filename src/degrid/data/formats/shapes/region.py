"""The pixels of one annotated object, and the drawing of many objects into one label."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from degrid.types import IGNORE_INDEX


class Region(NamedTuple):
    """Pixels of an image: the row and column of a box's first pixel, and which pixels of the box belong, bool [h,w].

    The box may reach beyond the image.
    """

    top: int
    left: int
    pixels: np.ndarray

    def inside(self, height: int, width: int) -> Region:
        """The part within an image of this size."""
        top, left = max(0, -self.top), max(0, -self.left)
        pixels = self.pixels[top : max(top, height - self.top), left : max(left, width - self.left)]
        return Region(self.top + top, self.left + left, pixels)


NOTHING = Region(0, 0, np.zeros((0, 0), bool))


class Thing(NamedTuple):
    """One object of an image.

    Attributes:
        value: its train id, or IGNORE_INDEX.
        region: its pixels.
        crowd: the region surrounds a group, gaps included.
        layer: objects of a higher one are on top.
    """

    value: int
    region: Region
    crowd: bool = False
    layer: int = 0


def union(regions: Sequence[Region]) -> Region:
    """The pixels that belong to any of the regions."""
    regions = [region for region in regions if region.pixels.size]
    if len(regions) <= 1:
        return regions[0] if regions else NOTHING
    top, left = min(region.top for region in regions), min(region.left for region in regions)
    bottom = max(region.top + region.pixels.shape[0] for region in regions)
    right = max(region.left + region.pixels.shape[1] for region in regions)
    pixels = np.zeros((bottom - top, right - left), bool)
    for region in regions:
        window(pixels, region, top, left)[...] |= region.pixels
    return Region(top, left, pixels)


def without(region: Region, holes: Iterable[Region]) -> Region:
    """The region but for the pixels of the holes."""
    height, width = region.pixels.shape
    pixels = region.pixels.copy()
    for hole in holes:
        cut = hole._replace(top=hole.top - region.top, left=hole.left - region.left).inside(height, width)
        window(pixels, cut)[...] &= ~cut.pixels
    return region._replace(pixels=pixels)


def draw(things: Iterable[Thing], height: int, width: int, rest: int = 0) -> np.ndarray:
    """The label of an image, uint8 [H,W]: train ids, `rest` where nothing was drawn.

    Where objects of one layer overlap, the smaller one wins, because it is more likely in front of or on top of the
    other: a table's outline includes the plates on it. Of two of one size, the later one does. A crowd is void, except
    where an object is drawn.
    """
    found: list[tuple[tuple[bool, int, int], int, Region]] = []
    for thing in things:
        region = thing.region.inside(height, width)
        rank = not thing.crowd, thing.layer, -int(np.count_nonzero(region.pixels))
        found.append((rank, IGNORE_INDEX if thing.crowd else thing.value, region))
    label = np.full((height, width), rest, np.uint8)
    for _, value, region in sorted(found, key=lambda row: row[0]):
        window(label, region)[region.pixels] = value
    return label


def window(pixels: np.ndarray, region: Region, top: int = 0, left: int = 0) -> np.ndarray:
    """The part of an array, whose first pixel is at (top, left), that the region's box covers."""
    row, column = region.top - top, region.left - left
    return pixels[row : row + region.pixels.shape[0], column : column + region.pixels.shape[1]]
