"""RoIAlign over all levels of a feature pyramid at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def assign_levels(
    boxes: Tensor,
    num_levels: int,
    min_level: int = 2,
    canonical_level: int = 4,
    canonical_size: float = 224.0,
) -> Tensor:
    """Pyramid level of each box (FPN, eq. 1), counted from 0.

    Args:
        boxes: ``(N, 4)``.
        num_levels: levels that can be chosen.
        min_level: the paper's name of the finest level, 2 for P2.
        canonical_level: level of a box of ``canonical_size``.
        canonical_size: square root of the area, in pixels, that maps to ``canonical_level``.

    Returns:
        ``(N,)`` int64 in ``0..num_levels-1``.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    scale = (size[:, 0] * size[:, 1]).clamp(min=0).sqrt()
    # 1e-8 keeps log2 finite for empty slots, which land on the finest level.
    level = torch.floor(canonical_level + torch.log2(scale / canonical_size + 1e-8))
    return (level - min_level).clamp(min=0, max=num_levels - 1).long()


def multiscale_roi_align(
    features: list[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    strides: list[int],
    output_size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Tensor:
    """Average RoIAlign (Mask R-CNN, section 3) of boxes spread over pyramid levels.

    Every output cell is a weighted sum of ``(2 * sampling_ratio)**2`` feature vectors. With the
    vectors of all levels and images stacked as rows of one table, that is an embedding bag: one
    call, one gather, no loop over levels and no shape that depends on the boxes. In channels_last
    the table of a level is a view.

    Args:
        features: L maps ``(B, C, H_l, W_l)`` of one dtype.
        boxes: ``(N, 4)`` float32 in input pixels.
        image_index: ``(N,)`` int64, the image of each box.
        levels: ``(N,)`` int64, the level of each box.
        strides: L pixels per cell.
        output_size: side of the square output.
        sampling_ratio: samples per cell and axis, at least 1.
        aligned: shift by half a cell so that samples lie at pixel centres (Detectron2's "v2");
            ``False`` is the original, with RoIs of at least one cell.

    Returns:
        ``(N, C, output_size, output_size)`` in the dtype of the features, channels_last in memory.
    """
    assert sampling_ratio >= 1, "the number of samples must not depend on the box"
    channels = features[0].shape[1]
    table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in features])

    # Written level by level, since a table of these numbers would be copied from the CPU.
    scale = torch.ones_like(boxes[:, 0])
    height, width, first_row = (torch.zeros_like(levels) for _ in range(3))
    rows_before = 0
    for index, (level, stride) in enumerate(zip(features, strides, strict=True)):
        own = levels == index
        scale = scale.masked_fill(own, 1.0 / stride)
        height = height.masked_fill(own, level.shape[2])
        width = width.masked_fill(own, level.shape[3])
        first_row = first_row.masked_fill(own, rows_before)
        rows_before += len(level) * level.shape[2] * level.shape[3]
    first_row = first_row + image_index * height * width

    boxes = boxes.detach() * scale[:, None] - (0.5 if aligned else 0.0)
    size = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        size = size.clamp(min=1.0)
    x, x_weight = _axis_taps(boxes[:, 0], size[:, 0], width, output_size, sampling_ratio)
    y, y_weight = _axis_taps(boxes[:, 1], size[:, 1], height, output_size, sampling_ratio)

    rows = first_row[:, None, None, None, None] + (
        y[:, :, None, :, None] * width[:, None, None, None, None] + x[:, None, :, None, :]
    )
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    pooled = F.embedding_bag(
        rows.flatten(0, 2).flatten(1),
        table,
        mode="sum",
        per_sample_weights=weights.flatten(0, 2).flatten(1).to(table.dtype),
    )
    return pooled.view(len(boxes), output_size, output_size, channels).permute(0, 3, 1, 2)


def _axis_taps(
    start: Tensor, size: Tensor, limit: Tensor, num_cells: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Cells read along one axis, and their bilinear weights, both ``(N, num_cells, 2 * samples)``.

    A sample more than one cell outside the map is zero; one nearer reads the border cell.
    """
    num_samples = num_cells * sampling_ratio
    step = (torch.arange(num_samples, device=start.device, dtype=start.dtype) + 0.5) / num_samples
    position = start[:, None] + size[:, None] * step
    limit = limit[:, None].to(position.dtype)
    inside = (position >= -1.0) & (position <= limit)
    position = torch.minimum(position.clamp(min=0.0), limit - 1)
    low = position.floor()
    high = torch.minimum(low + 1, limit - 1)
    fraction = position - low
    cells = torch.stack((low, high), -1).long()
    weights = torch.stack((1.0 - fraction, fraction), -1) * inside[..., None] / sampling_ratio
    shape = (len(start), num_cells, 2 * sampling_ratio)
    return cells.reshape(shape), weights.reshape(shape)
