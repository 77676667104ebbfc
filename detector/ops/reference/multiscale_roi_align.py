"""RoIAlign of boxes on given pyramid levels, in plain PyTorch: the path that CPUs take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pool_assigned(
    features: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Tensor:
    """Average RoIAlign (Mask R-CNN, section 3), each box from its own level.

    Every output cell is a weighted sum of ``(2 * sampling_ratio)**2`` feature vectors. With the
    vectors of all levels and images stacked as rows of one table, that is an embedding bag: one
    call, one gather, no loop over levels and no shape that depends on the boxes. In channels_last
    the table of a level is a view.

    Args:
        features: L maps ``(B, C, H_l, W_l)`` of one dtype.
        boxes: ``(N, 4)`` in input pixels, float32, or float64 with float64 features.
        image_index: ``(N,)`` int64, the image of each box; boxes of no image give zeros.
        levels: ``(N,)`` int64, the level of each box; boxes of no level give zeros.
        scales: L cells per input pixel.
        output_size: side of the square output.
        sampling_ratio: samples per cell and axis, at least 1.
        aligned: see :func:`detector.ops.multiscale_roi_align.multiscale_roi_align`.

    Returns:
        ``(N, C, output_size, output_size)`` in the dtype of the features, channels_last in memory.
    """
    batch, channels = features[0].shape[:2]
    sizes = [(level.shape[2], level.shape[3]) for level in features]
    rows, weights = _bags(
        sizes, batch, boxes, image_index, levels, scales, output_size, sampling_ratio, aligned
    )
    table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in features])
    if len(table):
        pooled = F.embedding_bag(
            rows, table, mode="sum", per_sample_weights=weights.to(table.dtype)
        )
    else:  # no images: an empty table cannot be read
        pooled = table.new_zeros(len(rows), channels)
    return pooled.view(len(boxes), output_size, output_size, channels).permute(0, 3, 1, 2)


def pool_assigned_backward(
    grad: Tensor,
    sizes: Sequence[tuple[int, int]],
    batch: int,
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> list[Tensor]:
    """Gradients ``(B, C, H_l, W_l)`` of L maps of these ``sizes``, in the dtype of ``grad``."""
    channels, output_size = grad.shape[1:3]
    rows, weights = _bags(
        sizes, batch, boxes, image_index, levels, scales, output_size, sampling_ratio, aligned
    )
    dtype = torch.promote_types(grad.dtype, torch.float32)
    of_cells = grad.permute(0, 2, 3, 1).reshape(-1, channels).to(dtype)
    num_rows = [batch * height * width for height, width in sizes]
    table = grad.new_zeros((sum(num_rows), channels), dtype=dtype)
    if len(table):
        for row, weight in zip(rows.unbind(1), weights.to(dtype).unbind(1), strict=True):
            table.index_add_(0, row, of_cells * weight[:, None])
    return [
        part.view(batch, *size, channels).permute(0, 3, 1, 2).to(grad.dtype)
        for part, size in zip(table.split(num_rows), sizes, strict=True)
    ]


def _bags(
    sizes: Sequence[tuple[int, int]],
    batch: int,
    boxes: Tensor,
    image_index: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    """Rows of the table of all levels that each output cell reads, and their weights.

    Both are ``(N * output_size**2, (2 * sampling_ratio)**2)``.
    """
    assert sampling_ratio >= 1, "the number of samples must not depend on the box"
    # Written level by level, since a table of these numbers would be copied from the CPU.
    scale = torch.ones_like(boxes[:, 0])
    height, width, first_row = (torch.zeros_like(levels) for _ in range(3))
    rows_before = 0
    for index, (size, own_scale) in enumerate(zip(sizes, scales, strict=True)):
        own = levels == index
        scale = scale.masked_fill(own, own_scale)
        height = height.masked_fill(own, size[0])
        width = width.masked_fill(own, size[1])
        first_row = first_row.masked_fill(own, rows_before)
        rows_before += batch * size[0] * size[1]
    used = boxes.isfinite().all(1) & (image_index >= 0) & (image_index < batch) & (height > 0)
    first_row = first_row + torch.where(used, image_index * height * width, 0)

    boxes = boxes.detach() * scale[:, None] - (0.5 if aligned else 0.0)
    boxes = boxes.masked_fill(~used[:, None], -_FAR)
    size = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        size = size.clamp(min=1.0)
    x, x_weight = _axis_taps(boxes[:, 0], size[:, 0], width, output_size, sampling_ratio)
    y, y_weight = _axis_taps(boxes[:, 1], size[:, 1], height, output_size, sampling_ratio)

    rows = first_row[:, None, None, None, None] + (
        y[:, :, None, :, None] * width[:, None, None, None, None] + x[:, None, :, None, :]
    )
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    return rows.flatten(0, 2).flatten(1), weights.flatten(0, 2).flatten(1)


# Cells outside the map where boxes are put that pool nothing.
_FAR = 16.0


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
    position = torch.minimum(position.clamp(min=0.0), (limit - 1).clamp(min=0.0))
    low = position.floor()
    high = torch.minimum(low + 1, (limit - 1).clamp(min=0.0))
    fraction = position - low
    cells = torch.stack((low, high), -1).long()
    weights = torch.stack((1.0 - fraction, fraction), -1) * inside[..., None] / sampling_ratio
    shape = (len(start), num_cells, 2 * sampling_ratio)
    return cells.reshape(shape), weights.reshape(shape)
