"""Exact difference and intersection of polygons.

A *region* is a list of rings, each ``(n, 2)`` float64 without a repeated last vertex. Outer rings
have positive area (see ``ring_area``), holes negative, so the region lies on the same side of every
edge. Both operations cut all edges at their crossings, keep the pieces on the wanted side and
follow them from crossing to crossing. That is exact when no two edges overlap and no vertex lies on
an edge of the other polygon, which random coordinates guarantee but for a vanishing chance;
``DegenerateClip`` reports that chance instead of returning a wrong region.
"""

from __future__ import annotations

import numpy as np

Region = list[np.ndarray]


class DegenerateClip(ArithmeticError):
    """The two polygons touch in a way that rounding cannot decide; move one of them a little."""


def ring_area(ring: np.ndarray) -> float:
    """Signed area of a ring ``(n, 2)`` in square pixels: positive for x-right-to-y-down turning."""
    x, y = ring[:, 0], ring[:, 1]
    return 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))


def region_area(region: Region) -> float:
    """Area of a region in square pixels; holes count negative."""
    return sum(ring_area(ring) for ring in region)


def contains(region: Region, points: np.ndarray) -> np.ndarray:
    """Which ``points`` ``(n, 2)`` lie inside the region, as ``(n,)`` bool (even-odd rule)."""
    if not region:
        return np.zeros(len(points), bool)
    start, end = _edges(region)
    px, py = points[:, :1], points[:, 1:]
    spans = (start[:, 1] > py) != (end[:, 1] > py)
    rise = end[:, 1] - start[:, 1]
    rise = np.where(rise == 0, 1.0, rise)  # level edges span no scanline, so any value will do
    crossing = start[:, 0] + (py - start[:, 1]) * (end[:, 0] - start[:, 0]) / rise
    return (spans & (crossing > px)).sum(1) % 2 == 1


def difference(region: Region, ring: np.ndarray) -> Region:
    """What of ``region`` lies outside ``ring`` (positive area)."""
    return _clip(region, ring, inside=False)


def intersection(region: Region, ring: np.ndarray) -> Region:
    """What of ``region`` lies inside ``ring`` (positive area)."""
    return _clip(region, ring, inside=True)


def without_holes(region: Region) -> Region:
    """The same area as rings without holes, as COCO's polygons have no way to write a hole.

    A ring with holes is cut in two by an upright line through its first hole until none is left.
    """
    outers = sorted((ring for ring in region if ring_area(ring) > 0), key=ring_area)
    holes = [ring for ring in region if ring_area(ring) < 0]
    result: Region = []
    for outer in outers:  # smallest first: a hole belongs to the innermost ring around it
        inside = [bool(contains([outer], hole[:1])[0]) for hole in holes]
        own = [hole for hole, is_own in zip(holes, inside, strict=True) if is_own]
        holes = [hole for hole, is_own in zip(holes, inside, strict=True) if not is_own]
        if not own:
            result.append(outer)
            continue
        left, right = own[0][:, 0].min(), own[0][:, 0].max()
        x = left + 0.4871 * (right - left)
        low, high = outer.min(0) - 1.0, outer.max(0) + 1.0
        left_half = np.array([low, (x, low[1]), (x, high[1]), (low[0], high[1])])
        right_half = np.array([(x, low[1]), (high[0], low[1]), high, (x, high[1])])
        for half in (left_half, right_half):
            result += without_holes(intersection([outer, *own], half))
    return result


def _edges(region: Region) -> tuple[np.ndarray, np.ndarray]:
    start = np.concatenate(region)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in region])
    return start, end


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _clip(region: Region, ring: np.ndarray, inside: bool) -> Region:
    if not region:
        return []
    start, end = _edges(region)
    if (start.max(0) <= ring.min(0)).any() or (start.min(0) >= ring.max(0)).any():
        return [] if inside else region
    ring_start, ring_end = _edges([ring])

    along, ring_along = end - start, ring_end - ring_start
    offset = ring_start[None] - start[:, None]
    slope = _cross(along[:, None], ring_along[None])
    parallel = slope == 0
    slope = np.where(parallel, 1.0, slope)
    t = _cross(offset, np.broadcast_to(ring_along[None], offset.shape)) / slope
    u = _cross(offset, np.broadcast_to(along[:, None], offset.shape)) / slope
    first, second = np.nonzero(~parallel & (t > 0) & (t < 1) & (u > 0) & (u < 1))
    t, u = t[first, second], u[first, second]
    crossings = start[first] + t[:, None] * along[first]

    # Node numbers: the region's vertices, the ring's vertices, then the crossings.
    nodes = np.concatenate([start, ring_start, crossings])
    crossing_ids = len(start) + len(ring_start) + np.arange(len(crossings))
    tail, head = _split(0, [len(part) for part in region], first, t, crossing_ids)
    ring_tail, ring_head = _split(len(start), [len(ring)], second, u, crossing_ids)

    kept = contains([ring], (nodes[tail] + nodes[head]) / 2) == inside
    ring_kept = contains(region, (nodes[ring_tail] + nodes[ring_head]) / 2)
    if not inside:  # the ring bounds the result from the other side
        ring_tail, ring_head = ring_head, ring_tail
    tails = np.concatenate([tail[kept], ring_tail[ring_kept]]).tolist()
    heads = np.concatenate([head[kept], ring_head[ring_kept]]).tolist()
    return [nodes[ids] for ids in _follow(tails, heads)]


def _split(
    first_node: int,
    ring_lengths: list[int],
    edge: np.ndarray,
    position: np.ndarray,
    crossing_ids: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Edges cut at their crossings, as node numbers ``(tail, head)``, in order along each ring."""
    order = np.lexsort((position, edge))
    edge, position, crossing_ids = edge[order], position[order], crossing_ids[order]
    tails, heads = [], []
    base = 0
    for length in ring_lengths:
        own = (edge >= base) & (edge < base + length)
        ids = np.concatenate([first_node + base + np.arange(length), crossing_ids[own]])
        key = np.concatenate([base + np.arange(length), edge[own]])
        fraction = np.concatenate([np.zeros(length), position[own]])
        ids = ids[np.lexsort((fraction, key))]
        tails.append(ids)
        heads.append(np.roll(ids, -1))
        base += length
    return np.concatenate(tails), np.concatenate(heads)


def _follow(tails: list[int], heads: list[int]) -> list[list[int]]:
    """Rings of node numbers out of loose edges; every node has one edge in and one out."""
    following = dict(zip(tails, heads, strict=True))
    if len(following) != len(tails) or following.keys() != set(heads):
        raise DegenerateClip("the polygons touch without crossing")
    rings = []
    while following:
        node, ahead = following.popitem()
        ids = [node]
        while ahead != node:
            ids.append(ahead)
            ahead = following.pop(ahead)
        rings.append(ids)
    return rings
