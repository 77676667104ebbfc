"""Launches the kernels that match anchors and ground truth."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.cuda import runtime
from detector.ops.cuda.runtime import Kernel

THREADS = 256
# Four anchors a thread read each gt once; where there are few anchors, one a thread fills the card.
PER_THREAD = (1, 4)
MANY_ANCHORS = 4 * 2048 * 132


def specialisations() -> list[Kernel]:
    names = "match_anchors", "match_low_quality"
    return [_kernel(name, count) for count in PER_THREAD for name in names]


def _kernel(name: str, per_thread: int) -> Kernel:
    return Kernel.of("matching.cu", name, PER_THREAD=per_thread)


def match_boxes(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_valid: Tensor,
    low: float,
    high: float,
    allow_low_quality: bool,
) -> tuple[Tensor, Tensor]:
    """As :func:`detector.ops.matching.match_boxes`."""
    num_images, num_gts = gt_valid.shape
    num_anchors = anchors.shape[-2]
    shape = num_images, num_anchors
    matched = torch.empty(shape, dtype=torch.int64, device=anchors.device)
    labels = torch.empty_like(matched)
    if matched.numel() == 0:
        return matched, labels
    assert num_gts < 2**31, f"{num_gts} gts"
    anchors, gt_boxes = anchors.float().contiguous(), gt_boxes.float().contiguous()
    gt_valid = gt_valid.contiguous()
    stride = num_anchors * 4 if anchors.dim() == 3 else 0

    best_of_anchor = best_of_gt = None
    if allow_low_quality:
        best_of_anchor = torch.empty(shape, device=anchors.device)
        best_of_gt = torch.zeros(gt_valid.shape, dtype=torch.int32, device=anchors.device)
    per_thread = PER_THREAD[matched.numel() >= MANY_ANCHORS]
    blocks_per_image = -(-num_anchors // (THREADS * per_thread))
    runtime.launch(
        _kernel("match_anchors", per_thread),
        num_images * blocks_per_image,
        THREADS,
        *(anchors, gt_boxes, gt_valid, matched, labels, best_of_anchor, best_of_gt),
        *(num_anchors, num_gts, stride, blocks_per_image, float(low), float(high)),
    )
    if allow_low_quality:
        blocks_per_image = -(-num_anchors // THREADS)
        runtime.launch(
            _kernel("match_low_quality", per_thread),
            num_images * blocks_per_image,
            THREADS,
            *(anchors, gt_boxes, labels, best_of_anchor, best_of_gt),
            *(num_anchors, num_gts, stride, blocks_per_image),
        )
    return matched, labels
