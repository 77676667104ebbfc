"""Clipping against areas, point tests and hand-computed figures."""

from __future__ import annotations

import numpy as np
import pytest

from detector.data.polygon_clipping import (
    DegenerateClip,
    contains,
    difference,
    intersection,
    region_area,
    ring_area,
    without_holes,
)


def square(x: float, y: float, side: float) -> np.ndarray:
    return np.array([(x, y), (x + side, y), (x + side, y + side), (x, y + side)], float)


def random_ring(rng: np.random.Generator) -> np.ndarray:
    """A simple ring that is far from convex."""
    count = int(rng.integers(3, 15))
    angle = 2 * np.pi * (np.arange(count) + rng.uniform(0, 0.8, count)) / count
    radius = rng.uniform(0.2, 1.0, count)
    ring = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) + rng.uniform(-0.6, 0.6, 2)
    return ring if ring_area(ring) > 0 else ring[::-1]


def test_overlapping_squares_by_hand():
    left, right = square(0, 0, 2), square(1, 0.5, 2)
    common = intersection([left], right)
    assert region_area(common) == pytest.approx(1.0 * 1.5)
    corners = sorted(map(tuple, common[0].tolist()))
    assert corners == [(1.0, 0.5), (1.0, 2.0), (2.0, 0.5), (2.0, 2.0)]
    assert region_area(difference([left], right)) == pytest.approx(4 - 1.5)


def test_a_bar_across_splits_in_two():
    bar = np.array([(-1, 0.9), (3, 0.9), (3, 1.2), (-1, 1.2)])
    parts = difference([square(0, 0, 2)], bar)
    assert sorted(round(ring_area(part), 9) for part in parts) == [1.6, 1.8]


def test_nested_apart_and_swallowed():
    outer, inner = square(0, 0, 4), square(1, 1, 1)
    holed = difference([outer], inner)
    assert sorted(ring_area(ring) for ring in holed) == [-1.0, 16.0]
    assert difference([inner], outer) == []
    assert region_area(intersection([outer], inner)) == 1.0
    away = square(9, 9, 1)
    assert intersection([outer], away) == []
    assert region_area(difference([outer], away)) == 16.0
    assert difference([], outer) == []


def test_holes_become_cuts_of_the_same_area():
    region = [square(0, 0, 10)]
    for hole in (square(1, 1, 2), square(2.2, 6, 1.5), square(6, 3, 3)):
        region = difference(region, hole)
    island = square(20, 0, 1)
    rings = without_holes([*region, island])
    assert all(ring_area(ring) > 0 for ring in rings)
    assert region_area(rings) == pytest.approx(100 - 4 - 2.25 - 9 + 1)
    points = np.random.default_rng(0).uniform(0, 10, (500, 2))
    assert (contains(rings, points) == contains(region, points)).all()
    assert sum(len(ring) == 4 and ring[0, 0] >= 20 for ring in rings) == 1, "the island stays whole"


def test_a_hole_belongs_to_the_innermost_ring_around_it():
    target = [square(side, side, 12 - 2 * side) for side in range(5)]
    region = [ring if depth % 2 == 0 else ring[::-1] for depth, ring in enumerate(target)]
    rings = without_holes(region)
    assert all(ring_area(ring) > 0 for ring in rings)
    assert region_area(rings) == pytest.approx(144 - 100 + 64 - 36 + 16)
    points = np.random.default_rng(0).uniform(0, 12, (500, 2))
    assert (contains(rings, points) == contains(region, points)).all()


@pytest.mark.parametrize("seed", range(40))
def test_random_rings_agree_with_point_tests(seed: int):
    rng = np.random.default_rng(seed)
    region = [random_ring(rng)]
    inside = contains(region, points := rng.uniform(-1.6, 1.6, (400, 2)))
    for _ in range(3):
        ring = random_ring(rng)
        rest, common = difference(region, ring), intersection(region, ring)
        assert region_area(rest) + region_area(common) == pytest.approx(region_area(region))
        assert (contains(common, points) == (inside & contains([ring], points))).all()
        region, inside = rest, inside & ~contains([ring], points)
        assert (contains(region, points) == inside).all()
    assert (contains(without_holes(region), points) == inside).all()
    assert region_area(without_holes(region)) == pytest.approx(region_area(region))


def test_touching_corners_are_reported_not_guessed():
    tip = np.array([(1.0, 1.0), (3.0, 0.5), (3.0, 1.5)])  # its tip lies on the square's side
    try:
        rest = difference([square(-1, 0, 2)], tip)
    except DegenerateClip:
        return
    assert region_area(rest) == pytest.approx(4.0)
