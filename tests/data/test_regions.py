"""Intersections and differences of masks, and their pixels, against a plain rasteriser."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.data import regions
from detector.data.bitmaps import cover
from detector.data.rings import offsets_of
from tests.data.conftest import rasterize_rings

SIDE = 40
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)
# Whole numbers make rings that touch, overlap along edges and visit a vertex twice.
WHOLE = st.integers(-5, SIDE + 5).map(float)
# Thirds and sevenths are never half a pixel, where a centre would lie on an edge.
BROKEN = st.integers(-100, 900).map(lambda number: number / 21 + 0.01)


def rings_of(numbers) -> st.SearchStrategy:
    ring = st.lists(st.tuples(numbers, numbers), min_size=3, max_size=9)
    return st.lists(ring.map(lambda points: np.array(points, np.float32)), min_size=1, max_size=3)


def bitmap(rings: list[np.ndarray]) -> np.ndarray:
    return rasterize_rings(rings, SIDE, SIDE)


@SETTINGS
@given(numbers=st.sampled_from([WHOLE, BROKEN]), data=st.data())
def test_pixels_are_those_of_a_plain_loop(numbers, data):
    rings = data.draw(rings_of(numbers))
    offsets = offsets_of(np.array([len(ring) for ring in rings]))
    height, width = data.draw(st.tuples(st.integers(1, SIDE), st.integers(1, SIDE)))
    expected = rasterize_rings(rings, height, width)
    np.testing.assert_array_equal(cover(np.concatenate(rings), offsets, height, width), expected)


def test_no_ring_covers_nothing():
    assert not cover(np.zeros((0, 2)), np.zeros(1, np.int64), 4, 5).any()


@SETTINGS
@given(data=st.data())
def test_whole_pixels_are_cut_exactly(data):
    """Stairs of pixels: rings that cross themselves, share edges and turn backwards."""
    corners = st.tuples(*[st.integers(-3, SIDE + 3)] * 4)
    rectangles = st.lists(corners, min_size=1, max_size=4)
    one, other = ([regions.rectangle(*each) for each in data.draw(rectangles)] for _ in range(2))
    paths = regions.to_paths(other)
    both = regions.intersection(one, paths)
    rest = regions.difference(one, paths)
    first, second = bitmap(one), bitmap(other)
    np.testing.assert_array_equal(bitmap(both), first & second)
    np.testing.assert_array_equal(bitmap(rest), first & ~second)
    np.testing.assert_array_equal(bitmap(regions.union(one)), first)
    # Wound around once, and not outside: areas add up.
    parts = regions.area(both) + regions.area(rest)
    assert parts == pytest.approx(regions.area(regions.union(one)), abs=1e-6)


@SETTINGS
@given(data=st.data())
def test_any_rings_are_cut_to_the_last_vertex(data):
    one, other = data.draw(rings_of(BROKEN)), data.draw(rings_of(BROKEN))
    paths = regions.to_paths(other)
    both, rest = regions.intersection(one, paths), regions.difference(one, paths)
    first, second = bitmap(one), bitmap(other)
    # A vertex may move by 2^-16 of a pixel: one centre in thousands may change sides.
    assert (bitmap(both) != (first & second)).sum() <= 1
    assert (bitmap(rest) != (first & ~second)).sum() <= 1
    parts = regions.area(both) + regions.area(rest)
    assert parts == pytest.approx(regions.area(regions.union(one)), abs=0.01)


def test_a_hole_turns_the_other_way():
    paths = regions.to_paths([regions.rectangle(4, 4, 6, 6)])
    frame = regions.difference([regions.rectangle(0, 0, 10, 10)], paths)
    assert sorted(regions.area([ring]) for ring in frame) == [-4, 100]
    assert regions.area(frame) == 96
    assert regions.extent(frame).tolist() == [0, 0, 10, 10]


@pytest.mark.parametrize(
    "nothing", [[], [np.zeros((3, 2), np.float32)], [regions.rectangle(1, 2, 9, 2)]]
)
def test_rings_without_area(nothing):
    square = [regions.rectangle(0, 0, 10, 10)]
    assert regions.union(nothing) == []
    assert regions.intersection(nothing, regions.to_paths(square)) == []
    assert regions.difference(nothing, regions.to_paths(square)) == []
    assert regions.intersection(square, regions.to_paths(nothing)) == []
    assert regions.area(regions.difference(square, regions.to_paths(nothing))) == 100
    assert regions.area(regions.union([*square, *nothing])) == 100
