"""What every RoI op takes: a feature map, boxes in either of two forms, and an output size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FEATURE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MODES = ("max", "avg")

# A cell that no sample of a parked RoI comes near; small, so that float32 holds its neighbours.
_OUTSIDE = -16.0

# Quantised corners stay integers that float32 holds exactly, and their differences fit int32.
_FARTHEST_CELL = 2.0**24


def check_features(features: Tensor) -> None:
    """Raise ``ValueError`` unless ``features`` is a ``(B, C, H, W)`` map that RoI ops take."""
    if features.dim() != 4:
        raise ValueError(f"features must be (B, C, H, W), not {tuple(features.shape)}")
    if features.dtype not in FEATURE_DTYPES:
        raise ValueError(f"features must be one of {FEATURE_DTYPES}, not {features.dtype}")
    if 0 in features.shape[1:]:
        raise ValueError(f"features {tuple(features.shape)} have no cell or no channel")


def check_mode(mode: str) -> None:
    """Raise ``ValueError`` unless ``mode`` is ``"max"`` or ``"avg"``."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, not {mode!r}")


def check_scale(spatial_scale: float) -> None:
    """Raise ``ValueError`` unless ``spatial_scale`` is finite and positive."""
    if not (math.isfinite(spatial_scale) and spatial_scale > 0):
        raise ValueError(f"spatial_scale must be finite and positive, not {spatial_scale}")


def as_height_width(output_size: int | Sequence[int]) -> tuple[int, int]:
    """``output_size`` as (height, width); one number means a square.

    Raises:
        ValueError: it is neither one nor two positive integers.
    """
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"output_size must be one or two positive integers, not {output_size}")
    return size[0], size[1]


def flatten_boxes(features: Tensor, boxes: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Both forms of ``boxes`` as one list of boxes and the image each belongs to.

    Args:
        features: ``(B, C, H, W)``, what the boxes are for.
        boxes: ``(N, 5)`` rows of (image index, x1, y1, x2, y2), or B tensors ``(L, 4)``.

    Returns:
        Boxes ``(N, 4)``, float32 (float64 for float64 features) and without gradient; image index
        ``(N,)`` int64. An index that is not an image is an error on the CPU; on a GPU, where
        nobody may wait for the answer, and in compiled code it stays as it is and the ops give
        that row zeros.

    Raises:
        ValueError: shape, dtype or device do not fit, or an image index lies outside the batch.
    """
    check_features(features)
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    if isinstance(boxes, Tensor):
        _check_boxes(boxes, 5, "boxes", features)
        rows = boxes.detach()
        index = rows[:, 0]
        # NaN has no defined integer.
        image_index = torch.where(index.isfinite(), index, -1.0).long()
        _check_image_index(image_index, features.shape[0])
        return rows[:, 1:].to(dtype), image_index
    if len(boxes) != features.shape[0]:
        raise ValueError(f"boxes are for {len(boxes)} images, features have {features.shape[0]}")
    for image, own in enumerate(boxes):
        _check_boxes(own, 4, f"boxes[{image}]", features)
    if not boxes:
        return features.new_zeros((0, 4), dtype=dtype), features.new_zeros(0, dtype=torch.int64)
    image_index = [
        torch.full((own.shape[0],), image, dtype=torch.int64, device=features.device)
        for image, own in enumerate(boxes)
    ]
    return torch.cat([own.detach().to(dtype) for own in boxes]), torch.cat(image_index)


def _check_boxes(boxes: Tensor, columns: int, name: str, features: Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != columns:
        raise ValueError(f"{name} must be (N, {columns}), not {tuple(boxes.shape)}")
    if not boxes.is_floating_point():
        raise ValueError(f"{name} must be floating point, not {boxes.dtype}")
    if boxes.device != features.device:
        raise ValueError(f"{name} are on {boxes.device}, features on {features.device}")


def _check_image_index(image_index: Tensor, num_images: int) -> None:
    if image_index.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = (image_index < 0) | (image_index >= num_images)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"boxes[{row}, 0] is not one of the {num_images} images' indices")


def usable(boxes: Tensor, image_index: Tensor, num_images: int) -> Tensor:
    """``(N,)`` bool: the box is finite and its image is in the batch."""
    return boxes.isfinite().all(1) & (image_index >= 0) & (image_index < num_images)


def park_unusable(boxes: Tensor, image_index: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """Move what is not :func:`usable` outside the map, for ops that would cast NaN to a cell.

    Args:
        boxes: ``(N, 4)`` in cells of the feature map.
        image_index: ``(N,)`` int64.
        num_images: of the batch, at least 1 if there are boxes.

    Returns:
        Boxes and indices that every op may read; the moved ones give zeros.
    """
    good = usable(boxes, image_index, num_images)
    return torch.where(good[:, None], boxes, _OUTSIDE), torch.where(good, image_index, 0)


def quantise_boxes(boxes: Tensor) -> Tensor:
    """First and last cell of each box: corners rounded to the nearest cell, halves away from 0.

    Args:
        boxes: ``(N, 4)`` finite, in cells of the feature map.

    Returns:
        ``(N, 4)`` of the same dtype, whole numbers with x1 <= x2 and y1 <= y2, so that every RoI
        has at least one cell. Corners more than 2^24 cells away are taken to be that far.
    """
    # Not floor(x + 0.5), whose sum rounds the number below one half up to 1.
    whole = boxes.trunc()
    cells = whole + torch.where((boxes - whole).abs() >= 0.5, boxes.sign(), 0.0)
    cells = cells.clamp(-_FARTHEST_CELL, _FARTHEST_CELL)
    return torch.cat((cells[:, :2], torch.maximum(cells[:, 2:], cells[:, :2])), 1)


def memory_format_of(features: Tensor) -> torch.memory_format:
    """The layout an op gives its output: ``channels_last`` only where the features have it."""
    if not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
