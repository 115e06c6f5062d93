"""The outlines of regions as polygons, which `polygon_region` turns into the same pixels again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from degrid.lookup import grouped
from degrid.types import IGNORE_INDEX, UserError

# The sides of a pixel, in the order in which they are passed with the pixel on the right-hand side: top, right, bottom,
# left. Of each: the step along it, the step out of the pixel, and where it begins; rows and columns.
_ALONG = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
_OUT = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
_BEGINS = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
_RIGHT, _LEFT = 1, 3


@dataclass(frozen=True)
class Outline:
    """One region of an image: pixels of one class that hang together by their sides.

    Attributes:
        value: the class id.
        outer: corners x, y of its outer border, clockwise on the screen, int64 [N,2]: the pixel at row y and
            column x has the corners (x, y) to (x + 1, y + 1).
        holes: of each hole the corners, anticlockwise, int64 [M,2].
        area: pixels.
        mean: of the weights of its pixels; NaN where there are no weights.
    """

    value: int
    outer: np.ndarray
    holes: tuple[np.ndarray, ...]
    area: int
    mean: float

    @property
    def joined(self) -> np.ndarray:
        """One polygon, int64 [K,2], for formats without holes: a cut leads to each hole and back.

        By the even-odd rule, and by the nonzero one, it covers the same pixels, since cuts have no width.
        """
        ring = self.outer
        for hole in sorted(self.holes, key=lambda hole: int(hole[:, 0].min())):
            first = int(hole[:, 0].argmin())
            near = int(((ring - hole[first]) ** 2).sum(1).argmin())
            around = np.concatenate([hole[first:], hole[: first + 1]])
            ring = np.concatenate([ring[: near + 1], around, ring[near:]])
        return ring


def outlines(
    ids: np.ndarray, leave: Collection[int] = (), tolerance: float = 0.0, weights: np.ndarray | None = None
) -> list[Outline]:
    """The outlines of all regions, from top to bottom.

    If the tolerance is 0, `polygon_region` gives the same pixels again.

    Args:
        ids: uint8 [H,W]; or a mask, bool, of whose other pixels there is no outline.
        leave: ids that get no outline.
        tolerance: how far, in pixels, an outline may be from the border of its pixels: corners are left out by the
            rule of Douglas and Peucker. Neighbours keep their border in common, so that no gaps open between them.
        weights: of each pixel, float [H,W], such as the probability of its class.
    Raises:
        UserError: a negative tolerance.
    """
    if not tolerance >= 0:
        raise UserError(f"the tolerance of outlines must be 0 or more pixels, got {tolerance}")
    borders = _Borders(ids, (0,) if ids.dtype == bool else leave, with_junctions=tolerance > 0)
    rings = borders.rings()
    if tolerance > 0:
        rings = [_simplified(ring, borders.is_junction(ring), tolerance) for ring in rings]
    owner, areas = borders.owners(), borders.sums(None)
    sums = borders.sums(weights) if weights is not None else np.full(len(areas), np.nan)
    holes = grouped((int(owner[loop]), loop) for loop in np.flatnonzero(areas < 0).tolist())
    found = []
    for loop in np.flatnonzero(areas > 0).tolist():
        parts = [loop, *holes.get(loop, ())]
        area = round(float(areas[parts].sum()))
        inner = tuple(rings[part] for part in parts[1:])
        found.append(Outline(borders.value(loop), rings[loop], inner, area, float(sums[parts].sum()) / area))
    return found


def without_small(ids: np.ndarray, smallest: int) -> np.ndarray:
    """The ids, uint8 [H,W], where each region of fewer pixels takes the class with which it has the longest border.

    The smallest regions go first. Void (255) stays, and nothing turns into it: what has no other neighbour stays, too.
    """
    ids = ids.copy()
    while True:
        borders = _Borders(ids)
        owner, areas = borders.owners(), borders.sums(None)
        size = np.zeros(len(areas), np.int64)
        np.add.at(size, owner, np.rint(areas).astype(np.int64))
        place = borders.places(owner)
        values = np.array([borders.value(loop) for loop in range(len(areas))])
        small = np.flatnonzero((areas > 0) & (size < smallest) & (values != IGNORE_INDEX))
        merged = _merged(place, small[np.argsort(size[small], kind="stable")], size, values, smallest)
        if not merged:
            return ids
        for loop, value in merged.items():
            values[loop] = value
        ids = values[place].astype(np.uint8)


def _merged(
    place: np.ndarray, small: np.ndarray, size: np.ndarray, values: np.ndarray, smallest: int
) -> dict[int, int]:
    """The new class of each small region that has a neighbour.

    Args:
        place: of each pixel its region, int64 [H,W].
        small: regions, the smallest first.
        size, values: pixels and class of each region.
    """
    neighbours = _neighbours(place, np.isin(np.arange(len(size)), small))
    joined: dict[int, int] = {}

    def root(region: int) -> int:
        while region in joined:
            region = joined[region]
        return region

    size = size.copy()
    for region in small.tolist():
        if size[region] >= smallest:  # others were merged into it
            continue
        lengths: dict[int, int] = {}
        for other, length in neighbours.get(region, ()):
            if values[other] != IGNORE_INDEX and root(other) != region:
                lengths[root(other)] = lengths.get(root(other), 0) + length
        if lengths:
            joined[region] = max(lengths, key=lambda other: (lengths[other], size[other], -other))
            size[joined[region]] += size[region]
    return {region: int(values[root(region)]) for region in joined}


def _neighbours(place: np.ndarray, asked: np.ndarray) -> dict[int, list[tuple[int, int]]]:
    """The neighbours of each region that is asked for, and the lengths of their common borders in pixels."""
    pairs = [
        np.stack([one[differ], other[differ]], axis=1)
        for one, other in ((place[:-1], place[1:]), (place[:, :-1], place[:, 1:]))
        for differ in [(one != other) & (asked[one] | asked[other])]
    ]
    both = np.concatenate([*pairs, *(pair[:, ::-1] for pair in pairs)])
    kinds, lengths = np.unique(both, axis=0, return_counts=True)
    borders = zip(kinds.tolist(), lengths.tolist(), strict=True)
    return grouped((region, (other, length)) for (region, other), length in borders)


class _Borders:
    """The sides of pixels at which one class ends, linked into closed loops.

    Args:
        ids: uint8 [H,W].
        leave: ids whose loops are not wanted.
        with_junctions: where three regions meet, each of them has a corner, even if its border goes straight on.
    """

    def __init__(self, ids: np.ndarray, leave: Collection[int] = (), with_junctions: bool = False) -> None:
        self.shape = ids.shape
        self._padded = np.pad(ids.astype(np.int16), 1, constant_values=-1)
        self._wide = self._padded.shape[1]
        keep = ~np.isin(ids, list(leave))
        inner, places = self._padded[1:-1, 1:-1], []
        for side, (row, column) in enumerate(_OUT.tolist()):
            height, width = self.shape
            beyond = self._padded[1 + row : 1 + row + height, 1 + column : 1 + column + width]
            rows, columns = np.nonzero((inner != beyond) & keep)
            places.append(((rows + 1) * self._wide + columns + 1) * 4 + side)
        # Each side is a number: four times the pixel's place in the padded image, and which side it is.
        self._keys = np.sort(np.concatenate(places))
        self._pixel, self._side = self._keys >> 2, self._keys & 3
        self._link(with_junctions)

    def _link(self, with_junctions: bool) -> None:
        """Find the side that follows each, the sides that begin at a corner, and the loops."""
        flat, pixel, side = self._padded.ravel(), self._pixel, self._side
        along, out = (steps @ np.array([self._wide, 1]) for steps in (_ALONG, _OUT))
        ahead = pixel + along[side]
        beyond = ahead + out[side]
        value = flat[pixel]
        turns_right = flat[ahead] != value  # first, so that regions that touch at a corner stay apart
        straight = ~turns_right & (flat[beyond] != value)
        following = np.where(turns_right, pixel, np.where(straight, ahead, beyond)) * 4
        following += np.where(turns_right, side + 1, np.where(straight, side, side + 3)) & 3
        after = np.searchsorted(self._keys, following)
        corner = np.zeros(len(pixel), bool)
        corner[after[~straight]] = True
        if with_junctions:
            corner |= self.is_junction(self._starts(slice(None)))
        # From each side to the next that begins at a corner, itself counted; twice as far each time.
        reached = np.where(corner, np.arange(len(pixel)), after)
        while not corner[reached].all():
            reached = reached[reached]
        corners = np.flatnonzero(corner)
        number = np.cumsum(corner) - 1
        following_corner = number[reached[after[corners]]].tolist()
        self._loops: list[np.ndarray] = []
        loop_of = [-1] * len(corners)
        for first in range(len(corners)):
            members, place = [], first
            while loop_of[place] < 0:
                loop_of[place] = len(self._loops)
                members.append(place)
                place = following_corner[place]
            if members:
                self._loops.append(corners[members])
        self._loop = np.array(loop_of, np.int64)[number[reached]]

    def _starts(self, sides: np.ndarray | slice) -> np.ndarray:
        """Where sides begin: x, y, int64 [K,2]."""
        rows, columns = np.divmod(self._pixel[sides], self._wide)
        begins = _BEGINS[self._side[sides]]
        return np.stack([columns - 1 + begins[:, 1], rows - 1 + begins[:, 0]], axis=1)

    def is_junction(self, points: np.ndarray) -> np.ndarray:
        """Whether borders of three or four pixels meet at these corners of pixels, bool [K]."""
        x, y = points.T
        around = [self._padded[y + row, x + column] for row, column in ((0, 0), (0, 1), (1, 1), (1, 0))]
        differ = [one != other for one, other in zip(around, [*around[1:], around[0]], strict=True)]
        meet: np.ndarray = np.sum(differ, axis=0) >= 3
        return meet

    def rings(self) -> list[np.ndarray]:
        """The corners x, y of each loop, int64 [N,2]."""
        return [self._starts(loop) for loop in self._loops]

    def value(self, loop: int) -> int:
        """The class whose border a loop is."""
        return int(self._padded.ravel()[self._pixel[self._loops[loop][0]]])

    def sums(self, weights: np.ndarray | None) -> np.ndarray:
        """The sum of the weights inside each loop, float64 [L]; negative for holes. None: the number of pixels.

        Row by row: what lies left of the last pixel's right side, less what lies left of the first one's left side.
        """
        upright = (self._side == _RIGHT) | (self._side == _LEFT)
        rows, columns = np.divmod(self._pixel[upright], self._wide)
        ends = self._side[upright] == _RIGHT
        x = columns - 1 + ends
        if weights is None:
            before = x.astype(np.float64)
        else:
            before = np.pad(np.cumsum(weights, axis=1, dtype=np.float64), ((0, 0), (1, 0)))[rows - 1, x]
        return np.bincount(self._loop[upright], np.where(ends, before, -before), minlength=len(self._loops))

    def owners(self) -> np.ndarray:
        """The outer loop of the region of each loop, int64 [L]; its own for an outer one."""
        owner = np.arange(len(self._loops))
        begins = np.flatnonzero(self._side == _LEFT)
        ends = np.flatnonzero(self._side == _RIGHT)
        loops, first = np.unique(self._loop[ends], return_index=True)
        inner = self.sums(None)[loops] < 0
        # From a hole's first side to the left: where that row of pixels begins is a loop of the same region, outer or
        # of a hole that was met before.
        for place, loop in sorted(zip(ends[first[inner]].tolist(), loops[inner].tolist(), strict=True)):
            start = begins[np.searchsorted(self._pixel[begins], self._pixel[place], side="right") - 1]
            owner[loop] = owner[self._loop[start]]
        return owner

    def places(self, owner: np.ndarray) -> np.ndarray:
        """The outer loop around each pixel, int64 [H,W]; of ids of which none is left out."""
        begins = np.flatnonzero(self._side == _LEFT)
        rows, columns = np.divmod(self._pixel[begins], self._wide)
        starts = (rows - 1) * self.shape[1] + columns - 1
        lengths = np.diff(np.append(starts, self.shape[0] * self.shape[1]))
        return np.repeat(owner[self._loop[begins]], lengths).reshape(self.shape)


def _simplified(ring: np.ndarray, fixed: np.ndarray, tolerance: float) -> np.ndarray:
    """A ring without the corners that matter less than the tolerance; unchanged if too few would be left.

    Args:
        ring: int64 [N,2].
        fixed: corners that stay, bool [N].
    """
    if not fixed.any():  # the same two for both regions at this border
        fixed = fixed.copy()
        fixed[np.lexsort(ring.T)[[0, -1]]] = True
    places = np.flatnonzero(fixed).tolist()
    kept: list[np.ndarray] = []
    for start, stop in zip(places, [*places[1:], places[0] + len(ring)], strict=True):
        arc = ring[np.arange(start, stop + 1) % len(ring)]
        kept.append(arc[_important(arc, tolerance)][:-1])
    found = np.concatenate(kept)
    return found if len(np.unique(found, axis=0)) > 2 and _area(found) * _area(ring) > 0 else ring


def _area(ring: np.ndarray) -> int:
    """Twice the area of a ring, negative for one that goes round the other way."""
    (x, y), (u, v) = ring.T, np.roll(ring, -1, axis=0).T
    return int(np.sum(x * v - u * y))


def _important(arc: np.ndarray, tolerance: float) -> np.ndarray:
    """The corners of an arc that are kept, bool [N]: alike in both directions.

    Source: Douglas & Peucker, "Algorithms for the reduction of the number of points", 1973.
    """
    turned = tuple(arc[-1]) < tuple(arc[0]) or (
        len(arc) > 2 and tuple(arc[-1]) == tuple(arc[0]) and tuple(arc[-2]) < tuple(arc[1])
    )
    arc = arc[::-1] if turned else arc
    keep = np.zeros(len(arc), bool)
    keep[[0, -1]] = True
    parts = [(0, len(arc) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        distances = _distances(arc[first + 1 : last], arc[first], arc[last])
        furthest = int(distances.argmax())
        if distances[furthest] > tolerance:
            middle = first + 1 + furthest
            keep[middle] = True
            parts += [(first, middle), (middle, last)]
    return keep[::-1] if turned else keep


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How far points are from the segment between two others, float64 [N]."""
    along = end - start
    length = float(along @ along)
    share: np.ndarray | float = np.clip((points - start) @ along / length, 0, 1)[:, None] if length else 0.0
    return np.asarray(np.linalg.norm(points - start - share * along, axis=1))
