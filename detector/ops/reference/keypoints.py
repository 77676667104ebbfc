"""Keypoints of heatmaps by matrices of bicubic weights, box by box."""

from __future__ import annotations

import torch
from torch import Tensor

A = -0.75  # of the cubic convolution kernel, as in PyTorch and OpenCV


def heatmaps_to_keypoints(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """As :func:`detector.ops.keypoints.heatmaps_to_keypoints`, in float64, on any device."""
    found = heatmaps.new_zeros(*heatmaps.shape[:2], 3)
    side = heatmaps.shape[-1]
    for i, box in enumerate(boxes):
        (left, width), (top, height) = (
            (float(box[k]), _extent(float(box[k + 2] - box[k]))) for k in (0, 1)
        )
        columns, rows = (_weights(_ceil(size), side, heatmaps.device) for size in (width, height))
        resized = rows @ heatmaps[i].double() @ columns.T
        value, best = resized.flatten(1).max(1)
        x, y = best % len(columns), best // len(columns)
        found[i, :, 0] = left + (x + 0.5) * width / len(columns)
        found[i, :, 1] = top + (y + 0.5) * height / len(rows)
        found[i, :, 2] = value
    return found


def _extent(size: float) -> float:
    return size if 1 <= size < 32768 else 1.0


def _ceil(size: float) -> int:
    return -int(-size // 1)


def _weights(pixels: int, side: int, device: torch.device) -> Tensor:
    """``(pixels, side)``: each pixel as a mean of cells, those beyond the border being its own."""
    at = (torch.arange(pixels, device=device).double() + 0.5) * side / pixels - 0.5
    weights = at.new_zeros(pixels, side)
    for offset in (-1, 0, 1, 2):
        cell = at.floor() + offset
        index = cell.clamp(0, side - 1).long()[:, None]
        weights.scatter_add_(1, index, _cubic((at - cell).abs())[:, None])
    return weights


def _cubic(distance: Tensor) -> Tensor:
    """Keys, Cubic convolution interpolation for digital image processing, 1981, equation 4."""
    near = (A + 2) * distance**3 - (A + 3) * distance**2 + 1
    far = A * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
