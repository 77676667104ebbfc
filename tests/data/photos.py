"""Image files and indices for the tests of readers and writers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from detector.data.index import AnnotationIndex


def write_photo(path: Path, size=(40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 20, 200)).save(path)


def objects(index: AnnotationIndex, image: int) -> list[tuple]:
    """``(class, box, rings, crowd)`` of each object of an image, as plain Python."""
    rows = index.annotations(image)
    found = []
    for row in range(rows.start, rows.stop):
        rings = [
            index.vertices[index.vertex_offsets[ring] : index.vertex_offsets[ring + 1]].tolist()
            for ring in range(index.ring_offsets[row], index.ring_offsets[row + 1])
        ]
        name = index.category_names[index.labels[row]]
        found.append((name, index.boxes[row].tolist(), rings, bool(index.crowd[row])))
    return found


def masks_of(index: AnnotationIndex, rasterize) -> list[np.ndarray]:
    """The mask of each annotation, ``(H, W)`` bool; false where it has none."""
    found = []
    for image in range(len(index)):
        height, width = int(index.heights[image]), int(index.widths[image])
        for _, _, rings, _ in objects(index, image):
            found.append(rasterize([np.array(ring) for ring in rings], height, width))
    return found
