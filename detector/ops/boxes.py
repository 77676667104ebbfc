"""Box arithmetic: overlap, the delta coding of the R-CNN papers, clipping.

Boxes are ``(x1, y1, x2, y2)`` in continuous pixels: width is ``x2 - x1``. The inclusive convention
of the 2015 code, width ``x2 - x1 + 1``, exists only as the option ``legacy`` of the coder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A predicted width or height may grow by at most 1000/16: exp() of a larger delta, seen in the
# first steps of training, would overflow.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def box_area(boxes: Tensor) -> Tensor:
    """Areas ``(...)`` of boxes ``(..., 4)``; inverted boxes count as empty."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def box_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union of every pair.

    Args:
        boxes_a: ``(..., N, 4)``.
        boxes_b: ``(..., S, 4)``, leading dimensions broadcast against those of ``boxes_a``.

    Returns:
        ``(..., N, S)``; 0 where both boxes are empty.
    """
    intersection = box_intersection(boxes_a, boxes_b)
    union = box_area(boxes_a)[..., :, None] + box_area(boxes_b)[..., None, :] - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def box_intersection(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection areas ``(..., N, S)`` of ``(..., N, 4)`` and ``(..., S, 4)``."""
    low = torch.maximum(boxes_a[..., :, None, :2], boxes_b[..., None, :, :2])
    high = torch.minimum(boxes_a[..., :, None, 2:], boxes_b[..., None, :, 2:])
    size = (high - low).clamp(min=0)
    return size[..., 0] * size[..., 1]


def _center_size(boxes: Tensor, legacy: bool) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2] + (1.0 if legacy else 0.0)
    return boxes[..., :2] + 0.5 * size, size


def encode_boxes(
    boxes: Tensor,
    reference: Tensor,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    legacy: bool = False,
) -> Tensor:
    """Deltas that move ``reference`` onto ``boxes`` (R-CNN, appendix C; Faster R-CNN, eq. 2).

    Args:
        boxes: ``(..., 4)`` targets.
        reference: ``(..., 4)`` anchors or proposals. Empty ones give zeros, never NaN.
        weights: multipliers of ``(dx, dy, dw, dh)``; (10, 10, 5, 5) makes their spread about 1.
        legacy: widths are ``x2 - x1 + 1``, as in the 2015 code.

    Returns:
        ``(..., 4)`` float deltas.
    """
    center, size = _center_size(boxes, legacy)
    reference_center, reference_size = _center_size(reference, legacy)
    filled = ((size > 0) & (reference_size > 0)).all(-1, keepdim=True)
    size = torch.where(filled, size, torch.ones_like(size))
    reference_size = torch.where(filled, reference_size, torch.ones_like(reference_size))
    shift = (center - reference_center) / reference_size
    scale = torch.log(size / reference_size)
    columns = torch.cat((shift, scale), -1).unbind(-1)
    # One by one: weights made into a tensor would be a copy to the GPU that the CPU waits for.
    deltas = torch.stack([x * weight for x, weight in zip(columns, weights, strict=True)], -1)
    return torch.where(filled, deltas, torch.zeros_like(deltas))


def decode_boxes(
    deltas: Tensor,
    reference: Tensor,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    legacy: bool = False,
) -> Tensor:
    """Boxes that ``deltas`` describe; the inverse of :func:`encode_boxes`.

    Args:
        deltas: ``(..., 4)``.
        reference: ``(..., 4)``, broadcast against ``deltas``.
        weights: as in :func:`encode_boxes`.
        legacy: as in :func:`encode_boxes`.

    Returns:
        ``(..., 4)`` boxes, at most 62.5 times the reference's width and height.
    """
    center, size = _center_size(reference, legacy)
    columns = deltas.unbind(-1)
    deltas = torch.stack([x / weight for x, weight in zip(columns, weights, strict=True)], -1)
    center = center + deltas[..., :2] * size
    half = 0.5 * size * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE))
    return torch.cat((center - half, center + half - (1.0 if legacy else 0.0)), -1)


def clip_boxes(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Boxes cut at the border of the filled part of their image.

    Args:
        boxes: ``(B, N, 4)``.
        image_sizes: ``(B, 2)``, ``(height, width)``.
    """
    limit = image_sizes.flip(-1).repeat(1, 2)[:, None].to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)
