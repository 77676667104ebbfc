"""Crop-and-resize in plain PyTorch, box by box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.ops.reference.bilinear import sample_crossings
from detector.ops.rois import as_height_width, flatten_boxes


def crop_and_resize(
    features: Tensor, boxes: Tensor | Sequence[Tensor], output_size: int | Sequence[int]
) -> Tensor:
    """As :func:`detector.ops.crop_and_resize.crop_and_resize`."""
    height, width = as_height_width(output_size)
    boxes, image_index = flatten_boxes(features, boxes)
    crops = []
    for box, image in zip(boxes.unbind(), image_index.tolist(), strict=True):
        if not box.isfinite().all():
            crops.append(boxes.new_zeros((features.shape[1], height, width)))
            continue
        x1, y1, x2, y2 = box.unbind()
        y = _positions(y1, y2, features.shape[2], height)
        x = _positions(x1, x2, features.shape[3], width)
        crops.append(sample_crossings(features[image].to(boxes.dtype), y, x, "zero"))
    if not crops:
        return features.new_zeros((0, features.shape[1], height, width)) + 0 * features.sum()
    return torch.stack(crops).to(features.dtype)


def _positions(low: Tensor, high: Tensor, size: int, num_points: int) -> Tensor:
    """The formula of TensorFlow's kernel, in its order of operations."""
    if num_points == 1:
        return (0.5 * (low + high) * (size - 1))[None]
    # Not a Python number: CUDA divides by one as a product with its reciprocal.
    scale = (high - low) * (size - 1) / torch.full_like(low, num_points - 1)
    number = torch.arange(num_points, dtype=low.dtype, device=low.device)
    return low * (size - 1) + number * scale
