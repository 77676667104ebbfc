"""Launches the kernel that finds keypoints in heatmaps."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.cuda import runtime
from detector.ops.cuda.runtime import Kernel

FIND = Kernel.of("keypoints.cu", "heatmaps_to_keypoints")
BLOCK = 256  # as THREADS there


def specialisations() -> list[Kernel]:
    return [FIND]


def heatmaps_to_keypoints(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """As :func:`detector.ops.keypoints.heatmaps_to_keypoints`."""
    num_boxes, num_keypoints, side = heatmaps.shape[:3]
    found = torch.empty(num_boxes, num_keypoints, 3, device=heatmaps.device)
    runtime.launch(
        FIND,
        num_boxes * num_keypoints,
        BLOCK,
        *(heatmaps.contiguous(), boxes.contiguous(), found, num_keypoints, side),
    )
    return found
