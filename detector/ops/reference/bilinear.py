"""Bilinear samples of one map at the crossings of rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_crossings(feature: Tensor, y: Tensor, x: Tensor, border: str) -> Tensor:
    """Values of ``feature`` at every (y, x).

    Args:
        feature: ``(C, H, W)``, float32 or float64.
        y: ``(rows,)`` in cells, whose centres are the whole numbers.
        x: ``(columns,)``.
        border: ``"clamp"`` as RoIAlign (0 where more than a cell outside, otherwise the border
            cell), or ``"zero"`` as TensorFlow (0 outside the outermost cells' centres).

    Returns:
        ``(C, rows, columns)``.
    """
    y_low, y_high, y_fraction, y_inside = _taps(y, feature.shape[1], border)
    x_low, x_high, x_fraction, x_inside = _taps(x, feature.shape[2], border)
    upper, lower = feature[:, y_low], feature[:, y_high]
    top = upper[:, :, x_low] * (1 - x_fraction) + upper[:, :, x_high] * x_fraction
    bottom = lower[:, :, x_low] * (1 - x_fraction) + lower[:, :, x_high] * x_fraction
    value = top * (1 - y_fraction[:, None]) + bottom * y_fraction[:, None]
    return torch.where(y_inside[:, None] & x_inside, value, 0.0)


def _taps(position: Tensor, size: int, border: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lowest, highest = (-1, size) if border == "clamp" else (0, size - 1)
    inside = (position >= lowest) & (position <= highest)
    position = torch.where(inside, position, 0.0).clamp(0, size - 1)
    low = position.floor()
    return low.long(), position.ceil().long(), position - low, inside
