"""Spatial pyramid pooling of RoIs (SPPnet)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.ops.roi_pool import roi_pool


def spatial_pyramid_pool(
    features: Tensor,
    boxes: Tensor | Sequence[Tensor],
    levels: Sequence[int],
    spatial_scale: float = 1.0,
    mode: str = "max",
) -> Tensor:
    """A vector of fixed length per RoI: grids of n x n bins, one for each level.

    "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition" (sections 2.2
    and 4.1), with the bins of :func:`detector.ops.roi_pool.roi_pool`, which is this with one
    level.

    Args:
        features: ``(B, C, H, W)``, float32, float16, bfloat16 or float64.
        boxes: ``(N, 5)`` rows of (image index, x1, y1, x2, y2), or B tensors ``(L, 4)``. They get
            no gradient.
        levels: bins per axis of each grid, such as (1, 2, 3, 6), the paper's 50 bins.
        spatial_scale: cells of the feature map per unit of the boxes.
        mode: ``"max"`` or ``"avg"``.

    Returns:
        ``(N, C * sum(n * n))`` in the dtype of the features: the levels in the order given, of
        each its ``(C, n, n)`` flattened.

    Raises:
        ValueError: an argument has a wrong shape, dtype or value.
    """
    sizes = tuple(levels)
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"levels must be one or more positive integers, not {levels}")
    return torch.cat(
        [roi_pool(features, boxes, n, spatial_scale, mode).flatten(1) for n in sizes], 1
    )
