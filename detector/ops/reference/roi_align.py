"""RoIAlign in plain PyTorch, RoI by RoI."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detector.ops.reference.bilinear import sample_crossings
from detector.ops.rois import as_height_width, flatten_boxes


def roi_align(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    mode: str = "avg",
) -> Tensor:
    """As :func:`detector.ops.roi_align.roi_align`, for RoIs of which all samples fit in memory."""
    height, width = as_height_width(output_size)
    boxes, image_index = flatten_boxes(features, boxes)
    pooled = []
    for box, image in zip((boxes * spatial_scale).unbind(), image_index.tolist(), strict=True):
        pooled.append(features.new_zeros((features.shape[1], height, width), dtype=boxes.dtype))
        if not box.isfinite().all():
            continue
        x1, y1, x2, y2 = (box - 0.5 if aligned else box).unbind()
        x, x_samples = _positions(x1, x2, width, sampling_ratio, aligned)
        y, y_samples = _positions(y1, y2, height, sampling_ratio, aligned)
        if not x_samples or not y_samples:
            continue
        values = sample_crossings(features[image].to(boxes.dtype), y, x, "clamp")
        cells = values.unflatten(2, (width, x_samples)).unflatten(1, (height, y_samples))
        cells = cells.transpose(2, 3).flatten(3)
        pooled[-1] = cells.mean(3) if mode == "avg" else cells.max(3).values
    if not pooled:
        return features.new_zeros((0, features.shape[1], height, width)) + 0 * features.sum()
    return torch.stack(pooled).to(features.dtype)


def _positions(
    start: Tensor, end: Tensor, num_cells: int, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, int]:
    """Where the samples of one axis lie, and how many there are in each cell."""
    size = end - start
    if not aligned:
        size = size.clamp(min=1.0)
    # Not a Python number: CUDA divides by one as a product with its reciprocal.
    cell = size / torch.full_like(size, num_cells)
    samples = sampling_ratio if sampling_ratio > 0 else max(math.ceil(cell), 0)
    number = torch.arange(num_cells * samples, dtype=start.dtype, device=start.device)
    return start + (number + 0.5) * cell / max(samples, 1), samples
