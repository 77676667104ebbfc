"""What is left of masks that are cut: intersections and differences of rings, exact to the vertex.

Clipper (Vatti, "A generic solution to polygon clipping", 1992) knows the non-zero winding rule that
masks are meant by, and rings that cross themselves or share edges, as annotations do. It computes
in integers: vertices are put on a grid of 2^-16 pixels, finer than float32 beyond pixel 128.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyclipper

Region = list[np.ndarray]
Paths = list[list[list[int]]]

_GRID = 65536.0


def to_paths(rings: Sequence[np.ndarray]) -> Paths:
    """Rings ``(v, 2)`` in Clipper's integers."""
    return [
        np.rint(np.asarray(ring, np.float64) * _GRID).astype(np.int64).tolist() for ring in rings
    ]


def intersection(rings: Sequence[np.ndarray], others: Paths) -> Region:
    """The part of a mask inside another one.

    Args:
        rings: each ``(v, 2)`` in pixels, a mask under the non-zero winding rule.
        others: :func:`to_paths` of the other mask's rings.

    Returns:
        Rings ``(v, 2)`` float32 that wind once around every point of the part, outer ones of
        positive area, holes of negative; none where nothing is left.
    """
    return _combine(pyclipper.CT_INTERSECTION, rings, others)


def difference(rings: Sequence[np.ndarray], others: Paths) -> Region:
    """The part of a mask outside another one; see :func:`intersection`."""
    return _combine(pyclipper.CT_DIFFERENCE, rings, others)


def union(rings: Sequence[np.ndarray]) -> Region:
    """The whole mask; see :func:`intersection`."""
    return _combine(pyclipper.CT_UNION, rings, [])


def rectangle(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    """The ring of a rectangle, ``(4, 2)`` float32."""
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32)


def extent(rings: Sequence[np.ndarray]) -> np.ndarray:
    """The box ``(4,)`` float32 ``(x1, y1, x2, y2)`` around at least one ring."""
    vertices = np.concatenate(list(rings))
    return np.concatenate([vertices.min(axis=0), vertices.max(axis=0)])


def area(rings: Sequence[np.ndarray]) -> float:
    """Square pixels of a mask whose rings wind once around its points, as those made here do."""
    total = 0.0
    for ring in rings:
        x, y = (ring - ring[0]).astype(np.float64).T
        total += 0.5 * float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    return total


def _combine(operation: int, rings: Sequence[np.ndarray], others: Paths) -> Region:
    clipper = pyclipper.Pyclipper()
    # Clipper refuses rings without area; of these, nothing is left or taken away.
    if not _add(clipper, to_paths(rings), pyclipper.PT_SUBJECT):
        return []
    if not _add(clipper, others, pyclipper.PT_CLIP) and operation == pyclipper.CT_INTERSECTION:
        return []
    found = clipper.Execute(operation, pyclipper.PFT_NONZERO, pyclipper.PFT_NONZERO)
    return [(np.array(path, np.float64) / _GRID).astype(np.float32) for path in found]


def _add(clipper: pyclipper.Pyclipper, paths: Paths, role: int) -> bool:
    try:
        return bool(paths) and (clipper.AddPaths(paths, role, True) or True)
    except pyclipper.ClipperException:
        return False
