"""One image with its targets, before collation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.data.rings import offsets_of, ranges


@dataclass(frozen=True)
class Sample:
    """An image and its n objects.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: ``(n, 4)`` float32 ``(x1, y1, x2, y2)`` in pixels of ``image``.
        labels: ``(n,)`` int64 in ``0..K-1``.
        ring_offsets: ``(n + 1,)`` int64; object ``g`` has the rings
            ``ring_offsets[g]:ring_offsets[g + 1]``, none where the dataset has no masks.
        vertex_offsets: ``(R + 1,)`` int64; ring ``r`` has the vertices
            ``vertex_offsets[r]:vertex_offsets[r + 1]``.
        vertices: ``(V, 2)`` float32; after augmentation they may lie outside the image.
        image_id: the dataset's id.
        original_size: ``(height, width)`` of the file after EXIF rotation.
        proposals: ``(p, 4)`` float32 boxes that may hold objects, best first, or ``None`` where the
            dataset has no file of them.
        proposal_scores: ``(p,)`` float32, or ``None``.
        keypoints: ``(n, J, 3)`` float32 ``(x, y, visibility)`` in pixels of ``image``, zeros where
            a keypoint is not labelled; ``None`` where the dataset has no keypoints.
        seed: of what training draws for it, in ``0..2**32 - 1``.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ring_offsets: np.ndarray
    vertex_offsets: np.ndarray
    vertices: np.ndarray
    image_id: int
    original_size: tuple[int, int]
    proposals: np.ndarray | None = None
    proposal_scores: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def rings(self, index: int) -> list[np.ndarray]:
        """The rings of one object, each ``(v, 2)`` float32."""
        offsets = self.vertex_offsets
        owned = range(self.ring_offsets[index], self.ring_offsets[index + 1])
        return [self.vertices[offsets[ring] : offsets[ring + 1]] for ring in owned]


def select_rings(
    ring_offsets: np.ndarray, vertex_offsets: np.ndarray, vertices: np.ndarray, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ring offsets, vertex offsets and vertices of the objects at positions ``keep``, ``(k,)``."""
    rings_per_object = (ring_offsets[1:] - ring_offsets[:-1])[keep]
    rings = ranges(ring_offsets[keep], rings_per_object)
    vertices_per_ring = (vertex_offsets[1:] - vertex_offsets[:-1])[rings]
    chosen = ranges(vertex_offsets[rings], vertices_per_ring)
    return offsets_of(rings_per_object), offsets_of(vertices_per_ring), vertices[chosen]
