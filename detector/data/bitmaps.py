"""Which pixels a mask covers."""

from __future__ import annotations

import numpy as np

from detector.data.rings import next_in_ring, ranges


def cover(vertices: np.ndarray, vertex_offsets: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels of an image whose centres the rings wind around, ``(height, width)`` bool.

    Each edge is looked at in the rows whose centre lines it crosses: all pixels with a centre right
    of the crossing gain or lose one winding. So between two crossings of a row the winding number
    is the sum of the signs of those before.

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
    rows = ranges(top[edges], count[edges])
    edge = np.repeat(edges, count[edges])
    step = ends[edge] - starts[edge]
    x = starts[edge, 0] + (rows + 0.5 - starts[edge, 1]) / step[:, 1] * step[:, 0]
    places = rows * width + np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    # Rows follow each other: at the end of each, all windings are undone.
    order = np.lexsort((places, rows))
    places = places[order]
    winds = np.cumsum(np.sign(step[order, 1])) != 0
    covered = np.zeros(height * width, dtype=bool)
    begin, end = places[:-1][winds[:-1]], places[1:][winds[:-1]]
    # Runs are long and few; anything that looks at each pixel takes five times as long.
    for start, stop in zip(begin.tolist(), end.tolist(), strict=True):
        covered[start:stop] = True
    return covered.reshape(height, width)
