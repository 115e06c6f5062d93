"""The outlines of pixels as polygons, which `polygon_region` turns into the same pixels again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

_RIGHT, _DOWN, _LEFT, _UP = range(4)
_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])


@dataclass
class Outline:
    """The border of connected pixels, along the edges of pixels; x, y of its corners, int64 [N,2] each.

    Attributes:
        outer: the border around all, clockwise.
        holes: the borders within, anticlockwise.
        joined: one polygon that reaches its holes by lines there and back, for formats without holes.
    """

    outer: np.ndarray
    holes: list[np.ndarray]
    joined: np.ndarray


def outlines(mask: np.ndarray) -> list[Outline]:
    """The outline of each group of pixels that are connected by their sides, from top to bottom.

    A pixel at row y and column x has the corners (x, y) to (x + 1, y + 1). `polygon_region` of all `Outline.joined`
    gives the mask back.

    Args:
        mask: bool [H,W].
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    borders = _Borders(mask[top : rows[-1] + 1, left : columns[-1] + 1])
    return [_outline(borders, ring, np.array([left, top])) for ring in borders.rings if ring.is_outer]


def _outline(borders: _Borders, outer: _Ring, offset: np.ndarray) -> Outline:
    holes = [borders.corners(hole.edges) + offset for hole in outer.holes]
    return Outline(borders.corners(outer.edges) + offset, holes, _without_repeats(outer.joined) + offset)


@dataclass
class _Ring:
    """A closed border.

    Attributes:
        edges: numbers of its edges in order; a hole's begin at its uppermost corner, the leftmost of several.
        is_outer: whether the pixels are inside.
        holes: of an outer border: those within.
        joined: the corners, with those of the holes that hang on it, as x, y.
    """

    edges: list[int]
    is_outer: bool
    holes: list[_Ring] = field(default_factory=list)
    joined: list[tuple[int, int]] = field(default_factory=list)


class _Borders:
    """The edges between a mask's pixels and others, each with the pixel on its right, and the rings that they form.

    Edges are numbered by direction, row and column of their start.
    """

    def __init__(self, mask: np.ndarray) -> None:
        padded = np.pad(mask, 1)
        inner, self._line = padded[1:-1, 1:-1], mask.shape[1] + 1
        self._size = size = (mask.shape[0] + 1) * self._line
        keys = []
        for direction, other, (row, column) in (
            (_RIGHT, padded[:-2, 1:-1], (0, 0)),
            (_DOWN, padded[1:-1, 2:], (0, 1)),
            (_LEFT, padded[2:, 1:-1], (1, 1)),
            (_UP, padded[1:-1, :-2], (1, 0)),
        ):
            y, x = np.nonzero(inner & ~other)
            keys.append(direction * size + (y + row) * self._line + x + column)
        self._keys = np.concatenate(keys)
        self._direction, start = self._keys // size, self._keys % size
        self._x, self._y = start % self._line, start // self._line
        self._next = self._followers()
        # Where the direction changes; an edge that goes straight on begins at no corner.
        self._begins = np.ones(len(self._keys), bool)
        self._begins[self._next] = self._direction != self._direction[self._next]
        self.rings = list(self._found_rings())
        self._join()

    def corners(self, edges: list[int]) -> np.ndarray:
        """The corners of a ring, x, y, int64 [N,2]."""
        kept = np.asarray(edges)[self._begins[edges]]
        return np.stack([self._x[kept], self._y[kept]], axis=1)

    def _followers(self) -> np.ndarray:
        """The edge after each: of two, the one that turns right and stays with the pixel."""
        step = _STEPS[self._direction]
        end = (self._y + step[:, 1]) * self._line + self._x + step[:, 0]
        following = np.full(len(self._keys), -1)
        for turn in (3, 0, 1):  # the last that is there counts: left, straight on, right
            wanted = (self._direction + turn) % 4 * self._size + end
            place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            following = np.where(self._keys[place] == wanted, place, following)
        return following

    def _found_rings(self) -> Iterator[_Ring]:
        """All rings by their uppermost corner, an outer one before those within."""
        following, seen = self._next.tolist(), bytearray(len(self._keys))
        level = np.flatnonzero((self._direction == _RIGHT) | (self._direction == _LEFT))
        # The uppermost edge of an outer ring leads to the right; that of a hole, whose pixels are above, to the left.
        for first in level[np.argsort(self._keys[level] % self._size, kind="stable")].tolist():
            if not seen[first]:
                edges, edge = [], first
                while not seen[edge]:
                    seen[edge] = 1
                    edges.append(edge)
                    edge = following[edge]
                is_outer = bool(self._direction[first] == _RIGHT)
                yield _Ring(edges if is_outer else [*edges[1:], first], is_outer)

    def _join(self) -> None:
        """Give each outer ring its holes, and the polygon that runs through them all.

        From its first corner, a line to the left along the pixels above it reaches the edge on which a hole hangs. That
        edge's ring begins higher, so it is known to which outer ring it belongs.
        """
        ring_of = np.empty(len(self._keys), np.int64)
        for number, ring in enumerate(self.rings):
            ring_of[ring.edges] = number
        outer_of: list[_Ring] = []
        hanging: dict[int, list[_Ring]] = {}
        for ring in self.rings:
            if ring.is_outer:
                outer_of.append(ring)
                continue
            first = ring.edges[0]
            wanted = _UP * self._size + int(self._keys[first]) % self._size
            edge = int(np.searchsorted(self._keys, wanted, side="right")) - 1
            hanging.setdefault(edge, []).append(ring)
            outer_of.append(outer_of[ring_of[edge]])
            outer_of[-1].holes.append(ring)
        for ring in reversed(self.rings):  # what hangs on a ring begins lower
            ring.joined = self._through(ring, hanging)

    def _through(self, ring: _Ring, hanging: dict[int, list[_Ring]]) -> list[tuple[int, int]]:
        """The corners of a ring, with those of the rings that hang on its edges."""
        found: list[tuple[int, int]] = []
        begins = self._begins[ring.edges].tolist()
        places = zip(ring.edges, begins, self._x[ring.edges].tolist(), self._y[ring.edges].tolist(), strict=True)
        for edge, is_corner, x, y in places:
            holes = hanging.get(edge, ())
            if is_corner or holes:
                found.append((x, y))
            for hole in holes:
                found += [*hole.joined, hole.joined[0], (x, y)]
        return found


def _without_repeats(corners: list[tuple[int, int]]) -> np.ndarray:
    """Corners without those that stay in their place, int64 [N,2]."""
    found = np.array(corners)
    kept: np.ndarray = found[(found != np.roll(found, 1, axis=0)).any(axis=1)]
    return kept
