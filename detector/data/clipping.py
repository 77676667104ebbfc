"""The part of a mask inside the image, without rasterising it."""

from __future__ import annotations

import numpy as np

from detector.data.rings import next_in_ring


def clipped_extents(
    vertices: np.ndarray,
    vertex_offsets: np.ndarray,
    ring_offsets: np.ndarray,
    height: float,
    width: float,
) -> np.ndarray:
    """Smallest boxes around the parts of n masks inside the image.

    The outline of a clipped mask consists of the pieces of its edges inside the rectangle and of
    pieces of the rectangle's sides, whose ends are edge pieces' ends or corners inside the mask. So
    the extent is that of the clipped edges (Liang-Barsky) and of the corners that lie in the mask.

    Args:
        vertices: ``(V, 2)`` in pixels.
        vertex_offsets: ``(R + 1,)`` rings in ``vertices``.
        ring_offsets: ``(n + 1,)`` masks in the rings.
        height: of the rectangle from the origin.
        width: likewise.

    Returns:
        ``(n, 4)`` float32 ``(x1, y1, x2, y2)``; zeros for masks outside the image or without rings.
    """
    num_masks = len(ring_offsets) - 1
    starts = np.asarray(vertices, dtype=np.float64)
    ends = starts[next_in_ring(vertex_offsets)]
    edge_offsets = vertex_offsets[ring_offsets]
    owner = np.repeat(np.arange(num_masks), np.diff(edge_offsets))

    enter, leave = _clip_parameters(starts, ends - starts, height, width)
    inside = enter <= leave
    low = np.full((num_masks, 2), np.inf)
    high = np.full((num_masks, 2), -np.inf)
    for parameter in (enter, leave):
        points = (starts + parameter[:, None] * (ends - starts))[inside]
        np.minimum.at(low, owner[inside], points)
        np.maximum.at(high, owner[inside], points)
    for corner in ((0.0, 0.0), (width, 0.0), (0.0, height), (width, height)):
        covered = _winding_numbers(starts, ends, owner, num_masks, corner) != 0
        low[covered] = np.minimum(low[covered], corner)
        high[covered] = np.maximum(high[covered], corner)

    extents = np.concatenate([low, high], axis=1)
    extents[~np.isfinite(extents).all(axis=1)] = 0
    limit = np.array([width, height, width, height])
    return np.clip(extents, 0, limit).astype(np.float32)


def _clip_parameters(
    starts: np.ndarray, steps: np.ndarray, height: float, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where edges enter and leave the rectangle, as fractions of them; enter > leave: never."""
    enter, leave = np.zeros(len(starts)), np.ones(len(starts))
    for axis, size in enumerate((width, height)):
        position, step = starts[:, axis], steps[:, axis]
        moving = step != 0
        divisor = np.where(moving, step, 1.0)
        at_low, at_high = -position / divisor, (size - position) / divisor
        enter = np.where(moving, np.maximum(enter, np.minimum(at_low, at_high)), enter)
        leave = np.where(moving, np.minimum(leave, np.maximum(at_low, at_high)), leave)
        leave = np.where(~moving & ((position < 0) | (position > size)), -1.0, leave)
    return enter, leave


def _winding_numbers(
    starts: np.ndarray,
    ends: np.ndarray,
    owner: np.ndarray,
    num_masks: int,
    point: tuple[float, float],
) -> np.ndarray:
    """How often each mask's outline winds around one point, ``(n,)``."""
    x, y = point
    downward = (starts[:, 1] <= y) & (ends[:, 1] > y)
    upward = (starts[:, 1] > y) & (ends[:, 1] <= y)
    step = ends - starts
    side = step[:, 0] * (y - starts[:, 1]) - (x - starts[:, 0]) * step[:, 1]
    crossing = (downward & (side > 0)).astype(np.int64) - (upward & (side < 0))
    return np.bincount(owner, weights=crossing, minlength=num_masks)
