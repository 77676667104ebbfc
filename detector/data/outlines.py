"""Outlines of shapes that annotation tools draw, as polygons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detector.data.rings import offsets_of, ring_areas, trace_runs

_NUM_VERTICES = 64  # of an ellipse: its area is .2 % too small


def ellipse(centre: Sequence[float], radii: tuple[float, float], angle: float = 0.0) -> list[float]:
    """A polygon ``[x, y, x, y, ...]`` on an ellipse.

    Args:
        centre: ``(x, y)``.
        radii: along its own axes.
        angle: by which these are turned, radians.
    """
    steps = np.linspace(0, 2 * np.pi, _NUM_VERTICES, endpoint=False)
    along, across = radii[0] * np.cos(steps), radii[1] * np.sin(steps)
    x = centre[0] + along * np.cos(angle) - across * np.sin(angle)
    y = centre[1] + along * np.sin(angle) + across * np.cos(angle)
    return np.stack([x, y], axis=1).ravel().tolist()


def circle(centre: Sequence[float], radius: float) -> list[float]:
    """A polygon ``[x, y, x, y, ...]`` on a circle."""
    return ellipse(centre, (radius, radius))


def trace_bitmap(bitmap: np.ndarray) -> list[np.ndarray]:
    """Polygons ``(v, 2)`` along the pixel edges of an ``(h, w)`` bool mask, whose union it is."""
    height, width = bitmap.shape
    flat = np.concatenate([[False], bitmap.ravel(order="F"), [False]])
    borders = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], borders, [height * width]]))
    rings = trace_runs(counts, np.array([0, len(counts)]), np.array([height]), np.array([width]))
    pieces = np.split(rings.vertices.astype(np.float64), rings.vertex_offsets[1:-1])
    return bridge_holes(pieces)


def bridge_holes(rings: list[np.ndarray]) -> list[np.ndarray]:
    """Polygons whose union is a mask that is given by rings, see :mod:`detector.data.rings`.

    Rings of a mask without holes are such polygons. If there are holes, all rings become one
    polygon, joined by bridges without width.
    """
    vertices = np.concatenate(rings)
    areas = ring_areas(vertices, offsets_of(np.array([len(ring) for ring in rings])))
    return [join_rings(rings)] if (areas < 0).any() else rings


def join_rings(rings: list[np.ndarray]) -> np.ndarray:
    """One ring that winds around every point as often as the given rings do together, ``(v, 2)``.

    From the vertex nearest to the next ring a bridge leads there and, once around it, back.
    """
    joined, *others = rings
    for ring in others:
        squared = ((joined[:, None] - ring[None]) ** 2).sum(axis=2)
        here, there = np.unravel_index(squared.argmin(), squared.shape)
        around = np.concatenate([np.roll(ring, -there, axis=0), ring[there : there + 1]])
        joined = np.concatenate([joined[: here + 1], around, joined[here:]])
    return joined


def clip_ring(ring: np.ndarray, width: float, height: float) -> np.ndarray:
    """The part of a ring ``(v, 2)`` inside an image, ``(w, 2)``; no vertex if none is.

    Sutherland and Hodgman, Reentrant Polygon Clipping, 1974: cut by one side after the other. Where
    the ring leaves and comes back, it runs along the image's border.
    """
    sides = ((0, 0, False), (0, width, True), (1, 0, False), (1, height, True))
    for axis, limit, keeps_less in sides:
        if len(ring) == 0:
            break
        distance = limit - ring[:, axis] if keeps_less else ring[:, axis] - limit
        if (distance >= 0).all():
            continue
        kept = []
        for start, end, here, there in zip(
            ring, np.roll(ring, -1, axis=0), distance, np.roll(distance, -1), strict=True
        ):
            if here >= 0:
                kept.append(start)
            if (here >= 0) != (there >= 0):
                crossing = start + here / (here - there) * (end - start)
                crossing[axis] = limit
                kept.append(crossing)
        ring = np.array(kept).reshape(-1, 2)
    return ring
