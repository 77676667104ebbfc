"""Soft-NMS: overlapping boxes lose score instead of being dropped."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.boxes import box_iou

METHODS = ("linear", "gaussian")


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    method: str = "linear",
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al. 2017, figure 2, equations 2 and 3).

    The best box left is taken, and the score of every other is multiplied by ``1 - IoU`` where the
    IoU is at least the threshold (linear) or by ``exp(-IoU² / sigma)`` (gaussian); and so on, until
    no score exceeds ``score_threshold``. Of equal scores the lower index goes first.

    Plain PyTorch on any device. One box after another, and the CPU asks each time whether one is
    left: for the evaluation of a few hundred boxes, not for training.

    Args:
        boxes: ``(N, 4)``. One with a NaN coordinate overlaps nothing.
        scores: ``(N,)``, not negative. NaN counts as 0.
        iou_threshold: of the linear method, in 0..1; the gaussian one has none.
        method: ``"linear"`` or ``"gaussian"``.
        sigma: of the gaussian method, above 0.
        score_threshold: boxes whose score is, or falls to, this or less are dropped.
        groups: ``(N,)`` integers; only boxes of the same group weaken each other.

    Returns:
        int64 indices of the kept boxes, best first, and their new scores in the dtype of
        ``scores``. No gradients.

    Raises:
        ValueError: wrong shape, an unknown method, or a number out of its range.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes {tuple(boxes.shape)} must be (N, 4)")
    for name, tensor in (("scores", scores), ("groups", groups)):
        if tensor is not None and tensor.shape != boxes.shape[:1]:
            raise ValueError(f"{name} {tuple(tensor.shape)} must be {tuple(boxes.shape[:1])}")
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {', '.join(METHODS)}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold={iou_threshold} must lie in 0..1")
    if not sigma > 0:
        raise ValueError(f"sigma={sigma} must be above 0")

    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    boxes = boxes.detach().to(dtype)
    left = scores.detach().to(dtype).nan_to_num(nan=0.0, posinf=torch.inf)
    indices, values = [], []
    while len(indices) < len(boxes):
        value, best = left.max(0)
        if not value > score_threshold:
            break
        indices.append(best)
        values.append(value)
        iou = box_iou(boxes[best][None], boxes)[0]
        if groups is not None:
            iou = iou.where(groups == groups[best], 0.0)
        if method == "linear":
            weight = (1 - iou).where(iou >= iou_threshold, 1.0)
        else:
            weight = torch.exp(-iou.square() / sigma)
        left = (left * weight).index_fill(0, best, -torch.inf)
    if not indices:
        return scores.new_zeros(0, dtype=torch.int64), scores.new_zeros(0)
    return torch.stack(indices), torch.stack(values).to(scores.dtype)
