"""The part of a mask inside the image, without rasterising it."""

from __future__ import annotations

import itertools

import numpy as np

from detector.data import regions


def clipped_extents(
    vertices: np.ndarray,
    vertex_offsets: np.ndarray,
    ring_offsets: np.ndarray,
    height: float,
    width: float,
) -> np.ndarray:
    """Smallest boxes around the parts of n masks inside the image.

    Of a mask inside, the extent of its vertices. Of one that sticks out, the extent of its
    intersection with the image: what only touches a side from outside, as masks of whole pixels
    do, is no part of it.

    Args:
        vertices: ``(V, 2)`` in pixels.
        vertex_offsets: ``(R + 1,)`` rings in ``vertices``.
        ring_offsets: ``(n + 1,)`` masks in the rings.
        height: of the rectangle from the origin.
        width: likewise.

    Returns:
        ``(n, 4)`` float32 ``(x1, y1, x2, y2)``; zeros for masks outside the image or without rings.
    """
    extents = np.zeros((len(ring_offsets) - 1, 4), np.float32)
    offsets = vertex_offsets[ring_offsets]
    drawn = np.flatnonzero(offsets[1:] > offsets[:-1])
    if len(drawn) == 0:
        return extents
    points = np.asarray(vertices, np.float32)[: offsets[-1]]
    low, high = (side.reduceat(points, offsets[drawn]) for side in (np.minimum, np.maximum))
    extents[drawn] = np.concatenate([low, high], axis=1)
    outside = ((low < 0) | (high > (width, height))).any(axis=1)
    frame = regions.to_paths([regions.rectangle(0, 0, width, height)])
    for place in drawn[outside]:
        ends = vertex_offsets[ring_offsets[place] : ring_offsets[place + 1] + 1]
        rings = [points[start:stop] for start, stop in itertools.pairwise(ends)]
        inside = regions.intersection(rings, frame)
        extents[place] = regions.extent(inside) if inside else 0
    return extents
