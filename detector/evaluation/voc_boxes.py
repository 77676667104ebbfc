"""Boxes as PASCAL VOC counts them: pixels from 1, and both ends belong to the box."""

from __future__ import annotations

import numpy as np


def to_inclusive(boxes: np.ndarray) -> np.ndarray:
    """Continuous corners as VOC's: pixels are counted from 1, and both ends belong to the box.

    Args:
        boxes: ``(n, 4)`` ``(x1, y1, x2, y2)``.

    Returns:
        ``(n, 4)`` float64 ``(xmin, ymin, xmax, ymax)``.
    """
    return np.asarray(boxes, dtype=np.float64) + [1.0, 1.0, 0.0, 0.0]


def inclusive_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of inclusive boxes ``(..., 4)`` with others, whose shapes go together: ``(...)``."""
    low = np.maximum(boxes[..., :2], others[..., :2])
    high = np.minimum(boxes[..., 2:], others[..., 2:])
    shared = np.maximum(high - low + 1, 0).prod(-1)
    areas = [(each[..., 2:] - each[..., :2] + 1).prod(-1) for each in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared)
