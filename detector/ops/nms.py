"""Non-maximum suppression: of lists of boxes, and of fixed slots without a sync."""

from __future__ import annotations

import torch
import torchvision  # noqa: F401, registers torch.ops.torchvision
from torch import Tensor

from detector.ops.cuda import nms as kernels
from detector.ops.cuda import runtime


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS of one list of boxes; the result of ``torchvision.ops.nms``.

    Args:
        boxes: ``(N, 4)``.
        scores: ``(N,)``.
        iou_threshold: in 0..1.

    Returns:
        int64 indices of the kept boxes, best first. How many there are the CPU must know, so on
        CUDA this waits for the GPU; :func:`nms_slots` does not.

    Raises:
        ValueError: wrong shape, or a threshold outside 0..1.
    """
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.int64), iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS within each group; the meaning of ``torchvision.ops.batched_nms``.

    Groups are compared as groups, where torchvision shifts small problems apart and so rounds
    their coordinates: its answer may differ where an overlap lies at the threshold.

    Args:
        boxes: ``(N, 4)``.
        scores: ``(N,)``.
        groups: ``(N,)`` integers, such as the class of each box.
        iou_threshold: in 0..1.

    Returns:
        int64 indices of the kept boxes, best first, as of :func:`nms`.

    Raises:
        ValueError: wrong shape, or a threshold outside 0..1.
    """
    if boxes.dim() != 2:
        raise ValueError(f"boxes {tuple(boxes.shape)} must be (N, 4)")
    scores = scores.detach().float()
    valid = torch.ones_like(scores, dtype=torch.bool)
    keep = nms_slots(*(x[None] for x in (boxes, scores, groups, valid)), iou_threshold)[0]
    order = scores.argsort(descending=True, stable=True)
    return order[keep[order]]


def nms_slots(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float
) -> Tensor:
    """Greedy NMS within each image and group, all shapes fixed and nothing asked of the GPU.

    A box is dropped if a kept box of the same image and group with a higher score overlaps it by
    more than the threshold; of equal scores the lower index goes first. Groups are compared as
    groups: shifting boxes apart by a coordinate offset, as is common, loses the precision of small
    boxes on large images. Arithmetic is float32 whatever the dtype, and on every device compares
    the same bits, so the result does not depend on the device.

    A NaN score is better than any other, as in ``torch.sort``. A box with a NaN coordinate, or
    without an area, overlaps nothing: it neither suppresses nor is suppressed, so it is kept.

    Args:
        boxes: ``(B, P, 4)``.
        scores: ``(B, P)``.
        groups: ``(B, P)`` integers, pyramid level or class of each box; any values.
        valid: ``(B, P)`` bool; empty slots neither suppress nor are kept.
        iou_threshold: in 0..1.

    Returns:
        ``(B, P)`` bool, the kept slots. No gradients.

    Raises:
        ValueError: wrong shape or dtype, or a threshold outside 0..1.
    """
    if boxes.dim() != 3 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes {tuple(boxes.shape)} must be (B, P, 4)")
    for name, tensor in (("scores", scores), ("groups", groups), ("valid", valid)):
        if tensor.shape != boxes.shape[:2]:
            raise ValueError(f"{name} {tuple(tensor.shape)} must be {tuple(boxes.shape[:2])}")
    if groups.is_floating_point() or groups.dtype == torch.bool:
        raise ValueError(f"groups are {groups.dtype} and must be integers")
    if valid.dtype != torch.bool:
        raise ValueError(f"valid is {valid.dtype} and must be bool")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold={iou_threshold} must lie in 0..1")
    return _nms_slots(boxes.detach(), scores.detach(), groups, valid, iou_threshold)


@torch.library.custom_op("detector::nms_slots", mutates_args=())
def _nms_slots(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float
) -> Tensor:
    return _segment_by_segment(boxes, scores, groups, valid, iou_threshold)


@_nms_slots.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(valid, memory_format=torch.contiguous_format)


def _segment_by_segment(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float
) -> Tensor:
    """torchvision's NMS of each image and group, which two stable sorts make contiguous."""
    keep = torch.zeros_like(valid, memory_format=torch.contiguous_format)
    for image in range(len(boxes)):
        slots = valid[image].nonzero()[:, 0]
        slots = slots[scores[image, slots].float().argsort(descending=True, stable=True)]
        group, order = groups[image, slots].sort(stable=True)
        slots = slots[order]
        sizes = group.unique_consecutive(return_counts=True)[1].tolist()
        image_boxes = boxes[image, slots].float().split(sizes)
        image_scores = scores[image, slots].float().split(sizes)
        kept = [
            members[torch.ops.torchvision.nms(member_boxes, member_scores, iou_threshold)]
            for members, member_boxes, member_scores in zip(
                slots.split(sizes), image_boxes, image_scores, strict=True
            )
        ]
        if kept:
            keep[image, torch.cat(kept)] = True
    return keep


_nms_slots.register_kernel("cuda")(runtime.or_else(kernels.nms_slots, _segment_by_segment))
