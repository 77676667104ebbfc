"""Assignment of ground truth to anchors or proposals."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.boxes import box_iou

# Anchors compared at once: bounds the IoU matrix to a few MiB an image however many anchors.
CHUNK = 16384

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def match_boxes(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_valid: Tensor,
    low: float,
    high: float,
    allow_low_quality: bool = False,
) -> tuple[Tensor, Tensor]:
    """Best gt and label of every anchor (Faster R-CNN, section 3.1.2).

    An anchor is positive if its best IoU is at least ``high``, negative if it is below ``low``,
    ignored between. With ``allow_low_quality`` every anchor that reaches the highest IoU any anchor
    has with some gt is positive too, so that no gt stays without an anchor.

    Args:
        anchors: ``(A, 4)``, or ``(B, A, 4)`` where they differ from image to image.
        gt_boxes: ``(B, G, 4)``.
        gt_valid: ``(B, G)`` bool.
        low: IoU below which an anchor is background.
        high: IoU from which an anchor is foreground.
        allow_low_quality: keep each gt's best anchors even below ``high``.

    Returns:
        ``(B, A)`` int64 index of the best gt slot, and ``(B, A)`` int64 labels 1 (positive),
        0 (negative) or -1 (ignored). Without any gt all anchors are negative.
    """
    anchors = anchors.expand(len(gt_boxes), -1, -1) if anchors.dim() == 2 else anchors
    chunks = anchors.split(CHUNK, dim=1)

    best_iou, best_gt = [], []
    gt_best = gt_boxes.new_zeros(gt_valid.shape)
    for chunk in chunks:
        iou = _iou_with_filled(chunk, gt_boxes, gt_valid)
        value, index = iou.max(dim=2)
        best_iou.append(value)
        best_gt.append(index)
        gt_best = torch.maximum(gt_best, iou.amax(dim=1))
    iou, matched = torch.cat(best_iou, 1), torch.cat(best_gt, 1)

    labels = torch.full_like(matched, IGNORED)
    labels = labels.masked_fill(iou < low, NEGATIVE).masked_fill(iou >= high, POSITIVE)
    if allow_low_quality:
        # Recomputing the overlaps costs less than keeping them. A gt that no anchor touches has
        # a best IoU of 0, which all anchors "reach": it claims none.
        claimable = gt_valid & (gt_best > 0)
        claimed = [
            (
                (_iou_with_filled(chunk, gt_boxes, gt_valid) == gt_best[:, None])
                & claimable[:, None]
            ).any(2)
            for chunk in chunks
        ]
        labels = labels.masked_fill(torch.cat(claimed, 1), POSITIVE)
    return matched, labels


def _iou_with_filled(anchors: Tensor, gt_boxes: Tensor, gt_valid: Tensor) -> Tensor:
    return box_iou(anchors, gt_boxes).masked_fill(~gt_valid[:, None], -1.0)
