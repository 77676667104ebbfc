"""Greedy non-maximum suppression by its definition, over the whole matrix of overlaps."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.boxes import box_iou, gather_boxes


def nms_slots(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float
) -> Tensor:
    """As :func:`detector.ops.nms.nms_slots`, in the dtype of the boxes; memory O(B P²)."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    boxes, groups = gather_boxes(boxes, order), groups.gather(1, order)
    # In float64: a Python threshold compared with float32 would first be rounded itself.
    suppresses = box_iou(boxes, boxes).double() > iou_threshold
    suppresses &= groups[:, :, None] == groups[:, None]
    suppresses = suppresses.triu(1)
    keep = valid.gather(1, order)
    for i in range(keep.shape[1]):
        keep = keep & ~(suppresses[:, i] & keep[:, i : i + 1])
    return torch.zeros_like(keep).scatter(1, order, keep)
