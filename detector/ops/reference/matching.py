"""Assignment of ground truth by its definition, over the whole matrix of overlaps."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.boxes import box_iou

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def match_boxes(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_valid: Tensor,
    low: float,
    high: float,
    allow_low_quality: bool = False,
) -> tuple[Tensor, Tensor]:
    """As :func:`detector.ops.matching.match_boxes`, in the dtype of the boxes; memory O(B A G)."""
    anchors = anchors.expand(len(gt_boxes), -1, -1)
    return match_overlaps(box_iou(anchors, gt_boxes), gt_valid, low, high, allow_low_quality)


def match_overlaps(
    iou: Tensor, gt_valid: Tensor, low: float, high: float, allow_low_quality: bool
) -> tuple[Tensor, Tensor]:
    """Best gt and label from overlaps ``(B, A, G)``."""
    # A slot before the first gt, worse than all, answers for images without any.
    iou = iou.masked_fill(~gt_valid[:, None], -1.0)
    best, matched = torch.cat((iou.new_full((*iou.shape[:2], 1), -1.0), iou), 2).max(2)
    matched = (matched - 1).clamp(min=0)
    labels = torch.full_like(matched, IGNORED)
    labels = labels.masked_fill(best < low, NEGATIVE).masked_fill(best >= high, POSITIVE)
    if allow_low_quality:
        for gt in range(iou.shape[2]):
            reached = iou[:, :, gt].amax(1, keepdim=True)
            labels = labels.masked_fill((iou[:, :, gt] == reached) & (reached > 0), POSITIVE)
    return matched, labels
