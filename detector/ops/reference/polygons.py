"""Rasterising by counting, for every cell, the edges that cross its row to the left of it."""

from __future__ import annotations

import torch
from torch import Tensor


def rasterize_polygons(
    edges: Tensor,
    offsets: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    gt_index: Tensor,
    mask_size: int,
    min_cell: float = 1e-9,
) -> Tensor:
    """As :func:`detector.ops.polygons.rasterize_polygons`, bit for bit, on any device.

    ``edges`` ``(B, E, 4)`` and ``offsets`` ``(B, G + 1)`` are those of
    :class:`detector.structures.Polygons`.
    """
    masks = boxes.new_zeros(len(boxes), mask_size, mask_size)
    column = torch.arange(mask_size, device=boxes.device)
    centre = column[:, None] + 0.5
    # Not a Python number: dividing by one is a product with its reciprocal on CUDA.
    size = torch.full((2,), float(mask_size), device=boxes.device)
    picks = torch.stack([image_index, gt_index], dim=1).tolist()
    for mask, box, (image, gt) in zip(masks, boxes, picks, strict=True):
        cell = (box[2:] - box[:2]) / size
        if not (cell > min_cell).all() or not cell.isfinite().all():
            continue
        own = edges[image, offsets[image, gt] : offsets[image, gt + 1]]
        x0, y0 = ((own[:, :2] - box[:2]) / cell).unbind(1)
        x1, y1 = ((own[:, 2:] - box[:2]) / cell).unbind(1)
        # (rows, edges), then (rows, edges, columns)
        direction = ((y0 <= centre) & (centre < y1)).int() - ((y1 <= centre) & (centre < y0)).int()
        x = x0 + (centre - y0) / (y1 - y0) * (x1 - x0)
        left_of_cell = x[:, :, None] - 0.5 <= column
        mask[:] = (direction[:, :, None] * left_of_cell).sum(1) != 0
    return masks
