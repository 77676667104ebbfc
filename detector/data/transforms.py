"""Transforms of the papers that albumentations does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from albumentations import DualTransform
from albumentations.core.transforms_interface import BaseTransformInitSchema
from albumentations.core.type_definitions import Targets


class ResizeShortestEdge(DualTransform):
    """Scales an image to a given shortest edge, its longest edge bounded.

    The multi-scale training and the 800/1333 testing of Feature Pyramid Networks (section 5) and
    Mask R-CNN (section 3.1). Enlarging is bilinear; shrinking averages areas, so that small objects
    do not alias away.

    Args:
        shortest: pixels of the shortest edge after scaling. A list is drawn from per image.
        longest: if the longest edge would exceed this, it becomes this instead.
        sampling: ``"choice"`` draws one of the listed sizes, ``"range"`` any integer from the
            smallest to the largest of them.
        p: how often to apply the transform at all.

    Raises:
        ValueError: a size is not positive, or ``longest`` is below the smallest ``shortest``.
    """

    _targets = (Targets.IMAGE, Targets.MASK, Targets.BBOXES, Targets.KEYPOINTS)

    class InitSchema(BaseTransformInitSchema):
        shortest: Any
        longest: int
        sampling: Literal["choice", "range"]

    def __init__(
        self,
        shortest: int | Sequence[int],
        longest: int,
        sampling: Literal["choice", "range"] = "choice",
        p: float = 1.0,
    ):
        super().__init__(p=p)
        self.shortest = [shortest] if isinstance(shortest, int) else [int(s) for s in shortest]
        self.longest = longest
        self.sampling = sampling
        if not self.shortest or min(self.shortest) < 1 or longest < min(self.shortest):
            raise ValueError(
                f"ResizeShortestEdge: shortest={self.shortest} and longest={longest}; sizes must "
                "be positive and longest at least the smallest shortest"
            )

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draws the size: ``{"new_size": (height, width)}``."""
        if self.sampling == "range":
            shortest = self.py_random.randint(min(self.shortest), max(self.shortest))
        elif len(self.shortest) > 1:
            shortest = self.py_random.choice(self.shortest)
        else:
            shortest = self.shortest[0]
        return {"new_size": shortest_edge_size(*params["shape"][:2], shortest, self.longest)}

    def apply(self, img: np.ndarray, new_size: tuple[int, int], **params: Any) -> np.ndarray:
        """Resizes an image, ``(H, W, 3)``."""
        height, width = new_size
        if img.shape[:2] == (height, width):
            return img
        shrinks = height * width < img.shape[0] * img.shape[1]
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(img, (width, height), interpolation=interpolation)

    def apply_to_mask(self, mask: np.ndarray, new_size: tuple[int, int], **params: Any):
        """Resizes a label map by nearest neighbour."""
        return cv2.resize(mask, new_size[::-1], interpolation=cv2.INTER_NEAREST)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        """Boxes in albumentations' relative coordinates do not change."""
        return bboxes

    def apply_to_keypoints(
        self, keypoints: np.ndarray, new_size: tuple[int, int], **params: Any
    ) -> np.ndarray:
        """Scales keypoints in albumentations' convention, where a pixel's centre is an integer."""
        height, width = params["shape"][:2]
        keypoints = keypoints.copy()
        for axis, ratio in enumerate((new_size[1] / width, new_size[0] / height)):
            keypoints[:, axis] = (keypoints[:, axis] + 0.5) * ratio - 0.5
        return keypoints


def shortest_edge_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Size ``(height, width)`` after :class:`ResizeShortestEdge`, rounded to whole pixels."""
    scale = min(shortest / min(height, width), longest / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
