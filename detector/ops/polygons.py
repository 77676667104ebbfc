"""Mask targets straight from polygon edges."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.structures import Polygons

# Edges handled at once: bounds memory for a gt outlined by thousands of vertices.
CHUNK = 128

# Pixels. In cells smaller than this, coordinates measured in cells would overflow float32.
MIN_CELL = 1e-9


def rasterize_polygons(
    polygons: Polygons, boxes: Tensor, image_index: Tensor, gt_index: Tensor, mask_size: int
) -> Tensor:
    """Masks of gts inside RoIs: cell centres with a non-zero winding number are inside.

    Scanline form: on the row of a cell centre every edge that crosses it adds +1 or -1 to the
    cells right of the crossing; a cumulative sum along the row gives all winding numbers.

    Args:
        polygons: the batch's masks.
        boxes: ``(N, 4)`` float32 RoIs in input pixels, divided into ``mask_size**2`` cells.
        image_index: ``(N,)`` int64, the image of each RoI.
        gt_index: ``(N,)`` int64, the gt slot of each RoI.
        mask_size: M.

    Returns:
        ``(N, M, M)`` float32 of zeros and ones. RoIs of (next to) no area and gts without edges
        give zeros.
    """
    num_rois = len(boxes)
    first = polygons.offsets[image_index, gt_index]
    last = polygons.offsets[image_index, gt_index + 1]
    origin = boxes[:, None, :2]
    cell = ((boxes[:, 2:] - boxes[:, :2]) / mask_size)[:, None]
    filled = (cell > MIN_CELL).all(2, keepdim=True)
    cell = torch.where(filled, cell, torch.ones_like(cell))
    row_center = torch.arange(mask_size, device=boxes.device) + 0.5

    # One column more than cells: crossings right of the RoI land there and change nothing.
    crossings = boxes.new_zeros(num_rois, mask_size, mask_size + 1)
    for start in range(0, polygons.max_edges, CHUNK):
        count = min(CHUNK, polygons.max_edges - start)
        slot = first[:, None] + start + torch.arange(count, device=boxes.device)
        used = (slot < last[:, None]) & filled[:, 0]
        slot = slot.clamp(max=polygons.edges.shape[1] - 1)
        edges = polygons.edges[image_index[:, None], slot]
        x0, y0 = ((edges[..., :2] - origin) / cell).unbind(-1)
        x1, y1 = ((edges[..., 2:] - origin) / cell).unbind(-1)

        y0, y1 = y0[:, None], y1[:, None]
        center = row_center[:, None]
        down = ((y0 <= center) & (center < y1)).to(boxes.dtype)
        up = ((y1 <= center) & (center < y0)).to(boxes.dtype)
        direction = (down - up) * used[:, None]
        # Edges that do not cross the row have direction 0, and any finite column serves.
        rise = torch.where(direction == 0, torch.ones_like(y0), y1 - y0)
        x = x0[:, None] + (center - y0) / rise * (x1 - x0)[:, None]
        column = torch.ceil(x - 0.5).clamp(min=0, max=mask_size).long()
        crossings.scatter_add_(2, column, direction)
    winding = crossings[:, :, :mask_size].cumsum(2)
    return (winding.round() != 0).to(boxes.dtype)
