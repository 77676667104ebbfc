"""Masks, boxes and polygons to try the mask ops with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.ops.masks import paste_masks
from detector.ops.reference.masks import paste_masks as reference_paste_masks
from tests.ops.case import OpCase


def random_boxes(number: int, height: int, width: int, seed: int, reach: float = 0.3) -> Tensor:
    """Boxes of all sizes, some partly outside the image."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    corners = (torch.rand(number, 2, 2, generator=generator) * (1 + 2 * reach) - reach) * size
    return torch.cat([corners.amin(1), corners.amax(1) + 0.5], dim=1)


def extreme_boxes() -> Tensor:
    """Slivers, giants, far away, at pixel centres, and numbers that are none."""
    nan, inf = float("nan"), float("inf")
    rows = [[x, 2.0, x + size, 31.0] for x in (4.5, 11.25, 33.0) for size in (1e-6, 1e-3, 0.5, 2)]
    rows += [[-reach, -reach / 2, reach, reach] for reach in (1e2, 1e5, 1e9, 1e17, 1e30)]
    rows += [[8.0 - reach, 5.0, 8.0 + reach, 6.5] for reach in (1e4, 1e12, 3e38)]
    rows += [[1e7, 1e7, 2e7, 2e7], [-1e30, -1e30, -1e29, -1e29], [9.5, 9.5, 9.5, 9.5]]
    for place in range(4):
        for value in (nan, inf, -inf):
            row = [3.0, 4.0, 30.0, 29.0]
            row[place] = value
            rows.append(row)
    return torch.tensor(rows + [[nan] * 4, [-inf, -inf, inf, inf]])


def smooth_masks(number: int, side: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(number, 1, 5, 5, generator=generator)
    return F.interpolate(coarse, size=side, mode="bilinear")[:, 0].mul(3).sigmoid()


def _paste_arguments(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Tensor, Tensor, int, int]:
    boxes = torch.cat([random_boxes(40, 61, 83, seed=0, reach=1.0), extreme_boxes()])
    masks = smooth_masks(len(boxes), 28, seed=0)
    return masks.to(device, dtype), boxes.to(device), 61, 83


def _paste_custom_ops(device: torch.device) -> list:
    masks, boxes, height, width = _paste_arguments(device, torch.float32, torch.contiguous_format)
    op = torch.ops.detector.paste_masks.default
    return [(op, (masks, boxes, height, width, 0.5)), (op, (masks[:0], boxes[:0], 5, 6, 0.5))]


CASES = [
    OpCase(
        name="paste_masks",
        make=_paste_arguments,
        op=paste_masks,
        reference=reference_paste_masks,
        dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        exact=True,
        custom_ops=_paste_custom_ops,
    ),
]
