"""RoI warping in plain PyTorch, RoI by RoI."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.ops.reference.bilinear import sample_crossings
from detector.ops.rois import as_height_width, flatten_boxes, quantise_boxes


def roi_warp(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    mode: str = "max",
) -> Tensor:
    """As :func:`detector.ops.roi_warp.roi_warp`."""
    height, width = as_height_width(output_size)
    boxes, image_index = flatten_boxes(features, boxes)
    pool = F.max_pool2d if mode == "max" else F.avg_pool2d
    pooled = []
    for box, image in zip((boxes * spatial_scale).unbind(), image_index.tolist(), strict=True):
        if not box.isfinite().all():
            pooled.append(boxes.new_zeros((features.shape[1], height, width)))
            continue
        x1, y1, x2, y2 = quantise_boxes(box[None])[0].tolist()
        y = torch.linspace(y1, y2, 2 * height, dtype=torch.float64, device=features.device)
        x = torch.linspace(x1, x2, 2 * width, dtype=torch.float64, device=features.device)
        crop = sample_crossings(features[image].double(), y, x, "zero")
        pooled.append(pool(crop[None], 2)[0].to(boxes.dtype))
    if not pooled:
        return features.new_zeros((0, features.shape[1], height, width)) + 0 * features.sum()
    return torch.stack(pooled).to(features.dtype)
