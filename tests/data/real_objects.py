"""Objects of real images as samples, and pixels judged beside an outline."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import HealthCheck, Phase, settings

from detector.data.bitmaps import cover
from detector.data.dataset import DetectionDataset
from detector.data.rings import Rings, next_in_ring, offsets_of, trace_runs
from detector.data.sample import Sample, select_rings


def few_cases(max_examples: int) -> settings:
    """Of Hypothesis: random cases that take long, nothing kept and none made smaller."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def with_tight_boxes(sample: Sample) -> Sample:
    """Boxes are the outlines' extents, which annotated ones nearly are, and labels count."""
    boxes = [
        np.concatenate(
            [np.min(np.concatenate(rings), axis=0), np.max(np.concatenate(rings), axis=0)]
        )
        for rings in map(sample.rings, range(len(sample)))
    ]
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return dataclasses.replace(sample, boxes=boxes, labels=np.arange(len(boxes)))


def one_object(dataset: DetectionDataset, image: int, number: int) -> Sample | None:
    """An object or crowd region of an image, with keypoints, see :func:`with_points`.

    The image is the object in white on black, in grey where it covers a part of a pixel. Every
    third is given as runs of pixels. ``None`` where the image has no object.
    """
    index = dataset.index
    height, width = int(index.heights[image]), int(index.widths[image])
    rows = index.annotations(image)
    if rows.start == rows.stop:
        return None
    row = np.array([rows.start + number % (rows.stop - rows.start)])
    ring_offsets, vertex_offsets, vertices = select_rings(
        index.ring_offsets, index.vertex_offsets, index.vertices, row
    )
    if number % 3 == 0:
        traced = _traced(cover(vertices, vertex_offsets, height, width))
        if len(traced.owners):
            vertex_offsets, vertices = traced.vertex_offsets, traced.vertices
            ring_offsets = np.array([0, len(traced.owners)])
    rings = np.split(vertices, vertex_offsets[1:-1])
    one = Sample(
        image=coverage(rings, height, width),
        boxes=np.zeros((1, 4), np.float32),
        labels=np.zeros(1, np.int64),
        ring_offsets=ring_offsets,
        vertex_offsets=vertex_offsets,
        vertices=vertices,
        image_id=1,
        original_size=(height, width),
    )
    return with_points(with_tight_boxes(one))


def with_points(sample: Sample) -> Sample:
    """Seven vertices of the only object are its keypoints."""
    places = np.linspace(0, len(sample.vertices) - 1, 7).astype(int)
    points = np.concatenate([sample.vertices[places], np.full((7, 1), 2, np.float32)], axis=1)
    return dataclasses.replace(sample, keypoints=points[None])


def _traced(bitmap: np.ndarray) -> Rings:
    height, width = bitmap.shape
    flat = np.concatenate([[False], bitmap.ravel(order="F"), [False]])
    borders = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], borders, [height * width]]))
    return trace_runs(counts, np.array([0, len(counts)]), np.array([height]), np.array([width]))


def coverage(rings: list[np.ndarray], height: int, width: int, fine: int = 4) -> np.ndarray:
    """The share of each pixel inside the rings, ``(height, width, 3)`` uint8."""
    offsets = offsets_of(np.array([len(ring) for ring in rings]))
    mask = cover(np.concatenate(rings) * fine, offsets, height * fine, width * fine)
    share = mask.reshape(height, fine, width, fine).mean(axis=(1, 3))
    return np.repeat(np.rint(share * 255).astype(np.uint8)[..., None], 3, axis=2)


def edges_of(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends ``(V, 2)`` of all edges."""
    return sample.vertices, sample.vertices[next_in_ring(sample.vertex_offsets)]


def farthest(wrong: np.ndarray, *outlines: tuple[np.ndarray, np.ndarray]) -> float:
    """How far the centre of the worst wrong pixel, ``(H, W)`` bool, lies from all outlines."""
    centres = np.argwhere(wrong)[:, ::-1] + 0.5
    if len(centres) == 0:
        return 0.0
    starts, ends = (
        np.concatenate(parts).astype(np.float64) for parts in zip(*outlines, strict=True)
    )
    worst = 0.0
    for block in np.array_split(centres, -(-len(centres) // 64)):
        offset, step = block[:, None] - starts, ends - starts
        along = (offset * step).sum(2) / np.maximum((step**2).sum(1), 1e-30)
        nearest = offset - np.clip(along, 0, 1)[..., None] * step
        worst = max(worst, float(np.sqrt((nearest**2).sum(2)).min(1).max()))
    return worst
