"""RoIAlign on one feature map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor

from detector.ops.rois import (
    as_height_width,
    check_mode,
    check_scale,
    flatten_boxes,
    memory_format_of,
    park_unusable,
    usable,
)
from detector.ops.sampled_pooling import pool_samples

# Samples of a cell and axis that adapt to the RoI at most, so that their number fits int32.
MAX_ADAPTIVE_SAMPLES = 4096

# torchvision keeps a table of all samples of a RoI, which for a huge one is huge.
_MAX_TABLE_SAMPLES = 2**21


def roi_align(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    mode: str = "avg",
) -> Tensor:
    """RoIAlign (Mask R-CNN, section 3): bilinear samples of each RoI, pooled, nothing rounded.

    Equals ``torchvision.ops.roi_align`` for ``mode="avg"``. A sample more than one cell outside
    the map counts as 0, one nearer reads the border cell. A box that is not finite gives zeros
    and no gradient. Boxes get no gradient.

    Args:
        features: ``(B, C, H, W)``, float32, float16, bfloat16 or float64.
        boxes: ``(N, 5)`` rows of (image index, x1, y1, x2, y2), or B tensors ``(L, 4)``.
        output_size: cells of the output, one number or (height, width).
        spatial_scale: cells of the feature map per unit of the boxes.
        sampling_ratio: samples per cell and axis; 0 or less: as many as the output cell covers
            cells of the map, rounded up (of a RoI whose output cells are wider than 4096 map
            cells, 4096).
        aligned: shift by half a cell so that samples lie at pixel centres (Detectron2's "v2");
            ``False`` is the original, with RoIs of at least one cell.
        mode: ``"avg"`` of the samples of a cell, or ``"max"`` (of equal ones the first, row by
            row, gets the gradient; see :func:`detector.ops.sampled_pooling.pool_samples`).

    Returns:
        ``(N, C, height, width)`` in the dtype and memory format of the features.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value.
    """
    check_mode(mode)
    check_scale(spatial_scale)
    height, width = as_height_width(output_size)
    if not isinstance(sampling_ratio, int) or sampling_ratio > MAX_ADAPTIVE_SAMPLES:
        raise ValueError(
            f"sampling_ratio must be an integer up to {MAX_ADAPTIVE_SAMPLES}, not {sampling_ratio}"
        )
    boxes, image_index = flatten_boxes(features, boxes)
    boxes = boxes * spatial_scale
    if (
        mode == "avg"
        and features.device.type == "cpu"
        and features.shape[0]
        and _has_small_tables(boxes, (height, width), sampling_ratio)
    ):
        if sampling_ratio <= 0 and aligned:
            # Without samples they are zeros; torchvision would make a table of negative size.
            empty = (boxes[:, 2:] <= boxes[:, :2]).any(1, keepdim=True)
            boxes = torch.where(empty, torch.nan, boxes)
        rois, image_index = park_unusable(boxes, image_index, features.shape[0])
        pooled = torchvision.ops.roi_align(
            features.to(rois.dtype),
            torch.cat((image_index[:, None].to(rois), rois), 1),
            (height, width),
            1.0,
            sampling_ratio,
            aligned,
        )
        return pooled.to(features.dtype).contiguous(memory_format=memory_format_of(features))
    return sample_rows(features, boxes, image_index, (height, width), sampling_ratio, aligned, mode)


def sample_rows(
    features: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    output_size: tuple[int, int],
    sampling_ratio: int,
    aligned: bool,
    mode: str,
) -> Tensor:
    """:func:`roi_align` of rows ``(N, 4)``, in cells of the map, of images ``(N,)``, unchecked.

    It asks for no value, which the training step may not. What is of no image gives zeros.
    """
    boxes = torch.where(usable(boxes, image_index, features.shape[0])[:, None], boxes, torch.nan)
    grid, samples = align_samples(boxes, output_size, sampling_ratio, aligned)
    max_samples = max(sampling_ratio, 0)
    return pool_samples(
        features, image_index, grid, samples, *output_size, max_samples, "clamp", mode
    )[0]


def place_samples(
    boxes: Tensor, output_size: Sequence[int], sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Where RoIAlign samples: ``grid`` and ``samples`` of ``pool_samples``.

    Args:
        boxes: ``(N, 4)`` in cells of the feature map.
        output_size: (height, width).
        sampling_ratio, aligned: as in :func:`roi_align`.

    Returns:
        ``(N, 4)`` in the dtype of the boxes, and ``(N, 2)`` int32, 0 for boxes with NaN.
    """
    height, width = output_size
    if aligned:
        boxes = boxes - 0.5
    start = boxes[:, :2]
    size = boxes[:, 2:] - start
    if not aligned:
        size = size.clamp(min=1.0)
    # Tensors, not Python numbers: CUDA divides by those as a product with the reciprocal, which
    # may round 21 / 7 up, and then a cell gets a sample more.
    sides = (torch.full_like(size[:, :1], side) for side in (width, height))
    bins = size / torch.cat(tuple(sides), 1)
    if sampling_ratio > 0:
        samples = torch.full_like(bins, sampling_ratio)
    else:
        samples = bins.ceil().clamp(0.0, MAX_ADAPTIVE_SAMPLES).nan_to_num(0.0)
    step = bins / samples.clamp(min=1.0)
    return torch.cat((start + 0.5 * step, step), 1), samples.int()


# An op, because a compiler of plain PyTorch may divide less exactly, and a cell that needs exactly
# 3 samples would get 4.
align_samples = torch.library.custom_op("detector::align_samples", place_samples, mutates_args=())


@align_samples.register_fake
def _(boxes: Tensor, *_) -> tuple[Tensor, Tensor]:
    shape = boxes.shape[0]
    return boxes.new_empty(shape, 4), boxes.new_empty(shape, 2, dtype=torch.int32)


def _has_small_tables(boxes: Tensor, output_size: tuple[int, int], sampling_ratio: int) -> bool:
    """Whether torchvision's tables stay small; while compiling nobody can know."""
    if sampling_ratio > 0 or torch.compiler.is_compiling() or not boxes.shape[0]:
        return True
    height, width = output_size
    size = (boxes[:, 2:] - boxes[:, :2]).nan_to_num(0.0, 0.0, 0.0)
    columns, rows = size[:, 0].clamp(min=1) + width, size[:, 1].clamp(min=1) + height
    return bool((columns * rows).max() <= _MAX_TABLE_SAMPLES)
