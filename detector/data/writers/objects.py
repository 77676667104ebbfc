"""The objects of an index one by one, with numbers as short as they can be written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detector.data.index import AnnotationIndex
from detector.data.outlines import clip_ring
from detector.data.rings import offsets_of, ring_areas


@dataclass(frozen=True)
class WrittenObject:
    """One annotation.

    Attributes:
        position: in the arrays of the index.
        name: of its class.
        box: ``(x1, y1, x2, y2)``.
        rings: each ``(v, 2)`` float64, see :mod:`detector.data.rings`; none without a mask.
        crowd: see :class:`AnnotationIndex`.
    """

    position: int
    name: str
    box: tuple[float, float, float, float]
    rings: list[np.ndarray]
    crowd: bool

    @property
    def has_holes(self) -> bool:
        """Whether some ring is a hole of another."""
        if not self.rings:
            return False
        offsets = offsets_of(np.array([len(ring) for ring in self.rings]))
        return bool((ring_areas(np.concatenate(self.rings), offsets) < 0).any())


def shortest(values: np.ndarray) -> np.ndarray:
    """float64 of the shortest decimals that are these float32 numbers: 2.3, not 2.2999999."""
    return np.asarray(values, np.float32).astype("U32").astype(np.float64)


def objects_of(
    index: AnnotationIndex, image: int, clipped: bool = False
) -> Iterator[WrittenObject]:
    """The annotations of the ``image``-th image, crowd regions included.

    Args:
        index: the dataset.
        image: position of the image.
        clipped: whether rings end at the image's border, as formats want it whose boxes are the
            extents of polygons.
    """
    rows = index.annotations(image)
    boxes = shortest(index.boxes[rows]).tolist()
    first, last = index.ring_offsets[rows.start], index.ring_offsets[rows.stop]
    start, stop = index.vertex_offsets[first], index.vertex_offsets[last]
    vertices = shortest(index.vertices[start:stop])
    pieces = np.split(vertices, index.vertex_offsets[first + 1 : last] - start)
    for row, box in zip(range(rows.start, rows.stop), boxes, strict=True):
        rings = pieces[index.ring_offsets[row] - first : index.ring_offsets[row + 1] - first]
        if clipped:
            rings = _clip(rings, (index.widths[image], index.heights[image]))
        yield WrittenObject(
            position=row,
            name=index.category_names[index.labels[row]],
            box=tuple(box),
            rings=rings,
            crowd=bool(index.crowd[row]),
        )


def _clip(rings: list[np.ndarray], size: tuple[int, int]) -> list[np.ndarray]:
    outside = [((ring < 0) | (ring > size)).any() for ring in rings]
    if not any(outside):
        return rings
    rings = [
        clip_ring(ring, *size) if cut else ring for ring, cut in zip(rings, outside, strict=True)
    ]
    return [ring for ring in rings if len(ring) >= 3]


def outside_polygon(item: WrittenObject) -> float:
    """By how many pixels an object's box differs from the extent of its mask."""
    points = np.concatenate(item.rings)
    extent = np.concatenate([points.min(axis=0), points.max(axis=0)])
    return float(np.abs(extent - item.box).max())
