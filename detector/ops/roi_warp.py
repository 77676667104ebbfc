"""RoI warping: a quantised RoI, resampled and pooled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.ops.rois import (
    as_height_width,
    check_mode,
    check_scale,
    flatten_boxes,
    park_unusable,
    quantise_boxes,
)
from detector.ops.sampled_pooling import pool_samples


def roi_warp(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    mode: str = "max",
) -> Tensor:
    """Crop and resize a quantised RoI to twice the output, then pool 2x2.

    The bilinear warping of "Instance-aware Semantic Segmentation via Multi-task Network Cascades"
    (section 3.2) in the form that TensorFlow's detectors gave it. The corners are rounded to
    cells as in :func:`detector.ops.roi_pool.roi_pool` and span at least one cell. The crop
    of :func:`detector.ops.crop_and_resize.crop_and_resize` runs from the centre of the first cell
    (x1, y1) to the centre of the last cell (x2, y2), which lies inside the RoI; points outside
    the outermost cells' centres are 0. A box that is not finite gives zeros and no gradient.

    Args:
        features: ``(B, C, H, W)``, float32, float16, bfloat16 or float64.
        boxes: ``(N, 5)`` rows of (image index, x1, y1, x2, y2), or B tensors ``(L, 4)``. They
            get no gradient.
        output_size: cells of the output, one number or (height, width).
        spatial_scale: cells of the feature map per unit of the boxes.
        mode: ``"max"`` (of equal points the first, row by row, gets the gradient) or ``"avg"``.

    Returns:
        ``(N, C, height, width)`` in the dtype and memory format of the features.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value.
    """
    check_mode(mode)
    check_scale(spatial_scale)
    height, width = as_height_width(output_size)
    boxes, image_index = flatten_boxes(features, boxes)
    return warp_rows(features, boxes * spatial_scale, image_index, (height, width), mode)


def warp_rows(
    features: Tensor, boxes: Tensor, image_index: Tensor, output_size: tuple[int, int], mode: str
) -> Tensor:
    """:func:`roi_warp` of rows ``(N, 4)``, in cells of the map, of images ``(N,)``, unchecked.

    It asks for no value, which the training step may not. What is of no image gives zeros.
    """
    height, width = output_size
    boxes, _ = park_unusable(boxes, image_index, features.shape[0])
    grid = warp_grid(boxes, output_size)
    samples = torch.full((boxes.shape[0], 2), 2, dtype=torch.int32, device=features.device)
    return pool_samples(features, image_index, grid, samples, height, width, 2, "zero", mode)[0]


def place_points(boxes: Tensor, output_size: Sequence[int]) -> Tensor:
    """``grid`` of ``pool_samples`` for finite boxes ``(N, 4)``, in cells of the map."""
    height, width = output_size
    cells = quantise_boxes(boxes)
    start, last = cells[:, :2], cells[:, 2:]
    size = last - start
    num_steps = torch.cat(
        (
            torch.full_like(start[:, :1], 2 * width - 1),
            torch.full_like(start[:, :1], 2 * height - 1),
        ),
        1,
    )
    step = size / num_steps
    # Rounding may carry the last point past the last cell, and there off the map.
    step = torch.where(
        start + num_steps * step > last, torch.nextafter(step, torch.zeros_like(step)), step
    )
    return torch.cat((start, step), 1)


# An op, because a compiler of plain PyTorch may round otherwise, and move the last point off the
# map.
warp_grid = torch.library.custom_op("detector::warp_grid", place_points, mutates_args=())


@warp_grid.register_fake
def _(boxes: Tensor, output_size: Sequence[int]) -> Tensor:
    return boxes.new_empty(boxes.shape[0], 4)
