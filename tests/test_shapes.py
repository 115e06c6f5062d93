"""Polygons and run-length codes as pixels, proved against pycocotools."""

import warnings

import numpy as np
import pytest
from pycocotools import mask as tools

from degrid.data.formats.shapes.coco import segmentation_region
from degrid.data.formats.shapes.polygon import corners, polygon_region
from degrid.data.formats.shapes.region import NOTHING, Region, Thing, draw, union, without
from degrid.data.formats.shapes.runs import packed, runs_of, runs_region, unpacked
from degrid.types import IGNORE_INDEX


def whole(region, height, width):
    """The region in an image, bool [H,W]."""
    return draw([Thing(1, region)], height, width) == 1


def reference(segmentation, height, width):
    """What pycocotools draws, bool [H,W]."""
    with warnings.catch_warnings():  # pycocotools 2.0.11 uses an API that numpy 2 deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        code = tools.frPyObjects(segmentation, height, width)
        return tools.decode(tools.merge(code) if isinstance(code, list) else code).astype(bool)


def same(polygon, height, width):
    ours = whole(polygon_region(np.asarray(polygon, np.float64).reshape(-1, 2), height, width), height, width)
    theirs = reference([np.asarray(polygon, np.float64).ravel().tolist()], height, width)
    assert np.array_equal(ours, theirs), (np.asarray(polygon).tolist(), height, width)


def random_polygon(rng, height, width):
    """Of any kind: round, self-crossing, thin, on whole, half or fifth numbers, partly or wholly outside."""
    number = int(rng.integers(3, 12))
    reach = rng.choice([0.2, 1.0, 1.6, 3.0])
    middle = rng.uniform(-0.3, 1.3, 2) if rng.random() < 0.3 else rng.uniform(0, 1, 2)
    points = (middle + reach * rng.uniform(-0.5, 0.5, (number, 2))) * (width, height)
    if rng.random() < 0.3:  # by angle: not crossing itself
        around = points - points.mean(0)
        points = points[np.argsort(np.arctan2(around[:, 1], around[:, 0]))]
    step = rng.choice([0, 1, 0.5, 0.2, 0.1])
    points = np.round(points / step) * step if step else points
    if rng.random() < 0.2:  # corners that come twice
        points = np.repeat(points, rng.integers(1, 3, number), axis=0)
    if rng.random() < 0.1:  # all upon a line
        points[:, int(rng.integers(2))] = points[0, 0]
    return points


def test_polygons_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(6000):
        height, width = (int(size) for size in rng.integers(1, 60, 2))
        same(random_polygon(rng, height, width), height, width)


def test_large_polygons_are_those_of_pycocotools():
    """Long edges, whose points the reference rounds after a multiplication, so that ties matter."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        height, width = (int(size) for size in rng.integers(300, 900, 2))
        same(random_polygon(rng, height, width), height, width)
        same(np.round(rng.uniform(0, 5 * width, (4, 2))) / 5, height, width)  # slopes of small fractions


@pytest.mark.parametrize(
    "polygon",
    [
        [(0, 0), (10, 0), (10, 8), (0, 8)],  # the whole image
        [(0.5, 0.5), (3.5, 0.5), (3.5, 3.5), (0.5, 3.5)],  # through the centres of pixels
        [(2, 2), (2, 2), (2, 2)],  # a point
        [(1, 1), (9, 7), (1, 1)],  # a line
        [(1, 1), (9, 1), (5, 1)],
        [(-5, -5), (-1, -5), (-1, -1)],  # outside
        [(12, 2), (19, 2), (15, 9)],
        [(-3, 12), (14, 12), (5, 30)],
        [(-100, -100), (100, -100), (100, 100), (-100, 100)],  # all around
        [(1, 1), (9, 7), (9, 1), (1, 7)],  # a bow tie
        [(1, 1), (8, 1), (8, 7), (1, 7), (1, 1), (8, 1), (8, 7), (1, 7)],  # twice round
        [(-0.3, -0.3), (4, -0.7), (4.1, 3), (-0.1, 3)],  # negative numbers are rounded towards zero
        [(0, 0), (10, 0), (10, 0.5), (0, 0.5)],  # thinner than a pixel
    ],
)
def test_odd_polygons_are_those_of_pycocotools(polygon):
    same(polygon, 8, 10)
    same(polygon[::-1], 8, 10)


def test_a_square_by_hand():
    """Pixels whose centre is inside: columns 1 to 3 have theirs at 1.5, 2.5 and 3.5."""
    region = polygon_region(corners([1, 1, 4, 1, 4, 3, 1, 3]), 5, 6)
    assert (region.top, region.left) == (1, 1)
    assert region.pixels.tolist() == [[True] * 3] * 2


def test_few_corners_enclose_nothing():
    for polygon in ([], [1, 1], [1, 1, 5, 5]):  # pycocotools would take the last for a box
        assert polygon_region(corners(polygon), 8, 8) == NOTHING


@pytest.mark.parametrize("bad", [[1, 2, 3, 4, 5], ["a"] * 6, [[1, 2], [3, 4]], [None] * 6])
def test_corners_that_are_none(bad):
    with pytest.raises((ValueError, TypeError)):
        polygon_region(corners(bad), 8, 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e300])
def test_corners_far_from_any_image(bad):
    with pytest.raises(ValueError, match="a polygon with the corner"):
        polygon_region(corners([0, 0, 5, bad, 5, 5]), 8, 8)


def test_parts_are_united_as_pycocotools_merges():
    rng = np.random.default_rng(2)
    for _ in range(300):
        height, width = (int(size) for size in rng.integers(5, 40, 2))
        parts = [random_polygon(rng, height, width).ravel().tolist() for _ in range(rng.integers(2, 5))]
        ours = whole(segmentation_region(parts, height, width), height, width)
        assert np.array_equal(ours, reference(parts, height, width))


def test_a_polygon_without_the_list_around_it():
    polygon = [1, 1, 4, 1, 4, 3, 1, 3]
    assert segmentation_region(polygon, 5, 6).pixels.tolist() == segmentation_region([polygon], 5, 6).pixels.tolist()


def test_holes_are_cut_out():
    """A hole takes away just what a polygon of its own would cover."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        outer, inner = (polygon_region(random_polygon(rng, 30, 40), 30, 40) for _ in range(2))
        cut = whole(without(outer, [inner]), 30, 40)
        assert np.array_equal(cut, whole(outer, 30, 40) & ~whole(inner, 30, 40))
    assert without(outer, []).pixels.tolist() == outer.pixels.tolist()


# ---- run lengths --------------------------------------------------------------------------------------------


def codes(mask):
    """The same pixels as numbers and packed, as pycocotools writes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        packed = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    flat = mask.ravel(order="F").astype(np.int8)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    return packed, {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(4)
    for _ in range(600):
        height, width = (int(size) for size in rng.integers(1, 50, 2))
        mask = rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 0.98, 1])
        if rng.random() < 0.5:
            mask[:, : width // 3] = mask[:, -width // 4 :] = False
        packed, plain = codes(mask)
        assert unpacked(packed["counts"]) == plain["counts"]
        as_text = {**packed, "counts": packed["counts"].decode()}
        for code in (packed, as_text, plain):
            assert np.array_equal(whole(runs_region(code, height, width), height, width), mask)


def test_runs_of_no_length():
    assert whole(runs_region({"size": [2, 2], "counts": [1, 0, 1, 2, 0]}, 2, 2), 2, 2).tolist() == [[False, True]] * 2
    assert runs_region({"size": [2, 2], "counts": [4, 0]}, 2, 2) == NOTHING


MASKS = [
    np.zeros((3, 4), bool),
    np.ones((3, 4), bool),
    np.eye(3, dtype=bool),
    np.eye(4, 7, 2, dtype=bool),
    np.indices((6, 5)).sum(axis=0) % 2 == 0,
    np.pad(np.zeros((3, 3), bool), 2, constant_values=True),
    *(np.random.default_rng(seed).random((23, 31)) < share for seed, share in enumerate((0.1, 0.5, 0.7, 0.9, 0.98))),
]


@pytest.mark.parametrize("mask", MASKS)
def test_masks_and_run_lengths(mask):
    height, width = mask.shape
    counts = runs_of(mask)
    assert np.array_equal(
        whole(runs_region({"size": [height, width], "counts": counts}, height, width), *mask.shape), mask
    )
    assert unpacked(packed(counts)) == counts
    theirs = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert packed(counts).encode() == theirs["counts"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ({"size": [2, 3], "counts": [6]}, "its size is"),
        ({"size": [2, 2], "counts": [1, 2]}, "add up to 3"),
        ({"size": [2, 2], "counts": [3, -1, 2]}, "add up to 4"),
        ({"size": [2, 2], "counts": "zz"}, "add up to -?[0-9]+"),
        ({"size": [2, 2], "counts": "P"}, "cut short or negative"),
    ],
)
def test_damaged_runs(code, message):
    with pytest.raises(ValueError, match=message):
        runs_region(code, 2, 2)


# ---- drawing ------------------------------------------------------------------------------------------------


def block(top, left, height, width):
    return Region(top, left, np.ones((height, width), bool))


def test_the_smaller_is_seen_and_crowds_are_void_below():
    things = [Thing(1, block(0, 0, 1, 2)), Thing(2, block(0, 1, 1, 4)), Thing(3, block(0, 4, 1, 2), crowd=True)]
    for order in (things, things[::-1]):
        assert draw(order, 1, 7).tolist() == [[1, 1, 2, 2, 2, IGNORE_INDEX, 0]]
    assert draw([Thing(1, block(0, 0, 1, 2)), Thing(2, block(0, 1, 1, 2))], 1, 3).tolist() == [[1, 2, 2]]


def test_only_what_is_inside_the_image_counts():
    """Of the first object 2 pixels are seen, of the second 3."""
    things = [Thing(1, block(-5, -5, 6, 7)), Thing(2, block(0, 0, 1, 3))]
    assert draw(things, 1, 4).tolist() == [[1, 1, 2, 0]]
    assert draw([Thing(1, block(9, 9, 2, 2)), Thing(1, block(-9, -9, 2, 2))], 2, 2).tolist() == [[0, 0], [0, 0]]


def test_unions():
    assert union([]) == NOTHING
    joined = union([block(1, 1, 1, 1), NOTHING, block(2, 3, 1, 1)])
    assert (joined.top, joined.left) == (1, 1)
    assert joined.pixels.tolist() == [[True, False, False], [False, False, True]]
