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


# Segments of up to 32 boxes are suppressed together, as matrices padded to one of these sizes: a
# call for each would cost more than its work.
_SMALL_SEGMENTS = (8, 16, 32)
_CHUNK_PAIRS = 2**22


def _segment_by_segment(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float
) -> Tensor:
    """Suppression of each image and group, which stable sorts make contiguous segments."""
    num_slots = valid.shape[1]
    keep = torch.zeros(valid.numel(), dtype=torch.bool, device=valid.device)
    slots = valid.flatten().nonzero()[:, 0]
    if not len(slots):
        return keep.view(valid.shape)
    scores, groups = scores.flatten().float(), groups.flatten()
    slots = slots[scores[slots].argsort(descending=True, stable=True)]
    slots = slots[groups[slots].argsort(stable=True)]
    slots = slots[(slots // num_slots).argsort(stable=True)]
    boxes, scores = boxes.flatten(0, 1)[slots].float(), scores[slots]
    group, image = groups[slots], slots // num_slots
    begins = torch.ones_like(slots, dtype=torch.bool)
    begins[1:] = (group[1:] != group[:-1]) | (image[1:] != image[:-1])
    starts = begins.nonzero()[:, 0]
    sizes = starts.diff(append=starts.new_tensor([len(slots)]))

    least = 0
    for most in _SMALL_SEGMENTS:
        chosen = ((sizes > least) & (sizes <= most)).nonzero()[:, 0]
        for some in chosen.split(_CHUNK_PAIRS // most**2):
            place = starts[some, None] + torch.arange(most, device=slots.device)
            filled = torch.arange(most, device=slots.device) < sizes[some, None]
            place = place.masked_fill(~filled, 0)
            stays = _suppress_together(boxes[place], filled, iou_threshold)
            keep[slots[place[stays]]] = True
        least = most
    large = (sizes > least).nonzero()[:, 0]
    for start, size in zip(starts[large].tolist(), sizes[large].tolist(), strict=True):
        part = slice(start, start + size)
        kept = torch.ops.torchvision.nms(boxes[part], scores[part], iou_threshold)
        keep[slots[part][kept]] = True
    return keep.view(valid.shape)


def _suppress_together(boxes: Tensor, filled: Tensor, iou_threshold: float) -> Tensor:
    """Which of ``(S, m, 4)`` boxes, best first in each of S segments, stay; ``(S, m)`` bool.

    A box stays once all that could suppress it are gone, and goes once one of them stays. Each
    round settles the first open box of every segment at least, and usually nearly all. What is
    said of the m boxes of a segment fits the bits of one integer.
    """
    x1, y1, x2, y2 = boxes.unbind(2)
    area = (x2 - x1) * (y2 - y1)
    width = torch.minimum(x2[:, :, None], x2[:, None]) - torch.maximum(x1[:, :, None], x1[:, None])
    height = torch.minimum(y2[:, :, None], y2[:, None]) - torch.maximum(y1[:, :, None], y1[:, None])
    intersection = width.clamp_(min=0).mul_(height.clamp_(min=0))
    union = (area[:, :, None] + area[:, None]).sub_(intersection)
    # Where nothing intersects the quotient is 0 or NaN, which are not above a threshold.
    overlaps = intersection.div_(union) > kernels.float32_below(iou_threshold)

    bits = torch.ones((), dtype=torch.int64, device=boxes.device) << torch.arange(
        boxes.shape[1], device=boxes.device
    )
    earlier = (overlaps.tril_(-1) * bits).sum(2)  # that overlap each box
    stays, still_open = torch.zeros_like(earlier[:, 0]), (filled * bits).sum(1)
    while still_open.any():
        waits = ((earlier & still_open[:, None]) != 0).mul(bits).sum(1)
        stays = stays | (still_open & ~waits)
        goes = ((earlier & stays[:, None]) != 0).mul(bits).sum(1)
        still_open = still_open & waits & ~goes
    return (stays[:, None] & bits) != 0


def _on_the_cpu(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float
) -> Tensor:
    """Without kernels: torchvision's on the GPU fuses, and rounds overlaps otherwise."""
    inputs = (x.cpu() for x in (boxes, scores, groups, valid))
    return _segment_by_segment(*inputs, iou_threshold).to(valid.device)


_nms_slots.register_kernel("cuda")(runtime.or_else(kernels.nms_slots, _on_the_cpu))
