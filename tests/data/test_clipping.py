"""Extents of clipped masks against rasterisation."""

import numpy as np
import pytest

from detector.data.clipping import clipped_extents
from detector.data.rings import offsets_of, orient_rings


def extents_of(rings: list[np.ndarray], height: float, width: float) -> np.ndarray:
    """Each ring is a mask of its own."""
    offsets = offsets_of(np.array([len(ring) for ring in rings]))
    vertices = orient_rings(np.concatenate(rings).astype(float), offsets)
    return clipped_extents(vertices, offsets, np.arange(len(rings) + 1), height, width)


def clip_convex(ring: np.ndarray, height: float, width: float) -> list[np.ndarray]:
    """Cuts a convex ring by the four sides of the image in turn."""
    points = list(ring)
    for axis, sign, limit in ((0, 1, 0), (1, 1, 0), (0, -1, -width), (1, -1, -height)):
        kept = []
        for start, end in zip(points, points[1:] + points[:1], strict=True):
            at_start, at_end = sign * start[axis] - limit, sign * end[axis] - limit
            if at_start >= 0:
                kept.append(start)
            if (at_start >= 0) != (at_end >= 0):
                kept.append(start + at_start / (at_start - at_end) * (end - start))
        points = kept
    return points


def random_stars(seed: int, equal_radii: bool) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-6, 22, (60, 1, 2))
    angles = np.sort(rng.uniform(0, 2 * np.pi, (60, 7)))
    radii = rng.uniform(2, 12, (60, 1 if equal_radii else 7, 1))
    return list(centres + radii * np.stack([np.cos(angles), np.sin(angles)], axis=-1))


@pytest.mark.parametrize("seed", range(4))
def test_random_convex_polygons(seed):
    rings = random_stars(seed, equal_radii=True)
    for ring, extent in zip(rings, extents_of(rings, 12, 16), strict=True):
        points = clip_convex(ring, 12, 16)
        expected = [*np.min(points, axis=0), *np.max(points, axis=0)] if points else [0, 0, 0, 0]
        np.testing.assert_allclose(extent, expected, atol=5e-5)  # a grid of 2^-16


@pytest.mark.parametrize("seed", range(4))
def test_random_concave_polygons(rasterize, seed):
    height, width, scale = 12, 16, 16
    rings = random_stars(seed, equal_radii=False)
    for ring, extent in zip(rings, extents_of(rings, height, width), strict=True):
        mask = rasterize([ring * scale], height * scale, width * scale)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            # A raster cell counts if its centre is covered: half a cell either way.
            fine = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / scale
            assert (extent[:2] <= fine[:2] + 0.5 / scale).all()
            assert (extent[2:] >= fine[2:] - 0.5 / scale).all()
        inside = ((ring >= 0) & (ring <= [width, height])).all(axis=1)
        if inside.all():
            np.testing.assert_allclose(extent, [*ring.min(axis=0), *ring.max(axis=0)], atol=1e-5)


def test_inside_across_around_and_outside():
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]])
    rings = [square + 3, square + [8, 2], square * 10 - 10, square + [20, 0], square - [4, 0]]
    extents = extents_of(rings, 9, 10)
    assert extents.tolist() == [
        [3, 3, 7, 7],
        [8, 2, 10, 6],
        [0, 0, 10, 9],
        [0, 0, 0, 0],
        [0, 0, 0, 0],  # touches the border only
    ]


def test_the_diagonal_edge_decides_not_the_vertices():
    triangle = np.array([[-10, 5], [30, 5], [30, -35]])  # crosses the top border at x = 25
    assert extents_of([triangle], 10, 28).tolist() == [[0, 0, 28, 5]]
    assert extents_of([triangle + [0, 38]], 10, 28).tolist() == [[23, 5, 28, 10]]


def test_masks_of_several_rings_and_of_none():
    square = np.array([[0.0, 0], [2, 0], [2, 2], [0, 2]])
    vertices = np.concatenate([square + [1, 1], square + [6, 5]])
    extents = clipped_extents(vertices, np.array([0, 4, 8]), np.array([0, 0, 2, 2]), 6, 20)
    assert extents.tolist() == [[0, 0, 0, 0], [1, 1, 8, 6], [0, 0, 0, 0]]


def test_a_mask_with_a_hole_over_a_corner_of_the_image():
    outer = np.array([[-5.0, -5], [8, -5], [8, 8], [-5, 8]])
    hole = np.array([[-2.0, -2], [-2, 3], [3, 3], [3, -2]])
    extents = clipped_extents(
        np.concatenate([outer, hole]), np.array([0, 4, 8]), np.array([0, 2]), 20, 20
    )
    assert extents.tolist() == [[0, 0, 8, 8]]


def test_a_part_that_touches_from_outside_does_not_count():
    """As masks of whole pixels do: of two parts of a mask, one ends where the image does."""
    parts = np.array([[2, 2], [5, 2], [5, 5], [2, 5], [6, 9], [9, 9], [9, 12], [6, 12]], float)
    extents = clipped_extents(parts, np.array([0, 4, 8]), np.array([0, 2]), 9, 10)
    assert extents.tolist() == [[2, 2, 5, 5]]
