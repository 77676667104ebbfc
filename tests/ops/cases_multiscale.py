"""Cases of RoIAlign over a pyramid."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from detector.ops.multiscale_roi_align import assign_levels, multiscale_roi_align
from detector.ops.reference.multiscale_roi_align import pool_assigned
from tests.ops.case import ALL_DTYPES, LAYOUTS, OpCase

STRIDES = [4, 8, 16]
SCALES = [1 / stride for stride in STRIDES]
# Small, so that the boxes below are spread over all levels.
CANONICAL_SIZE = 40.0


def make(
    channels: int, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Any, ...]:
    """Three levels of two images; slots with boxes of every size, one of them NaN."""
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(2, channels, 64 // stride, 96 // stride, generator=generator)
        .to(device, dtype)
        .contiguous(memory_format=layout)
        for stride in STRIDES
    ]
    first = torch.rand(2, 30, 2, generator=generator) * 90 - 10
    size = torch.rand(2, 30, 2, generator=generator) ** 2 * 120
    boxes = torch.cat((first, first + size), 2)
    boxes[0, 0] = torch.nan
    boxes[1, 1] = boxes[1, 1].flip(0)
    valid = torch.rand(2, 30, generator=generator) < 0.8
    box_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return features, boxes.to(device, box_dtype), valid.to(device)


def pool(output_size: int, features: list[Tensor], boxes: Tensor, valid: Tensor) -> Tensor:
    """The public function."""
    return multiscale_roi_align(
        features, boxes, output_size, STRIDES, valid=valid, canonical_size=CANONICAL_SIZE
    )


def pool_by_reference(
    output_size: int, features: list[Tensor], boxes: Tensor, valid: Tensor
) -> Tensor:
    """Levels first, then every box from its own."""
    rows = boxes.flatten(0, 1)
    levels = assign_levels(rows, len(STRIDES), canonical_size=CANONICAL_SIZE)
    levels = torch.where(valid.flatten(), levels, -1)
    image_index = torch.arange(2, device=boxes.device).repeat_interleave(boxes.shape[1])
    pooled = pool_assigned(features, rows, image_index, levels, SCALES, output_size)
    return pooled.unflatten(0, boxes.shape[:2])


def custom_ops(device: torch.device) -> list[tuple[Any, tuple[Any, ...]]]:
    """The op and its gradient."""
    ops = torch.ops.detector
    features, boxes, valid = make(8, device, torch.float32, torch.channels_last)
    rows, image_index = boxes.flatten(0, 1), torch.arange(2, device=device).repeat_interleave(30)
    features = [level.requires_grad_() for level in features]
    rest = (2, True, 2, 4, CANONICAL_SIZE)
    grad = torch.randn(60, 8, 7, 7, device=device)
    sizes = ([level.shape[2] for level in features], [level.shape[3] for level in features])
    given = (rows, image_index, valid.flatten(), SCALES)
    return [
        (ops.multiscale_roi_align.default, (features, *given, 7, *rest)),
        (ops.multiscale_roi_align_backward.default, (grad, 2, *sizes, True, *given, *rest)),
    ]


CASES = [
    OpCase(
        name=f"multiscale_roi_align-{output_size}-{channels}",
        make=partial(make, channels),
        op=partial(pool, output_size),
        reference=partial(pool_by_reference, output_size),
        gradients=(0,),
        dtypes=ALL_DTYPES,
        layouts=LAYOUTS,
        rounds_on_cpu=True,
        custom_ops=custom_ops if channels == 8 else None,
    )
    # Whole vectors of channels, and channels that are not.
    for output_size, channels in ((7, 8), (14, 16), (7, 5))
]
