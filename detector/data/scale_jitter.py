"""Large-scale jitter (Ghiasi et al., 2021): the augmentation of long trainings from scratch."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from albumentations import DualTransform
from albumentations.core.transforms_interface import BaseTransformInitSchema
from albumentations.core.type_definitions import Targets


class LargeScaleJitter(DualTransform):
    """Scales an image at random about the size that fits a square, and cuts out what exceeds it.

    The scale is ``s * min(size / height, size / width)`` with s uniform in ``[min_scale,
    max_scale]`` ("Simple Copy-Paste", section 3: 0.1 to 2.0 of 1024). Of a side that became longer
    than ``size``, a random piece is kept. A smaller image is not padded here: batches are padded to
    ``data.buckets``, which should begin with ``[size, size]``. Enlarging is bilinear; shrinking
    averages areas.

    Args:
        size: side of the square in pixels.
        min_scale: the smallest s.
        max_scale: the largest s.
        p: how often to apply the transform at all.

    Raises:
        ValueError: the size or the smallest scale is not positive, or the scales are the wrong way
            round.
    """

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES, Targets.KEYPOINTS)

    class InitSchema(BaseTransformInitSchema):
        size: int
        min_scale: float
        max_scale: float

    def __init__(
        self, size: int = 1024, min_scale: float = 0.1, max_scale: float = 2.0, p: float = 1.0
    ):
        super().__init__(p=p)
        self.size = size
        self.min_scale = min_scale
        self.max_scale = max_scale
        if size < 1 or not 0 < min_scale <= max_scale:
            raise ValueError(
                f"LargeScaleJitter: size={size}, min_scale={min_scale} and max_scale={max_scale}; "
                "they must be positive, min_scale not above max_scale"
            )

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draws ``{"new_size": (height, width), "corner": (y, x)}``, of the piece that is kept."""
        height, width = params["shape"][:2]
        scale = self.py_random.uniform(self.min_scale, self.max_scale)
        scale *= min(self.size / height, self.size / width)
        new_size = tuple(max(1, int(side * scale + 0.5)) for side in (height, width))
        corner = tuple(self.py_random.randint(0, max(side - self.size, 0)) for side in new_size)
        return {"new_size": new_size, "corner": corner}

    def apply(
        self, img: np.ndarray, new_size: tuple[int, int], corner: tuple[int, int], **params: Any
    ) -> np.ndarray:
        """The image, ``(H, W, 3)``, with sides of at most ``size``."""
        shrinks = new_size[0] < img.shape[0]
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return self._cut(cv2.resize(img, new_size[::-1], interpolation=interpolation), corner)

    def apply_to_mask(
        self, mask: np.ndarray, new_size: tuple[int, int], corner: tuple[int, int], **params: Any
    ) -> np.ndarray:
        """A label map, by nearest neighbour."""
        nearest = cv2.resize(mask, new_size[::-1], interpolation=cv2.INTER_NEAREST)
        return self._cut(nearest, corner)

    def apply_to_bboxes(
        self, bboxes: np.ndarray, new_size: tuple[int, int], corner: tuple[int, int], **params: Any
    ) -> np.ndarray:
        """Boxes in albumentations' coordinates, relative to the whole image before and after."""
        kept = [min(side, self.size) for side in new_size]
        bboxes = bboxes.copy()
        for axis in (0, 1):  # x, y
            side, low, length = new_size[1 - axis], corner[1 - axis], kept[1 - axis]
            bboxes[:, [axis, axis + 2]] = (bboxes[:, [axis, axis + 2]] * side - low) / length
        return bboxes

    def apply_to_keypoints(
        self,
        keypoints: np.ndarray,
        new_size: tuple[int, int],
        corner: tuple[int, int],
        **params: Any,
    ) -> np.ndarray:
        """Keypoints in albumentations' convention, where a pixel's centre is an integer."""
        height, width = params["shape"][:2]
        keypoints = keypoints.copy()
        for axis, (side, old, low) in enumerate(
            ((new_size[1], width, corner[1]), (new_size[0], height, corner[0]))
        ):
            keypoints[:, axis] = (keypoints[:, axis] + 0.5) * (side / old) - 0.5 - low
        return keypoints

    def _cut(self, image: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
        y, x = corner
        return np.ascontiguousarray(image[y : y + self.size, x : x + self.size])
