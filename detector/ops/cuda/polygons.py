"""Launches the kernel that rasterises polygons."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.cuda import runtime
from detector.ops.cuda.runtime import MAX_SHARED_BYTES, Kernel

RASTERIZE = Kernel.of("polygons.cu", "rasterize_polygons")

# As many edges as most objects have, or a few times less; several blocks share a multiprocessor.
BLOCK = 128


def specialisations() -> list[Kernel]:
    return [RASTERIZE]


def rasterize_polygons(
    edges: Tensor,
    offsets: Tensor,
    boxes: Tensor,
    image_index: Tensor,
    gt_index: Tensor,
    max_edges: int,
    mask_size: int,
) -> Tensor:
    """As the op ``detector::rasterize_polygons``; ``max_edges`` is not needed."""
    edges = edges.contiguous()
    if edges.data_ptr() % 16:  # a view into something else
        edges = edges.clone()
    masks = torch.empty(len(boxes), mask_size, mask_size, device=boxes.device)
    rows_per_band = min(mask_size, MAX_SHARED_BYTES // (4 * mask_size))
    assert rows_per_band > 0, f"mask_size {mask_size} is too large"
    bands = -(-mask_size // rows_per_band)
    runtime.launch(
        RASTERIZE,
        len(boxes) * bands,
        BLOCK,
        *(edges, offsets.contiguous(), boxes.contiguous()),
        *(image_index.contiguous(), gt_index.contiguous(), masks),
        *(edges.shape[0], offsets.shape[1] - 1, edges.shape[1], mask_size, rows_per_band, bands),
        shared_bytes=4 * rows_per_band * mask_size,
    )
    return masks
