"""Which pixels a mask covers."""

from __future__ import annotations

import numpy as np

from detector.data.rings import next_in_ring, ranges


def cover(vertices: np.ndarray, vertex_offsets: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels of an image whose centres the rings wind around, ``(height, width)`` bool.

    Each edge is looked at in the rows whose centre lines it crosses: all pixels with a centre right
    of the crossing gain or lose one winding, so a running sum along the rows gives the numbers.

    Args:
        vertices: ``(V, 2)`` in pixels, as far outside the image as they like.
        vertex_offsets: ``(R + 1,)`` int64, the rings.
        height, width: of the image.
    """
    starts = np.asarray(vertices, dtype=np.float64)
    ends = starts[next_in_ring(vertex_offsets)]
    # From an integer y downwards, row y is the first whose centre y + .5 is not above.
    first, last = (
        np.clip(np.ceil(side[:, 1] - 0.5), 0, height).astype(np.int64) for side in (starts, ends)
    )
    top, count = np.minimum(first, last), np.abs(last - first)
    edges = np.flatnonzero(count)
    covered = np.zeros((height, width), dtype=bool)
    if len(edges):
        rows = ranges(top[edges], count[edges])
        edge = np.repeat(edges, count[edges])
        step = ends[edge] - starts[edge]
        x = starts[edge, 0] + (rows + 0.5 - starts[edge, 1]) / step[:, 1] * step[:, 0]
        columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        low, left = rows.min(), columns.min()
        part = covered[low : rows.max() + 1, left : columns.max()]
        winding = np.zeros((part.shape[0], part.shape[1] + 1), dtype=np.int16)
        sign = np.where(step[:, 1] > 0, 1, -1).astype(np.int16)
        np.add.at(winding, (rows - low, columns - left), sign)
        np.not_equal(np.cumsum(winding[:, :-1], axis=1, dtype=np.int16), 0, out=part)
    return covered
