"""Where things lie: coordinates of the image, of a feature map and of a RoI's cells.

Image coordinates are continuous pixels: pixel ``i`` covers ``[i, i + 1]`` and has its centre at
``i + 0.5``. A cell of a feature map of stride ``s`` covers ``s`` pixels, cell ``i`` the pixels
``[i * s, (i + 1) * s]``. Feature coordinates are positions in the grid of cells as bilinear
sampling reads it: the integer ``i`` is the *centre* of cell ``i``. So

    feature = image / s - 0.5        image = (feature + 0.5) * s

The half cell is what ``aligned=True`` of RoIAlign means (Detectron2's correction of Mask R-CNN);
``aligned=False`` is the original without it, which reads half a cell further right and down.
"""

from __future__ import annotations

import torch
from torch import Tensor


def image_to_feature(points: Tensor, stride: float, aligned: bool = True) -> Tensor:
    """Feature coordinates of image coordinates.

    Args:
        points: ``(...)`` float x or y coordinates in pixels; boxes and points are such too.
        stride: pixels per cell.
        aligned: integers are centres of cells; without it, their top left corners.

    Returns:
        ``(...)`` in cells, gradients flow.

    Raises:
        ValueError: ``stride`` is not above 0.
    """
    _check_stride(stride)
    return points / stride - (0.5 if aligned else 0.0)


def feature_to_image(points: Tensor, stride: float, aligned: bool = True) -> Tensor:
    """Image coordinates of feature coordinates, the inverse of :func:`image_to_feature`.

    Args:
        points: ``(...)`` float x or y coordinates in cells.
        stride: pixels per cell.
        aligned: as in :func:`image_to_feature`.

    Returns:
        ``(...)`` in pixels, gradients flow.

    Raises:
        ValueError: ``stride`` is not above 0.
    """
    _check_stride(stride)
    return (points + (0.5 if aligned else 0.0)) * stride


def roi_cell_to_image(
    boxes: Tensor, row: Tensor | float, column: Tensor | float, mask_size: int
) -> Tensor:
    """Where in the image the centre of a cell of a RoI's M x M mask lies.

    The cells divide the box evenly: cell ``(i, j)`` covers from ``j / M`` to ``(j + 1) / M`` of its
    width. This is the place that RoIAlign (``aligned=True``) samples for the cell, whose winding
    number decides its mask target, and where ``paste_masks`` puts its probability.

    Args:
        boxes: ``(..., 4)`` RoIs in pixels.
        row: cell index ``i`` from the top; a number or ``(...)``, broadcast against the boxes.
            Fractions are places between centres.
        column: cell index ``j`` from the left, likewise.
        mask_size: M.

    Returns:
        ``(..., 2)`` points ``(x, y)`` in pixels, gradients flow to the boxes.

    Raises:
        ValueError: ``boxes`` are not ``(..., 4)``, or ``mask_size`` is below 1.
    """
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"boxes has shape {tuple(boxes.shape)}, but (..., 4) is needed")
    if mask_size < 1:
        raise ValueError(f"mask_size={mask_size}: a mask has at least one cell")
    x1, y1, x2, y2 = boxes.unbind(-1)
    x = x1 + (x2 - x1) * ((column + 0.5) / mask_size)
    y = y1 + (y2 - y1) * ((row + 0.5) / mask_size)
    return torch.stack(torch.broadcast_tensors(x, y), -1)


def _check_stride(stride: float) -> None:
    if not stride > 0:
        raise ValueError(f"stride={stride}: a cell covers more than 0 pixels")
