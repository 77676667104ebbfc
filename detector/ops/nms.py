"""Non-maximum suppression over fixed slots."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms


@torch.library.custom_op("detector::nms_slots", mutates_args=())
def _nms_slots(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float
) -> Tensor:
    keep = torch.zeros_like(valid)
    boxes, scores = boxes.float(), scores.float()
    for image in range(len(boxes)):
        filled = valid[image].nonzero()[:, 0]
        group = groups[image, filled]
        for value in group.unique().tolist():
            members = filled[group == value]
            kept = torchvision_nms(boxes[image, members], scores[image, members], iou_threshold)
            keep[image, members[kept]] = True
    return keep


@_nms_slots.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(valid)


def nms_slots(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float
) -> Tensor:
    """Greedy NMS within each image and group, all shapes fixed.

    A box is dropped if a kept box of the same image and group with a higher score overlaps it by
    more than the threshold. Groups are compared as groups: shifting boxes apart by a coordinate
    offset, as is common, loses the precision of small boxes on large images.

    Args:
        boxes: ``(B, P, 4)``.
        scores: ``(B, P)``.
        groups: ``(B, P)`` int64, pyramid level or class of each box.
        valid: ``(B, P)`` bool; empty slots neither suppress nor are kept.
        iou_threshold: in 0..1.

    Returns:
        ``(B, P)`` bool, the kept slots.
    """
    return _nms_slots(boxes.detach(), scores.detach(), groups, valid, iou_threshold)
