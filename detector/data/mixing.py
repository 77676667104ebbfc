"""What augmentations of several images have in common."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from detector.data import regions
from detector.data.rings import offsets_of
from detector.data.sample import Sample

# What models subtract, so that it is nothing to them, in RGB.
GREY = (124, 116, 104)
MIN_BOX_SIDE = 1.0


class ImageMix(ABC):
    """An augmentation that puts images of a dataset together; part of ``augment.train``.

    It works on samples as the transforms before it in the list leave them: its partners, drawn
    uniformly from the dataset, go through these too, each with random numbers of its own.

    Args:
        p: how often to apply it.

    Attributes:
        num_partners: images that it takes beside the sample's own.
        needs_masks: whether every object must have a mask.

    Raises:
        ValueError: ``p`` is no probability.
    """

    num_partners = 1
    needs_masks = False

    def __init__(self, p: float = 1.0):
        self.p = p
        if not 0 <= p <= 1:
            raise ValueError(f"{type(self).__name__}: p={p}; it must lie between 0 and 1")

    @abstractmethod
    def __call__(
        self, sample: Sample, partners: Sequence[Sample], rng: np.random.Generator
    ) -> Sample:
        """The mixed sample, which keeps the id and original size of ``sample``."""


def check_size(owner: ImageMix, size: Sequence[int] | int | None) -> tuple[int, int] | None:
    """``(height, width)`` of a square's side or a pair.

    Raises:
        ValueError: it is neither.
    """
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(
            f"{type(owner).__name__}: size={size}; give [height, width], the side of a square, or "
            "null for the size of the image itself"
        )
    return sides[0], sides[1]


def cut_to(
    sample: Sample, x1: float, y1: float, x2: float, y2: float, min_side: float = MIN_BOX_SIDE
) -> Sample:
    """The objects inside a rectangle of the image, which stays as it is.

    Masks, and boxes that hold them, end at its sides. Objects outside, or less than ``min_side``
    pixels wide or high, are dropped; keypoints outside are no longer labelled.
    """
    limit = np.array([x1, y1, x2, y2], np.float32)
    if _is_within(sample, limit, min_side):
        return sample
    frame = regions.to_paths([regions.rectangle(*limit)])
    boxes = _between(sample.boxes, limit)
    masks: list[regions.Region] = []
    for place in range(len(sample)):
        rings = sample.rings(place)
        if rings:
            around = regions.extent(rings)
            if (around[:2] < limit[:2]).any() or (around[2:] > limit[2:]).any():
                rings = regions.intersection(rings, frame)
                boxes[place] = regions.extent(rings) if rings else 0
        masks.append(rings)
    keypoints = sample.keypoints
    if keypoints is not None:
        points = keypoints[..., :2]
        outside = ((points < limit[:2]) | (points > limit[2:])).any(axis=2)
        keypoints = np.where(outside[..., None], np.float32(0), keypoints)
    there = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return with_objects(sample, boxes, masks, keypoints, there, min_side)


def with_objects(
    sample: Sample,
    boxes: np.ndarray,
    masks: Sequence[regions.Region],
    keypoints: np.ndarray | None,
    keep: np.ndarray | None = None,
    min_side: float = MIN_BOX_SIDE,
) -> Sample:
    """The sample with its objects changed.

    Args:
        sample: n objects.
        boxes: ``(n, 4)``; objects with a side of less than ``min_side`` pixels are dropped.
        masks: n lists of rings.
        keypoints: ``(n, J, 3)`` or ``None``.
        keep: ``(n,)`` bool, those that are not dropped anyway.
    """
    large = (boxes[:, 2:] - boxes[:, :2] >= min_side).all(axis=1)
    kept = np.flatnonzero(large if keep is None else large & keep)
    rings = [ring for place in kept for ring in masks[place]]
    return dataclasses.replace(
        sample,
        boxes=boxes[kept].astype(np.float32),
        labels=sample.labels[kept],
        ring_offsets=offsets_of(np.array([len(masks[place]) for place in kept], np.int64)),
        vertex_offsets=offsets_of(np.array([len(ring) for ring in rings], np.int64)),
        vertices=np.concatenate([np.zeros((0, 2), np.float32), *rings]).astype(np.float32),
        keypoints=None if keypoints is None else keypoints[kept],
    )


def moved(sample: Sample, scale: Sequence[float], shift: Sequence[float]) -> Sample:
    """The objects at ``scale * place + shift``, both ``(x, y)``; the image stays as it is."""
    factor, offset = np.array(scale, np.float64), np.array(shift, np.float64)
    boxes = sample.boxes * np.tile(factor, 2) + np.tile(offset, 2)
    keypoints = sample.keypoints
    if keypoints is not None:
        points = np.where(keypoints[..., 2:] > 0, keypoints[..., :2] * factor + offset, 0)
        keypoints = np.concatenate([points, keypoints[..., 2:]], axis=2).astype(np.float32)
    return dataclasses.replace(
        sample,
        boxes=boxes.astype(np.float32),
        vertices=(sample.vertices * factor + offset).astype(np.float32),
        keypoints=keypoints,
    )


def joined(image: np.ndarray, parts: Sequence[Sample]) -> Sample:
    """One sample with the objects of all, the rest being the first one's."""
    first = parts[0]

    def all_of(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    def offsets(name: str) -> np.ndarray:
        return offsets_of(np.concatenate([np.diff(getattr(part, name)) for part in parts]))

    return dataclasses.replace(
        first,
        image=image,
        boxes=all_of("boxes"),
        labels=all_of("labels"),
        ring_offsets=offsets("ring_offsets"),
        vertex_offsets=offsets("vertex_offsets"),
        vertices=all_of("vertices"),
        keypoints=None if first.keypoints is None else all_of("keypoints"),
    )


def _is_within(sample: Sample, limit: np.ndarray, min_side: float) -> bool:
    """Whether nothing is to be cut or dropped."""
    points = [sample.vertices, sample.boxes.reshape(-1, 2)]
    if sample.keypoints is not None:
        points.append(sample.keypoints[sample.keypoints[..., 2] > 0, :2])
    inside = all((each >= limit[:2]).all() and (each <= limit[2:]).all() for each in points)
    return bool(inside and (sample.boxes[:, 2:] - sample.boxes[:, :2] >= min_side).all())


def _between(boxes: np.ndarray, limit: np.ndarray) -> np.ndarray:
    return np.clip(boxes, np.tile(limit[:2], 2), np.tile(limit[2:], 2))
