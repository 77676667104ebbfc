"""Runs albumentations transforms on samples whose masks are rings of vertices.

The transforms are called one by one, without ``albumentations.Compose``: for 100 objects with 50
vertices each, its conversions and checks cost more than decoding the image.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import albumentations
import numpy as np
from albumentations.core.composition import BaseCompose
from albumentations.core.transforms_interface import BasicTransform, ImageOnlyTransform
from albumentations.core.type_definitions import Targets

from detector.data.clipping import clipped_extents
from detector.data.sample import Sample, select_rings
from detector.data.transforms import ResizeShortestEdge

# These map a box to a box and keep the whole image, so the annotated box stays exact.
_BOX_PRESERVING = (
    ResizeShortestEdge,
    albumentations.D4,
    albumentations.HorizontalFlip,
    albumentations.LongestMaxSize,
    albumentations.NoOp,
    albumentations.RandomRotate90,
    albumentations.RandomScale,
    albumentations.Resize,
    albumentations.SmallestMaxSize,
    albumentations.Transpose,
    albumentations.VerticalFlip,
)
# Albumentations puts integers at pixel centres (a flip maps x to w - 1 - x), but in these it scales
# about the origin, which is right for continuous coordinates.
_SCALE_ABOUT_CORNER = (
    albumentations.LongestMaxSize,
    albumentations.RandomResizedCrop,
    albumentations.RandomScale,
    albumentations.RandomSizedBBoxSafeCrop,
    albumentations.RandomSizedCrop,
    albumentations.Resize,
    albumentations.SmallestMaxSize,
)
_MIN_BOX_SIDE = 1.0


class Augmentation:
    """A chain of albumentations transforms for samples.

    Vertices and the four corners of every box go through the transforms as keypoints, in continuous
    pixels (a horizontal flip maps x to w - x). If some transform can cut or turn objects, boxes are
    the extent of what remains of the mask inside the image; objects of which nothing remains, or
    whose box is less than a pixel wide or high, are dropped.

    Args:
        transforms: albumentations transforms, or ``OneOf``, ``SomeOf``, ``Sequential`` of them.

    Raises:
        ValueError: a transform cannot move keypoints or needs bitmap masks.
    """

    def __init__(self, transforms: Sequence[BasicTransform | BaseCompose] = ()):
        self.transforms = list(transforms)
        leaves = [leaf for transform in self.transforms for leaf in _leaves(transform)]
        for leaf in leaves:
            _refuse_unsupported(leaf)
        geometric = [leaf for leaf in leaves if not isinstance(leaf, ImageOnlyTransform)]
        self._preserves_boxes = all(isinstance(leaf, _BOX_PRESERVING) for leaf in geometric)
        self._needs_boxes = any("bboxes" in leaf.targets_as_params for leaf in geometric)
        self._centre_shifts = [
            0.0
            if any(isinstance(leaf, _SCALE_ABOUT_CORNER) for leaf in _leaves(transform))
            else 0.5
            for transform in self.transforms
        ]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The augmented sample. All randomness comes from ``rng``."""
        num_boxes = len(sample)
        corners = sample.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
        points = np.concatenate([sample.vertices, corners])
        image, points = self._transform(sample.image, points, num_boxes, rng)
        vertices, corners = points[: len(sample.vertices)], points[len(sample.vertices) :]

        corners = corners.reshape(num_boxes, 4, 2)
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        height, width = image.shape[:2]
        if not self._preserves_boxes:
            has_rings = sample.ring_offsets[1:] > sample.ring_offsets[:-1]
            if has_rings.any():
                extents = clipped_extents(
                    vertices, sample.vertex_offsets, sample.ring_offsets, height, width
                )
                boxes = np.where(has_rings[:, None], extents, boxes)
        return _with_targets(sample, image, boxes, vertices)

    def _transform(
        self, image: np.ndarray, points: np.ndarray, num_boxes: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        if not self.transforms:
            return image, points
        py_random = random.Random(int(rng.integers(2**63)))
        keypoints = np.zeros((len(points), 5), dtype=np.float32)  # x, y, z, angle, scale
        keypoints[:, :2] = points
        for transform, shift in zip(self.transforms, self._centre_shifts, strict=True):
            transform.set_random_state(rng, py_random)
            data: dict[str, Any] = {"image": image}
            if len(points):
                keypoints[:, :2] -= shift
                data["keypoints"] = keypoints
            if self._needs_boxes:
                data["bboxes"] = _relative_boxes(points, num_boxes, image)
            data = transform(**data)
            image = data["image"]
            if len(points):
                keypoints = data["keypoints"]
                if len(keypoints) != len(points):
                    raise ValueError(
                        f"{type(transform).__name__} adds or removes keypoints, so masks cannot "
                        "follow; use a constant border and keep all keypoints"
                    )
                keypoints[:, :2] += shift
                points = keypoints[:, :2]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"the augmentations made an image of shape {image.shape} and type {image.dtype}; "
                "they must keep uint8 RGB, since the model normalises: remove Normalize, ToFloat, "
                "ToTensorV2 and the like"
            )
        return image, np.ascontiguousarray(points, dtype=np.float32)


def _leaves(transform: BasicTransform | BaseCompose) -> list[BasicTransform]:
    if isinstance(transform, albumentations.Compose):
        raise ValueError("albumentations.Compose inside the list; use albumentations.Sequential")
    if isinstance(transform, BaseCompose):
        return [leaf for child in transform.transforms for leaf in _leaves(child)]
    if isinstance(transform, BasicTransform):
        return [transform]
    raise ValueError(f"{transform!r} is not an albumentations transform; correct augment")


def _refuse_unsupported(leaf: BasicTransform) -> None:
    name = type(leaf).__name__
    if isinstance(leaf, ImageOnlyTransform):
        return
    targets = leaf._targets if isinstance(leaf._targets, tuple) else (leaf._targets,)
    if Targets.KEYPOINTS not in targets:
        raise ValueError(f"{name} cannot move keypoints, so masks cannot follow; remove it")
    needed = set(leaf.targets_as_params) - {"image", "bboxes"}
    if needed:
        raise ValueError(f"{name} needs {sorted(needed)}, which training samples lack; remove it")


def _relative_boxes(points: np.ndarray, num_boxes: int, image: np.ndarray) -> np.ndarray:
    """Boxes in albumentations' own form, relative to the image's size and inside it."""
    corners = points[len(points) - 4 * num_boxes :].reshape(num_boxes, 4, 2)
    size = np.array([image.shape[1], image.shape[0]], dtype=np.float32)
    boxes = np.concatenate([corners.min(axis=1) / size, corners.max(axis=1) / size], axis=1)
    return np.clip(boxes, 0, 1)


def _with_targets(
    sample: Sample, image: np.ndarray, boxes: np.ndarray, vertices: np.ndarray
) -> Sample:
    """Clips boxes to the image and drops objects that left it."""
    height, width = image.shape[:2]
    limit = np.array([width, height, width, height], dtype=np.float32)
    boxes = np.clip(boxes, 0, limit).astype(np.float32)
    keep = (boxes[:, 2:] - boxes[:, :2] >= _MIN_BOX_SIDE).all(axis=1)
    if keep.all():
        return dataclasses.replace(sample, image=image, boxes=boxes, vertices=vertices)
    kept = np.flatnonzero(keep)
    ring_offsets, vertex_offsets, vertices = select_rings(
        sample.ring_offsets, sample.vertex_offsets, vertices, kept
    )
    return dataclasses.replace(
        sample,
        image=image,
        boxes=boxes[kept],
        labels=sample.labels[kept],
        ring_offsets=ring_offsets,
        vertex_offsets=vertex_offsets,
        vertices=vertices,
    )
