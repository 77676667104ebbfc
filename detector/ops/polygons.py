"""Mask targets straight from polygon edges."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.cuda import polygons as kernels
from detector.ops.cuda import runtime
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
    cells right of the crossing; a running sum along the row gives all winding numbers. The CPU
    and the CUDA kernel give the same bits. No gradient.

    Args:
        polygons: the batch's masks.
        boxes: ``(N, 4)`` float32 RoIs in input pixels, divided into ``mask_size**2`` cells.
        image_index: ``(N,)`` int64, the image of each RoI.
        gt_index: ``(N,)`` int64, the gt slot of each RoI.
        mask_size: M.

    Returns:
        ``(N, M, M)`` float32 of zeros and ones. RoIs of (next to) no area or with NaN or infinity
        and gts without edges give zeros.

    Raises:
        ValueError: shapes or dtypes are not as above; on the CPU also an index without an image
            or a gt slot, which gives zeros on CUDA.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype != torch.float32:
        raise ValueError(f"boxes must be (N, 4) float32, not {tuple(boxes.shape)} {boxes.dtype}")
    for name, index in (("image_index", image_index), ("gt_index", gt_index)):
        if index.shape != boxes.shape[:1] or index.dtype != torch.int64:
            raise ValueError(
                f"{name} must be ({len(boxes)},) int64, not {tuple(index.shape)} {index.dtype}"
            )
    if mask_size < 1:
        raise ValueError(f"mask_size must be at least 1, not {mask_size}")
    return torch.ops.detector.rasterize_polygons(
        polygons.edges,
        polygons.offsets,
        boxes.detach(),
        image_index,
        gt_index,
        polygons.max_edges,
        mask_size,
    )


@torch.library.custom_op("detector::rasterize_polygons", mutates_args=(), device_types="cpu")
def _rasterize_polygons(
    edges: Tensor,
    offsets: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    gt_index: Tensor,
    max_edges: int,
    mask_size: int,
) -> Tensor:
    num_images, num_gts = len(offsets), offsets.shape[1] - 1
    for name, index, number in (
        ("image_index", image_index, num_images),
        ("gt_index", gt_index, num_gts),
    ):
        wrong = index[(index < 0) | (index >= number)]
        if len(wrong):
            raise ValueError(f"{name} must be in 0..{number - 1}, not {int(wrong[0])}")
    return _by_scatter(edges, offsets, boxes, image_index, gt_index, max_edges, mask_size)


@_rasterize_polygons.register_fake
def _(
    edges: Tensor,
    offsets: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    gt_index: Tensor,
    max_edges: int,
    mask_size: int,
) -> Tensor:
    return boxes.new_empty(boxes.shape[0], mask_size, mask_size)


def _by_scatter(
    edges: Tensor,
    offsets: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    gt_index: Tensor,
    max_edges: int,
    mask_size: int,
) -> Tensor:
    """All RoIs at once, in shapes that do not depend on how many edges each gt has."""
    num_rois = len(boxes)
    if not num_rois or not edges.shape[1]:
        return boxes.new_zeros(num_rois, mask_size, mask_size)
    num_images, num_gts = len(offsets), offsets.shape[1] - 1
    known = (image_index >= 0) & (image_index < num_images) & (gt_index >= 0) & (gt_index < num_gts)
    image_index, gt_index = image_index * known, gt_index * known
    first = offsets[image_index, gt_index]
    last = offsets[image_index, gt_index + 1]
    # Not a Python number: dividing by one is a product with its reciprocal on CUDA.
    size = torch.full((2,), float(mask_size), device=boxes.device)
    cell = ((boxes[:, 2:] - boxes[:, :2]) / size)[:, None]
    filled = ((cell > MIN_CELL) & cell.isfinite()).all(2, keepdim=True) & known[:, None, None]
    cell = torch.where(filled, cell, 1.0)
    origin = torch.where(filled, boxes[:, None, :2], 0.0)
    row_center = torch.arange(mask_size, device=boxes.device) + 0.5

    # One column more than cells: crossings right of the RoI land there and change nothing.
    crossings = boxes.new_zeros(num_rois, mask_size, mask_size + 1)
    for start in range(0, max_edges, CHUNK):
        count = min(CHUNK, max_edges - start)
        slot = first[:, None] + start + torch.arange(count, device=boxes.device)
        used = (slot < last[:, None]) & filled[:, 0]
        slot = slot.clamp(max=edges.shape[1] - 1)
        chosen = edges[image_index[:, None], slot]
        x0, y0 = ((chosen[..., :2] - origin) / cell).unbind(-1)
        x1, y1 = ((chosen[..., 2:] - origin) / cell).unbind(-1)

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
    # As integers: of floats CUDA refuses a running sum in deterministic mode.
    winding = crossings[:, :, :mask_size].int().cumsum(2, dtype=torch.int32)
    return (winding != 0).to(boxes.dtype)


_rasterize_polygons.register_kernel("cuda")(
    runtime.or_else(kernels.rasterize_polygons, _by_scatter)
)
