"""What albumentations transforms do to points: which are exact, adapted, or refused.

Albumentations puts integers at pixel centres (a horizontal flip maps x to w - 1 - x). Points in
continuous pixels follow that convention after subtracting one half. Two families do not keep to
it, and are given the right arithmetic here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import albumentations
import cv2
import numpy as np
from albumentations.augmentations.geometric.distortion import BaseDistortion
from albumentations.core.composition import BaseCompose
from albumentations.core.transforms_interface import BasicTransform, ImageOnlyTransform
from albumentations.core.type_definitions import REFLECT_BORDER_MODES, Targets

from detector.data.transforms import ResizeShortestEdge

# These keep the whole image and map a box to a box, so that the annotated box stays exact.
_BOX_PRESERVING = (
    ResizeShortestEdge,
    albumentations.CoarseDropout,
    albumentations.D4,
    albumentations.Erasing,
    albumentations.GridDropout,
    albumentations.HorizontalFlip,
    albumentations.LongestMaxSize,
    albumentations.NoOp,
    albumentations.PixelDropout,
    albumentations.RandomRotate90,
    albumentations.RandomScale,
    albumentations.Resize,
    albumentations.SmallestMaxSize,
    albumentations.Transpose,
    albumentations.VerticalFlip,
    albumentations.XYMasking,
)
# These scale pixel-centre coordinates about the origin, half a pixel off what they do to the image.
_SCALED_ABOUT_ORIGIN = (
    albumentations.CropAndPad,
    albumentations.RandomResizedCrop,
    albumentations.RandomSizedBBoxSafeCrop,
    albumentations.RandomSizedCrop,
    albumentations.Resize,
)
# These, in addition, scale points by a factor but the image to whole pixels, rounded like this.
_ROUNDED_SIZE = {
    albumentations.LongestMaxSize: round,
    albumentations.RandomScale: int,
    albumentations.SmallestMaxSize: round,
}
_DRIVEN_BY_BOXES = (
    albumentations.AtLeastOneBBoxRandomCrop,
    albumentations.BBoxSafeRandomCrop,
    albumentations.RandomSizedBBoxSafeCrop,
)
_UNSUPPORTED = {
    albumentations.Compose: "use albumentations.Sequential inside the list",
    albumentations.ConstrainedCoarseDropout: "it needs labels of albumentations' own",
    albumentations.CropNonEmptyMaskIfExists: "masks are polygons; use AtLeastOneBBoxRandomCrop",
    albumentations.FromFloat: "images stay uint8, the model normalises",
    albumentations.GridElasticDeform: "its points are not exact; use ElasticTransform",
    albumentations.Normalize: "images stay uint8, the model normalises",
    albumentations.PiecewiseAffine: "its distortion may fold; use ElasticTransform",
    albumentations.RandomGridShuffle: "it cuts objects into pieces that polygons cannot follow",
    albumentations.ThinPlateSpline: "its distortion may fold; use ElasticTransform",
    albumentations.ToFloat: "images stay uint8, the model normalises",
}
_INVERSION_STEPS = 10


def leaves(transform: BasicTransform | BaseCompose) -> list[BasicTransform]:
    """The transforms inside ``OneOf``, ``SomeOf``, ``Sequential`` and the like, or the one itself.

    Raises:
        ValueError: it is not an albumentations transform, was given an unknown argument, or is one
            that samples cannot go through.
    """
    for unsupported, reason in _UNSUPPORTED.items():
        if isinstance(transform, unsupported):
            raise ValueError(f"augment: {type(transform).__name__} is not supported, {reason}")
    if isinstance(transform, BaseCompose):
        return [leaf for child in transform.transforms for leaf in leaves(child)]
    if not isinstance(transform, BasicTransform):
        raise ValueError(f"augment: {transform!r} is not an albumentations transform")
    if transform.invalid_args:  # albumentations only warns, and uses its default instead
        raise ValueError(
            f"augment: {type(transform).__name__} has no argument "
            f"{', '.join(transform.invalid_args)}; correct its name"
        )
    if is_geometric(transform):
        _require_keypoints(transform)
    return [transform]


def is_geometric(leaf: BasicTransform) -> bool:
    """Whether a transform may move pixels."""
    return not isinstance(leaf, ImageOnlyTransform)


def preserves_boxes(leaf: BasicTransform) -> bool:
    """Whether the transformed box of an object is the box of the transformed object."""
    return not is_geometric(leaf) or isinstance(leaf, _BOX_PRESERVING)


def num_cuts(transform: BasicTransform | BaseCompose) -> int:
    """How many transforms that may cut objects or add a border are applied one after another."""
    if not isinstance(transform, BaseCompose):
        return int(not preserves_boxes(transform))
    counts = [num_cuts(child) for child in transform.transforms]
    one_of = isinstance(transform, albumentations.OneOf | albumentations.OneOrOther)
    return max(counts, default=0) if one_of else sum(counts)


def is_driven_by_boxes(leaf: BasicTransform) -> bool:
    """Whether a transform looks at the boxes to choose what it does."""
    return isinstance(leaf, _DRIVEN_BY_BOXES)


def adapt_keypoints(leaf: BasicTransform) -> None:
    """Corrects how a transform moves keypoints, where it is not what it does to the image."""
    adapted: Callable[..., np.ndarray] | None = None
    if isinstance(leaf, BaseDistortion):
        adapted = _undistort
    elif isinstance(leaf, _SCALED_ABOUT_ORIGIN):
        adapted = functools.partial(_about_corner, leaf.apply_to_keypoints)
    for scaling, rounding in _ROUNDED_SIZE.items():
        if isinstance(leaf, scaling):
            adapted = functools.partial(_to_whole_size, rounding)
    if adapted is not None:
        leaf._key2func["keypoints"] = adapted


def _require_keypoints(leaf: BasicTransform) -> None:
    name = type(leaf).__name__
    targets = leaf._targets if isinstance(leaf._targets, tuple) else (leaf._targets,)
    if Targets.KEYPOINTS not in targets:
        raise ValueError(f"augment: {name} cannot move points, so masks cannot follow; remove it")
    needed = set(leaf.targets_as_params) - {"image", "bboxes"}
    if needed:
        raise ValueError(f"augment: {name} needs {sorted(needed)}, which samples lack; remove it")
    reflects = getattr(leaf, "border_mode", None) in REFLECT_BORDER_MODES
    if reflects and not isinstance(leaf, BaseDistortion):
        raise ValueError(
            f"augment: {name} with a reflecting border shows objects twice; use "
            "border_mode: 0 (constant)"
        )


def _about_corner(
    apply: Callable[..., np.ndarray], keypoints: np.ndarray, **params: Any
) -> np.ndarray:
    """Lets a transform that scales about the origin do so about the corner of the first pixel."""
    keypoints = keypoints.copy()
    keypoints[:, :2] += 0.5
    keypoints = apply(keypoints, **params)
    keypoints[:, :2] -= 0.5
    return keypoints


def _to_whole_size(
    rounding: Callable[[float], int], keypoints: np.ndarray, scale: float, **params: Any
) -> np.ndarray:
    """Scales keypoints by what the image's sides were scaled by after rounding."""
    height, width = params["shape"][:2]
    keypoints = keypoints.copy()
    for axis, side in enumerate((width, height)):
        ratio = max(1, rounding(side * scale)) / side
        keypoints[:, axis] = (keypoints[:, axis] + 0.5) * ratio - 0.5
    return keypoints


def _undistort(
    keypoints: np.ndarray, map_x: np.ndarray, map_y: np.ndarray, **params: Any
) -> np.ndarray:
    """Moves keypoints with a distortion, to a small part of a pixel.

    The maps say where each pixel of the result comes from; for a point of the source this must be
    inverted, by fixed-point iteration. (Albumentations' own ways round to whole pixels.)
    """
    height, width = map_x.shape
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    displacement = np.stack([map_x - columns, map_y - rows], axis=2).astype(np.float32)
    source = np.ascontiguousarray(keypoints[:, :2], dtype=np.float32)
    target = source.copy()
    for _ in range(_INVERSION_STEPS):
        moved = cv2.remap(
            displacement,
            target.reshape(-1, 1, 2),
            None,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        target = source - moved.reshape(-1, 2)
    keypoints = keypoints.copy()
    keypoints[:, :2] = target
    return keypoints
