"""Heatmaps to try the keypoint ops with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.ops.keypoints import heatmaps_to_keypoints, keypoints_to_cells
from detector.ops.reference.keypoints import heatmaps_to_keypoints as reference_heatmaps
from tests.ops.case import OpCase

NAN = float("nan")


def random_heatmaps(number: int, joints: int, side: int, seed: int) -> Tensor:
    """As a head gives them: a map of half the side, interpolated; the first of each is noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(number, joints, side // 2, side // 2, generator=generator) * 4
    heatmaps = F.interpolate(coarse, size=side, mode="bilinear")
    heatmaps[:, 0] = torch.randn(number, side, side, generator=generator)
    return heatmaps


def boxes_of_all_kinds() -> Tensor:
    """Smaller and larger than a heatmap, slivers, on and off whole pixels, empty, and none."""
    return torch.tensor(
        [
            [3.2, 5.7, 91.4, 140.9],
            [10.0, 20.0, 66.0, 76.0],
            [0.0, 0.0, 17.5, 9.25],
            [50.3, 2.1, 52.0, 130.6],
            [7.75, 8.5, 8.0, 8.75],
            [0.0, 0.0, 0.0, 0.0],
            [40.0, 30.0, 20.0, 10.0],
            [5.0, NAN, 25.0, 31.0],
            [1.0, 2.0, 1e9, 13.0],
            [101.1, 99.9, 311.6, 202.2],
        ]
    )


def _heatmap_arguments(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Tensor, Tensor]:
    boxes = boxes_of_all_kinds()
    return random_heatmaps(len(boxes), 3, 12, seed=0).to(device), boxes.to(device)


def _heatmap_custom_ops(device: torch.device) -> list:
    heatmaps, boxes = _heatmap_arguments(device, torch.float32, torch.contiguous_format)
    op = torch.ops.detector.heatmaps_to_keypoints.default
    return [(op, (heatmaps[:3], boxes[:3])), (op, (heatmaps[:0], boxes[:0]))]


def _keypoint_arguments(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    keypoints = torch.rand(10, 5, 3, generator=generator) * torch.tensor([140.0, 160.0, 2.9])
    keypoints[..., 2].floor_()
    boxes = boxes_of_all_kinds()
    keypoints[0, :2, :2] = boxes[0, [[0, 1], [2, 3]]]  # on its corners
    keypoints[0, :2, 2] = 2
    return keypoints.to(device, dtype), boxes.to(device, dtype)


def cells_one_by_one(keypoints: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Each keypoint by itself, in Python's numbers."""
    cells = torch.zeros(keypoints.shape[:2], dtype=torch.int64)
    inside = torch.zeros(keypoints.shape[:2], dtype=torch.bool)
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for j, (x, y, visibility) in enumerate(keypoints[i].tolist()):
            if visibility > 0 and x1 <= x <= x2 and y1 <= y <= y2 and x1 < x2 and y1 < y2:
                column = min(int((x - x1) / (x2 - x1) * 7), 6)
                row = min(int((y - y1) / (y2 - y1) * 7), 6)
                cells[i, j], inside[i, j] = 7 * row + column, True
    return cells.to(keypoints.device), inside.to(keypoints.device)


CASES = [
    OpCase(
        name="heatmaps_to_keypoints",
        make=_heatmap_arguments,
        op=heatmaps_to_keypoints,
        reference=reference_heatmaps,
        custom_ops=_heatmap_custom_ops,
    ),
    OpCase(
        name="keypoints_to_cells",
        make=_keypoint_arguments,
        op=lambda keypoints, boxes: keypoints_to_cells(keypoints, boxes, 7),
        reference=cells_one_by_one,
        dtypes=(torch.float32, torch.float64),
        exact=True,
    ),
]
