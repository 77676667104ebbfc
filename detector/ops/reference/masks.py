"""Pasting masks by sampling every pixel of the image."""

from __future__ import annotations

import torch
from torch import Tensor


def paste_masks(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5
) -> Tensor:
    """As :func:`detector.ops.masks.paste_masks`, bit for bit, on any device."""
    side = masks.shape[-1]
    # A ring of cells outside the mask, so that every pixel lies between four cells.
    values = torch.nn.functional.pad(masks.float(), (1, 1, 1, 1)) - threshold
    columns, right, has_columns = _between(boxes[:, 0], boxes[:, 2], side, width)
    rows, below, has_rows = _between(boxes[:, 1], boxes[:, 3], side, height)

    index = columns[:, None, :].expand(-1, side + 2, -1)
    values = (1 - right) * values.gather(2, index) + right * values.gather(2, index + 1)
    index = rows[:, :, None].expand(-1, -1, width)
    below = below.transpose(1, 2)
    values = (1 - below) * values.gather(1, index) + below * values.gather(1, index + 1)
    return (values >= 0) & (has_columns & has_rows)[:, None, None]


def _between(start: Tensor, end: Tensor, side: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each pixel of an axis ``(N, size)`` the cell before it, ``(N, 1, size)`` float32 of how
    far it is towards the next, and ``(N,)`` whether the box has an extent."""
    start, end = start.double(), end.double()
    # Not `side / ...`, which PyTorch computes as a reciprocal and a product, rounded twice.
    scale = torch.full_like(start, side) / (end - start)
    usable = (end > start) & (scale > 0) & scale.isfinite()
    start, scale = (torch.where(usable, x, 1.0)[:, None] for x in (start, scale))
    centre = torch.arange(size, device=start.device) + 0.5
    place = ((centre - start) * scale + 0.5).clamp(0, side + 1)
    cell = place.floor().clamp(max=side)
    return cell.long(), (place - cell).float()[:, None], usable
