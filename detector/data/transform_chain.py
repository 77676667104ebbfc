"""Runs albumentations transforms of one image on samples whose masks are rings of vertices.

The transforms are called one by one, without ``albumentations.Compose``: for 100 objects with 50
vertices each, its conversions and checks cost more than decoding the image.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from albumentations.core.composition import BaseCompose
from albumentations.core.transforms_interface import BasicTransform

from detector.data.clipping import clipped_extents
from detector.data.mixing import cut_to
from detector.data.sample import Sample, select_rings
from detector.data.transform_support import (
    adapt_keypoints,
    is_driven_by_boxes,
    leaves,
    num_cuts,
)

_MIN_BOX_SIDE = 1.0
# From continuous pixels to albumentations' convention.
_PIXEL_CENTRE = np.float32(0.5)
_NO_BOXES = np.zeros((0, 4), np.float32)
_NO_POINTS = np.zeros((0, 2), np.float32)


class TransformChain:
    """A chain of albumentations transforms for samples.

    Vertices, keypoints and the four corners of every box go through the transforms as keypoints of
    albumentations, in continuous pixels (a horizontal flip maps x to w - x). If some transform can
    cut or turn objects, boxes are the extent of what remains of the mask inside the image; objects
    of which nothing remains, or whose box is less than a pixel wide or high, are dropped. Proposals
    move like boxes without masks.

    Keypoints outside the image are no longer labelled. Those of a mirrored object change sides,
    whichever transforms mirrored it: a left hand in a mirror is a right hand.

    Args:
        transforms: albumentations transforms, or ``OneOf``, ``SomeOf``, ``Sequential`` of them.
        keypoint_flip: J indices, what each keypoint becomes in a mirror, see
            :class:`detector.data.index.AnnotationIndex`; of samples without keypoints, none.

    Raises:
        ValueError: masks and boxes cannot follow one of the transforms, or several of them may cut
            objects or add a border: these need chains of their own.
    """

    def __init__(
        self,
        transforms: Sequence[BasicTransform | BaseCompose] = (),
        keypoint_flip: Sequence[int] = (),
    ):
        self.transforms = list(transforms)
        self.keypoint_flip = list(keypoint_flip)
        leaves_of = [leaves(transform) for transform in self.transforms]
        for leaf in (leaf for group in leaves_of for leaf in group):
            adapt_keypoints(leaf)
        cuts = [num_cuts(transform) for transform in self.transforms]
        self._preserves_boxes = sum(cuts) == 0
        if sum(cuts) > 1:
            name = type(self.transforms[int(np.argmax(cuts))]).__name__
            raise ValueError(
                f"augment: {name} holds several transforms that crop, turn or pad, between which "
                "masks could not be cut; put them into the list one by one"
            )
        self._needs_boxes = [any(map(is_driven_by_boxes, group)) for group in leaves_of]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The augmented sample. All randomness comes from ``rng``."""
        if not self._preserves_boxes:
            # What sticks out of the image would be seen again in a border that is added. How large
            # objects are is not looked at before they are scaled.
            height, width = sample.image.shape[:2]
            sample = cut_to(sample, 0, 0, width, height, min_side=0)
        num_boxes = len(sample)
        proposals = _NO_BOXES if sample.proposals is None else sample.proposals
        keypoints = _NO_POINTS if sample.keypoints is None else sample.keypoints[..., :2]
        # Boxes come last: `_transform` looks for them there.
        parts = (
            sample.vertices,
            _corners(proposals),
            keypoints.reshape(-1, 2),
            _corners(sample.boxes),
        )
        image, points = self._transform(sample.image, np.concatenate(parts), num_boxes, rng)
        ends = np.cumsum([len(part) for part in parts[:-1]])
        vertices, proposals, keypoints, corners = np.split(points, ends)
        boxes = _extents(corners)
        height, width = image.shape[:2]
        if not self._preserves_boxes:
            has_rings = sample.ring_offsets[1:] > sample.ring_offsets[:-1]
            if has_rings.any():
                extents = clipped_extents(
                    vertices, sample.vertex_offsets, sample.ring_offsets, height, width
                )
                boxes = np.where(has_rings[:, None], extents, boxes)
        if sample.proposals is not None:
            sample = _with_proposals(sample, _extents(proposals), height, width)
        if sample.keypoints is not None:
            sample = self._with_keypoints(sample, keypoints, corners, height, width)
        return _with_targets(sample, image, boxes, vertices)

    def _with_keypoints(
        self, sample: Sample, points: np.ndarray, corners: np.ndarray, height: int, width: int
    ) -> Sample:
        """Takes the moved keypoints, exchanges sides, and unlabels those outside the image."""
        num_keypoints = sample.keypoints.shape[1]
        assert len(self.keypoint_flip) == num_keypoints, "keypoint_flip is not of these samples"
        points = points.reshape(-1, num_keypoints, 2)
        inside = ((points >= 0) & (points <= (width, height))).all(axis=2)
        keypoints = np.concatenate([points, sample.keypoints[..., 2:]], axis=2)
        keypoints[~inside | (keypoints[..., 2] == 0)] = 0
        mirrored = _are_mirrored(corners)
        keypoints[mirrored] = keypoints[mirrored][:, self.keypoint_flip]
        return dataclasses.replace(sample, keypoints=keypoints)

    def _transform(
        self, image: np.ndarray, points: np.ndarray, num_boxes: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        if not self.transforms:
            return image, points
        py_random = random.Random(int(rng.integers(2**63)))
        keypoints = np.zeros((len(points), 5), dtype=np.float32)  # x, y, z, angle, scale
        keypoints[:, :2] = points - _PIXEL_CENTRE
        for transform, needs_boxes in zip(self.transforms, self._needs_boxes, strict=True):
            transform.set_random_state(rng, py_random)
            data: dict[str, Any] = {"image": image}
            if len(points):
                data["keypoints"] = keypoints
            if needs_boxes:
                data["bboxes"] = _relative_boxes(keypoints, num_boxes, image)
            data = transform(**data)
            image, keypoints = data["image"], data.get("keypoints", keypoints)
            if len(keypoints) != len(points):
                raise ValueError(
                    f"augment: {type(transform).__name__} adds or removes points, so masks cannot "
                    "follow; remove it"
                )
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"augment: an image became {image.dtype} of shape {image.shape}; transforms must "
                "keep uint8 RGB, since the model normalises"
            )
        return image, (keypoints[:, :2] + _PIXEL_CENTRE).astype(np.float32)


def _corners(boxes: np.ndarray) -> np.ndarray:
    """The four corners of each of ``(n, 4)`` boxes, in their order around it, ``(4 * n, 2)``."""
    return boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)


def _extents(corners: np.ndarray) -> np.ndarray:
    """The boxes ``(n, 4)`` around corners ``(4 * n, 2)`` that were moved."""
    corners = corners.reshape(-1, 4, 2)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def _are_mirrored(corners: np.ndarray) -> np.ndarray:
    """Which boxes, by their moved corners ``(4 * n, 2)``, are now seen in a mirror, ``(n,)`` bool.

    In a mirror the way around the corners turns the other way, whichever transforms made it so: a
    flip about any axis, a transposition, or two of them that cancel.
    """
    first, second, third, fourth = corners.reshape(-1, 4, 2).transpose(1, 0, 2)
    one, other = third - first, fourth - second
    return one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0] < 0


def _relative_boxes(keypoints: np.ndarray, num_boxes: int, image: np.ndarray) -> np.ndarray:
    """Boxes in albumentations' own form, relative to the image's size and inside it."""
    boxes = _extents(keypoints[len(keypoints) - 4 * num_boxes :, :2] + _PIXEL_CENTRE)
    size = np.array([image.shape[1], image.shape[0]] * 2, dtype=np.float32)
    return np.clip(boxes / size, 0, 1)


def _with_proposals(sample: Sample, boxes: np.ndarray, height: int, width: int) -> Sample:
    """Clips proposals to the image and drops those that left it."""
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return dataclasses.replace(
        sample,
        proposals=boxes[inside].astype(np.float32),
        proposal_scores=sample.proposal_scores[inside],
    )


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
        keypoints=None if sample.keypoints is None else sample.keypoints[kept],
    )
