"""RoIAlign of all levels of a pyramid: one launch places the samples, one pools them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.ops.cuda import roi_align, sampled_pooling
from detector.ops.rois import memory_format_of


def multiscale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    valid: Tensor | None,
    scales: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    *level_rule: float,
) -> Tensor:
    """As :func:`detector.ops.multiscale_roi_align.multiscale_roi_align`, of rows."""
    layout = memory_format_of(features[0])
    maps = [level.contiguous(memory_format=layout) for level in features]
    image_index = image_index.contiguous()
    grid, level_index = roi_align.geometry(
        maps[0].dtype,
        len(maps[0]),
        boxes,
        image_index,
        valid,
        scales,
        output_size * sampling_ratio,
        aligned,
        *level_rule,
    )
    shape = (maps[0].shape[1], output_size, output_size, sampling_ratio)
    if layout == torch.channels_last and roi_align.fits(maps[0].dtype, len(maps), *shape):
        return roi_align.forward(maps, image_index, level_index, grid, output_size, sampling_ratio)
    pooled, _ = sampled_pooling.forward(
        maps,
        image_index,
        level_index,
        grid,
        None,
        output_size,
        output_size,
        sampling_ratio,
        "clamp",
        "avg",
    )
    return pooled


def multiscale_roi_align_backward(
    grad: Tensor,
    batch: int,
    heights: Sequence[int],
    widths: Sequence[int],
    channels_last: bool,
    boxes: Tensor,
    image_index: Tensor,
    valid: Tensor | None,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
    *level_rule: float,
) -> list[Tensor]:
    """Gradients of the L maps; the sample grid is made anew, which is less than keeping it."""
    sizes = list(zip(heights, widths, strict=True))
    channels, output_size = grad.shape[1:3]
    image_index = image_index.contiguous()
    grid, level_index = roi_align.geometry(
        grad.dtype,
        batch,
        boxes,
        image_index,
        valid,
        scales,
        output_size * sampling_ratio,
        aligned,
        *level_rule,
    )
    deterministic = torch.are_deterministic_algorithms_enabled()
    if channels_last and roi_align.fits(
        grad.dtype, len(sizes), channels, output_size, output_size, sampling_ratio
    ):
        return roi_align.backward(
            grad,
            sizes,
            batch,
            image_index,
            level_index,
            grid,
            sampling_ratio,
            deterministic,
        )
    return sampled_pooling.backward(
        grad,
        image_index.new_empty(0, dtype=torch.int32),
        sizes,
        batch,
        image_index,
        level_index,
        grid,
        None,
        sampling_ratio,
        "clamp",
        "avg",
        torch.channels_last if channels_last else torch.contiguous_format,
        deterministic,
    )
