"""Box arithmetic: overlap, the delta coding of the R-CNN papers, clipping.

Boxes are ``(x1, y1, x2, y2)`` in continuous pixels: width is ``x2 - x1``. The inclusive convention
of the 2015 code, width ``x2 - x1 + 1``, exists only as the option ``legacy`` of the coder.

Overlaps of every pair have torchvision's names (``box_iou``, ``generalized_box_iou``,
``distance_box_iou``, ``complete_box_iou``); the short names (``giou``, ``diou``, ``ciou``) are the
same measures box by box, from which a loss is ``1 - measure``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# A predicted width or height may grow by at most 1000/16: exp() of a larger delta, seen in the
# first steps of training, would overflow.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def box_area(boxes: Tensor) -> Tensor:
    """Areas ``(...)`` of boxes ``(..., 4)``; inverted boxes count as empty."""
    return _area((boxes[..., 2:] - boxes[..., :2]).clamp(min=0))


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
    return _area((high - low).clamp(min=0))


def giou(boxes: Tensor, target: Tensor) -> Tensor:
    """Generalized IoU box by box (Rezatofighi et al. 2019, algorithm 1).

    IoU less the share of the enclosing box that neither box covers, so that boxes apart still have
    a gradient towards each other. Inverted boxes count as empty at their first corner; a share of
    an enclosing box without area is 0, so the result is finite for every finite box.

    Args:
        boxes: ``(..., 4)``; computed in float32 if it has fewer bits.
        target: ``(..., 4)``, broadcast against ``boxes``.

    Returns:
        ``(...)`` in -1..1.
    """
    iou, union, pair = _iou_of_pairs(boxes, target)
    enclosing = _area(pair.enclosing)
    return iou - _ratio(enclosing - union, enclosing)


def diou(boxes: Tensor, target: Tensor) -> Tensor:
    """Distance IoU box by box (Zheng et al. 2020, eq. 6 and 7).

    IoU less the squared distance of the centres in units of the enclosing box's diagonal.
    Arguments, result and empty boxes as in :func:`giou`.
    """
    iou, _, pair = _iou_of_pairs(boxes, target)
    return iou - pair.center_distance()


def ciou(boxes: Tensor, target: Tensor) -> Tensor:
    """Complete IoU box by box (Zheng et al. 2020, eq. 8 to 11).

    :func:`diou` less ``alpha * v``, ``v`` measuring how the aspect ratios differ. The trade-off
    ``alpha`` is a constant for the gradient, as in the authors' code. A box without extent has the
    angle 0. Arguments and result as in :func:`giou`, but the result may be below -1.
    """
    iou, _, pair = _iou_of_pairs(boxes, target)
    difference = _aspect_angle(pair.size_b) - _aspect_angle(pair.size_a)
    v = 4 / math.pi**2 * difference.square()
    with torch.no_grad():
        alpha = _ratio(v, 1 - iou + v)
    return iou - pair.center_distance() - alpha * v


def generalized_box_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """:func:`giou` of every pair, shapes as in :func:`box_iou`."""
    return giou(boxes_a[..., :, None, :], boxes_b[..., None, :, :])


def distance_box_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """:func:`diou` of every pair, shapes as in :func:`box_iou`."""
    return diou(boxes_a[..., :, None, :], boxes_b[..., None, :, :])


def complete_box_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """:func:`ciou` of every pair, shapes as in :func:`box_iou`."""
    return ciou(boxes_a[..., :, None, :], boxes_b[..., None, :, :])


class _Pair(NamedTuple):
    """Corners and sizes ``(..., 2)`` of two boxes, and the size of the box that encloses both."""

    low_a: Tensor
    high_a: Tensor
    low_b: Tensor
    high_b: Tensor

    @property
    def size_a(self) -> Tensor:
        return self.high_a - self.low_a

    @property
    def size_b(self) -> Tensor:
        return self.high_b - self.low_b

    @property
    def enclosing(self) -> Tensor:
        low = torch.minimum(self.low_a, self.low_b)
        return torch.maximum(self.high_a, self.high_b) - low

    def center_distance(self) -> Tensor:
        """Squared, in units of the enclosing box's diagonal: in 0..1."""
        distance = (self.low_a + self.high_a - self.low_b - self.high_b) / 2
        return _ratio(distance.square().sum(-1), self.enclosing.square().sum(-1))


def _iou_of_pairs(boxes: Tensor, target: Tensor) -> tuple[Tensor, Tensor, _Pair]:
    dtype = torch.promote_types(torch.promote_types(boxes.dtype, target.dtype), torch.float32)
    corners = []
    for both in (boxes.to(dtype), target.to(dtype)):
        low = both[..., :2]
        corners += [low, torch.maximum(low, both[..., 2:])]
    pair = _Pair(*corners)
    overlap = torch.minimum(pair.high_a, pair.high_b) - torch.maximum(pair.low_a, pair.low_b)
    intersection = _area(overlap.clamp(min=0))
    union = _area(pair.size_a) + _area(pair.size_b) - intersection
    return _ratio(intersection, union), union, pair


def _area(size: Tensor) -> Tensor:
    return size[..., 0] * size[..., 1]


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, 0 with gradient 0 where ``whole`` is not above 0."""
    filled = whole > 0
    ratio = part / torch.where(filled, whole, torch.ones_like(whole))
    return torch.where(filled, ratio, torch.zeros_like(ratio))


def _aspect_angle(size: Tensor) -> Tensor:
    """Angle ``(...)`` of the diagonal of ``(..., 2)`` width and height, 0 without extent."""
    # An angle does not change with scale; in units of the longer side nothing under- or overflows.
    longest = size.detach().amax(-1, keepdim=True)
    width, height = (size / torch.where(longest > 0, longest, torch.ones_like(longest))).unbind(-1)
    extended = longest[..., 0] > 0
    height = torch.where(extended, height, torch.ones_like(height))  # atan2(0, 0) has no gradient
    return torch.atan2(width, height)


def gather_boxes(boxes: Tensor, index: Tensor) -> Tensor:
    """Chosen boxes ``(B, S, 4)`` of ``(B, N, 4)`` by their ``(B, S)`` int64 index into N."""
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))


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
