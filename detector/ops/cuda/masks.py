"""Launches the kernels that put masks into an image."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.cuda import runtime
from detector.ops.cuda.runtime import SCALARS, Kernel

BLOCK = 256
PIXELS_PER_THREAD = 16
COLUMNS_PER_BLOCK = 128


def _kernel(name: str, dtype: torch.dtype) -> Kernel:
    return Kernel.of("masks.cu", name, SCALAR=SCALARS[dtype])


def specialisations() -> list[Kernel]:
    names = ("paste_masks", "count_mask_borders", "write_mask_borders")
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return [_kernel(name, dtype) for name in names for dtype in dtypes]


def _inputs(masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    # Values are computed in float32 whatever they come in.
    masks = masks.float() if masks.dtype == torch.float64 else masks
    return masks.contiguous(), boxes.double().contiguous()


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """As :func:`detector.ops.masks.paste_masks`."""
    masks, boxes = _inputs(masks, boxes)
    num_masks, side = masks.shape[:2]
    pasted = torch.empty(num_masks, height, width, dtype=torch.bool, device=masks.device)
    runtime.launch(
        _kernel("paste_masks", masks.dtype),
        -(-pasted.numel() // (BLOCK * PIXELS_PER_THREAD)),
        BLOCK,
        *(masks, boxes, pasted, num_masks, side, height, width, float(threshold)),
    )
    return pasted


def mask_borders(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """The borders that :func:`detector.ops.rle.encode_borders` takes, and where each mask's end.

    How many there are only the device knows: the host waits for it once to know, and once for
    the borders themselves.

    Returns:
        ``(T,)`` and ``(N,)`` int64 on the CPU.
    """
    masks, boxes = _inputs(masks, boxes)
    num_masks, side = masks.shape[:2]
    blocks_per_mask = -(-width // COLUMNS_PER_BLOCK)
    grid = num_masks * blocks_per_mask
    sizes = (side, height, width, blocks_per_mask, float(threshold))

    counts = torch.empty(num_masks, width, dtype=torch.int32, device=masks.device)
    count = _kernel("count_mask_borders", masks.dtype)
    runtime.launch(count, grid, COLUMNS_PER_BLOCK, masks, boxes, counts, *sizes)
    ends = counts.view(-1).cumsum(0).view(num_masks, width)
    mask_ends = ends[:, -1].cpu()
    total = int(mask_ends[-1]) if num_masks else 0
    borders = torch.empty(total, dtype=torch.int32, device=masks.device)
    write = _kernel("write_mask_borders", masks.dtype)
    if total:
        runtime.launch(write, grid, COLUMNS_PER_BLOCK, masks, boxes, ends, borders, *sizes)
    return borders.cpu().long(), mask_ends
