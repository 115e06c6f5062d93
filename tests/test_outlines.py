"""Outlines of regions: drawn again they give the same ids; small regions are joined to their neighbours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_shapes import reference

from degrid.data.formats.shapes.outlines import outlines, without_small
from degrid.data.formats.shapes.polygon import polygon_region
from degrid.data.formats.shapes.region import window
from degrid.types import UserError


def drawn(ids, **options):
    """Every region drawn by its outline alone: the ids, and in how many regions each pixel is."""
    label, count = np.full(ids.shape, 99, np.uint8), np.zeros(ids.shape, int)
    for outline in outlines(ids, **options):
        region = polygon_region(outline.joined, *ids.shape)
        window(label, region)[region.pixels] = outline.value
        window(count, region)[...] += region.pixels
    return label, count


@st.composite
def maps(draw):
    """Ids as noise, or as patches, up to 17 x 17 pixels."""
    height, width, classes, step = (draw(st.integers(1, high)) for high in (17, 17, 5, 4))
    noise = np.random.default_rng(draw(st.integers(0, 999))).integers(0, classes, (height, width), np.uint8)
    return np.kron(noise, np.ones((step, step), np.uint8))[:height, :width]


@given(maps())
def test_outlines_cover_each_pixel_once_with_its_class(ids):
    label, count = drawn(ids)
    assert label.tolist() == ids.tolist()
    assert (count == 1).all()


@given(maps(), st.integers(0, 999))
def test_areas_and_means_are_those_of_the_pixels(ids, seed):
    weights = np.random.default_rng(seed).random(ids.shape)
    found = outlines(ids, leave=(1,), weights=weights)
    assert 1 not in {outline.value for outline in found}
    assert sum(outline.area for outline in found) == np.count_nonzero(ids != 1)
    for outline in found:
        region = polygon_region(outline.joined, *ids.shape)
        assert outline.area == np.count_nonzero(region.pixels)
        assert outline.mean == pytest.approx(window(weights, region)[region.pixels].mean())
        # pycocotools draws the outer border less the holes, and the polygon with cuts, alike
        outer, whole, *holes = (
            reference([ring.ravel().tolist()], *ids.shape) for ring in (outline.outer, outline.joined, *outline.holes)
        )
        assert whole.tolist() == (outer & ~np.any([np.zeros_like(outer), *holes], axis=0)).tolist()


def test_an_outline_by_hand():
    """A ring of 8 pixels around a hole, which touches another pixel of its class by a corner only."""
    ids = np.zeros((5, 5), np.uint8)
    ids[0:3, 0:3] = 7
    ids[1, 1] = 0
    ids[3, 3] = 7
    ring, *others = outlines(ids)
    assert ring.outer.tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]]
    assert [inner.tolist() for inner in ring.holes] == [[[2, 1], [1, 1], [1, 2], [2, 2]]]
    assert (ring.value, ring.area, np.isnan(ring.mean)) == (7, 8, True)
    assert [(other.value, other.area, len(other.holes)) for other in others] == [(0, 15, 0), (0, 1, 0), (7, 1, 0)]


def blobs():
    """Four classes with smooth borders, 60 x 80 pixels."""
    y, x = np.mgrid[:60, :80]
    return ((np.sin(x / 9) + np.cos(y / 7 + x / 31) > 0) * 2 + (np.sin(y / 11 + x / 23) > 0.2)).astype(np.uint8)


def test_simplified_neighbours_leave_no_gaps():
    ids = blobs()
    corners = sum(len(outline.joined) for outline in outlines(ids))
    for tolerance, most_wrong in ((0.8, 0.05), (2.0, 0.08)):
        label, count = drawn(ids, tolerance=tolerance)
        assert (count == 1).mean() > 0.999
        assert (label != ids).mean() <= most_wrong
        fewer = sum(len(outline.joined) for outline in outlines(ids, tolerance=tolerance))
        assert fewer < 0.4 * corners
    with pytest.raises(UserError, match="the tolerance of outlines must be 0 or more pixels, got -1"):
        outlines(ids, tolerance=-1)


def test_a_region_that_is_thinner_than_the_tolerance_stays():
    ids = np.zeros((9, 9), np.uint8)
    ids[4, 4] = 1
    ids[1, 1:8] = 2
    assert sorted((outline.value, outline.area) for outline in outlines(ids, tolerance=5)) == [(0, 73), (1, 1), (2, 7)]
    assert all(len(outline.outer) >= 3 for outline in outlines(ids, tolerance=5))


def test_small_regions_take_the_class_of_the_longest_border():
    ids = np.array([[1, 1, 1, 2, 2], [1, 3, 3, 2, 2], [1, 1, 1, 2, 2], [255, 255, 4, 255, 255]], np.uint8)
    assert without_small(ids, 3).tolist() == [
        [1, 1, 1, 2, 2],
        [1, 1, 1, 2, 2],
        [1, 1, 1, 2, 2],
        [255, 255, 1, 255, 255],
    ]
    assert without_small(ids, 1).tolist() == ids.tolist()
    alone = np.array([[255, 4, 255]], np.uint8)
    assert without_small(alone, 9).tolist() == alone.tolist()


@given(maps(), st.integers(1, 40))
def test_no_small_region_is_left(ids, smallest):
    found = outlines(without_small(ids, smallest))
    assert all(outline.area >= smallest for outline in found) or len(found) == 1
    assert {outline.value for outline in found} <= set(ids.ravel().tolist())


def test_pixels_that_meet_at_a_corner_are_apart():
    assert len(outlines(np.eye(3, dtype=bool))) == 3
    # A hole that touches the outside at a corner is a bay: one border, which visits that corner twice.
    mask = np.ones((3, 3), bool)
    mask[1, 1] = mask[0, 0] = False
    (found,) = outlines(mask)
    assert not found.holes
    assert found.outer.tolist().count([1, 1]) == 2
