"""Which pixels a polygon covers, by COCO's rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from degrid.data.formats.shapes.region import NOTHING, Region

_SCALE = 5  # corners are rounded to fifths of a pixel
_FURTHEST = 1e6  # pixels from the image; a corner beyond is an error, not a corner


def corners(numbers: Sequence[float]) -> np.ndarray:
    """Corners, float64 [N,2], out of x, y, x, y, ...

    Raises:
        ValueError: not numbers, or an odd number of them.
    """
    found = np.asarray(numbers, np.float64)
    if found.ndim != 1 or len(found) % 2:
        raise ValueError(f"a polygon is x, y, x, y, ..; got {found.size} numbers")
    return found.reshape(-1, 2)


def polygon_region(polygon: np.ndarray, height: int, width: int) -> Region:
    """The pixels of a polygon, which may cross itself and leave the image; the same as pycocotools gives.

    Source: COCO's maskApi.c, rleFrPoly. Corners are rounded to fifths of a pixel, edges to the points of that finer
    grid. In each column of pixels, the points where edges cross its middle are rounded up to rows, and there the
    polygon begins and ends in turn. It draws every edge point by point; here each crossing is computed by itself.

    Args:
        polygon: corners x, y, float64 [N,2].
    Raises:
        ValueError: a corner is not a number, or far from any image.
    """
    if len(polygon) < 3:
        return NOTHING
    if not (np.abs(polygon) <= _FURTHEST).all():  # NaN is not, either
        raise ValueError(f"a polygon with the corner {polygon[np.argmax(~(np.abs(polygon) <= _FURTHEST).all(1))]}")
    start = np.trunc(_SCALE * polygon + 0.5).astype(np.int64)
    columns, rows = _crossings(start, np.roll(start, -1, axis=0), width)
    if not len(columns):
        return NOTHING
    # (rows + 0.5) / 5 - 0.5, rounded up
    rows = np.clip(-((2 - rows) // _SCALE), 0, height)
    left, top = int(columns.min()), int(rows.min())
    wide, high = int(columns.max()) - left + 1, int(rows.max()) - top
    # Column by column; where one ends inside, the next begins outside, since every column is crossed evenly often.
    turns = np.bincount((columns - left) * high + rows - top, minlength=wide * high + 1)[:-1]
    inside = np.cumsum(turns, dtype=np.uint8) & 1
    return Region(top, left, inside.view(bool).reshape(wide, high).T)


def _crossings(start: np.ndarray, end: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where edges cross the middles of columns.

    Args:
        start, end: of each edge, in fifths of a pixel, int64 [E,2] (x, y).
    Returns:
        int64 [K] each: the columns, and the rows in fifths of a pixel.
    """
    size = np.abs(end - start)
    steep = size[:, 1] > size[:, 0]
    # Along its longer side, every edge runs upwards.
    turned = np.where(steep, end[:, 1] < start[:, 1], end[:, 0] < start[:, 0])[:, None]
    start, end = np.where(turned, end, start), np.where(turned, start, end)
    # Column n has its middle between the points 5n + 2 and 5n + 3.
    lower, upper = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first = np.maximum(-((2 - lower) // _SCALE), 0)
    last = np.minimum((upper - 3) // _SCALE, width - 1)
    number = np.maximum(last - first + 1, 0)
    edge = np.repeat(np.arange(len(start)), number)
    columns = np.arange(len(edge)) - np.repeat(np.cumsum(number) - number - first, number)
    point = columns * _SCALE + 2
    (x, y), slope = start[edge].T, _slopes(start, end, steep)[edge]
    rows = np.where(steep[edge], _steep_rows(x, y, slope, point), _flat_rows(x, y, slope, point))
    return columns, rows


def _slopes(start: np.ndarray, end: np.ndarray, steep: np.ndarray) -> np.ndarray:
    """The change of the shorter side of each edge per step along the longer one."""
    change = (end - start).astype(np.float64)
    long, short = np.where(steep, change[:, 1], change[:, 0]), np.where(steep, change[:, 0], change[:, 1])
    slopes: np.ndarray = np.divide(short, long, out=np.zeros_like(long), where=long > 0)
    return slopes


def _flat_rows(x: np.ndarray, y: np.ndarray, slope: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Edges with a point at every x: the upper one of the points on both sides of the middle."""
    step = np.where(slope < 0, point + 1 - x, point - x)
    rows: np.ndarray = np.trunc(y + slope * step + 0.5).astype(np.int64)
    return rows


def _steep_rows(x: np.ndarray, y: np.ndarray, slope: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Edges with a point at every y: the last point before the middle."""
    # The exact crossing; rounding as the point-by-point rule does may put it a step before or after.
    guess = np.ceil(np.divide(point + 0.5 - x, slope, out=np.zeros(len(x)), where=slope != 0))
    beyond = np.stack([_passed(x, slope, point, guess + step) for step in (-1, 0)])
    rows: np.ndarray = y + guess.astype(np.int64) - beyond.sum(axis=0)
    return rows


def _passed(x: np.ndarray, slope: np.ndarray, point: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Whether the edge is beyond the middle at a step."""
    passed: np.ndarray = (np.trunc(x + slope * step + 0.5) > point) == (slope > 0)
    return passed


def is_upright_rectangle(numbers: Sequence[float]) -> bool:
    """Whether a polygon x, y, x, y, ... is a box: four corners in turn, perhaps with the first one again."""
    points = list(zip(numbers[::2], numbers[1::2], strict=False))
    points = points[:-1] if points[:1] == points[-1:] else points
    if len(points) != 4 or len(set(points)) != 4:
        return False
    (left, top), _, (right, bottom), _ = points
    # Four places with two different x and two different y are all corners of a box; in turn, if the third is opposite.
    return {x for x, _ in points} == {left, right} and {y for _, y in points} == {top, bottom}


def lies_inside(inner: np.ndarray, outer: np.ndarray) -> bool:
    """Whether all corners of a polygon, float64 [N,2], lie inside another one."""
    if (inner.min(0) < outer.min(0)).any() or (inner.max(0) > outer.max(0)).any():
        return False
    (x, y), (x0, y0), (x1, y1) = inner.T[..., None], outer.T, np.roll(outer, -1, axis=0).T
    passed = (y0 > y) != (y1 > y)
    crossing = x0 + (y - y0) * np.divide(x1 - x0, y1 - y0, out=np.zeros(len(outer)), where=y1 != y0)
    return bool(((passed & (x < crossing)).sum(axis=1) % 2 == 1).all())


def rectangle(left: float, top: float, width: float, height: float) -> np.ndarray:
    """The corners of a rectangle, float64 [4,2]."""
    right, bottom = left + width, top + height
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)


def ellipse_region(
    center: tuple[float, float], radii: tuple[float, float], angle: float, size: tuple[int, int]
) -> Region:
    """The pixels whose centres are in an ellipse.

    Args:
        center: x, y, in pixels.
        radii: half the width and half the height, pixels.
        angle: how far it is turned clockwise, degrees.
        size: of the image, height and width.
    """
    reach = max(radii)
    if not (reach < _FURTHEST and abs(center[0]) < _FURTHEST and abs(center[1]) < _FURTHEST):
        raise ValueError(f"an ellipse at {center} with the radii {radii}")
    left, top = (max(0, int(np.floor(middle - reach))) for middle in center)
    right, bottom = (min(end, int(np.ceil(middle + reach))) for middle, end in zip(center, size[::-1], strict=True))
    y, x = np.mgrid[top : max(top, bottom), left : max(left, right)] + 0.5
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    x, y = x - center[0], y - center[1]
    along, across = x * cos + y * sin, y * cos - x * sin
    return Region(top, left, (along * radii[1]) ** 2 + (across * radii[0]) ** 2 <= (radii[0] * radii[1]) ** 2)
