"""Box arithmetic and coordinates: no kernels of their own, yet part of every training step."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops import boxes, coordinates
from tests.ops.case import OpCase

FLOATS = (torch.float32, torch.float64)


def make_pairs(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    corner = torch.rand(2, 2, 40, 2, generator=generator) * 60
    pair = torch.cat((corner, corner + 2 + torch.rand(2, 2, 40, 2, generator=generator) * 50), -1)
    return pair[0].to(device, dtype), pair[1].to(device, dtype)


def overlaps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of non-empty boxes, one pair at a time as scalars would have them."""
    x1, y1, x2, y2 = first.unbind(-1)
    u1, v1, u2, v2 = second.unbind(-1)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    intersection = width * height
    return intersection, (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - intersection


def reference_giou(first: Tensor, second: Tensor) -> Tensor:
    intersection, union = overlaps(first, second)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    hull = (high[..., 2] - low[..., 0]) * (high[..., 3] - low[..., 1])
    return intersection / union - (hull - union) / hull


def reference_diou(first: Tensor, second: Tensor) -> Tensor:
    intersection, union = overlaps(first, second)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    shift = (first[..., :2] + first[..., 2:]) / 2 - (second[..., :2] + second[..., 2:]) / 2
    diagonal = (high[..., 2] - low[..., 0]) ** 2 + (high[..., 3] - low[..., 1]) ** 2
    return intersection / union - (shift**2).sum(-1) / diagonal


def reference_ciou(first: Tensor, second: Tensor) -> Tensor:
    intersection, union = overlaps(first, second)
    angle, other = (
        torch.atan((x[..., 2] - x[..., 0]) / (x[..., 3] - x[..., 1])) for x in (first, second)
    )
    v = 4 / torch.pi**2 * (other - angle) ** 2
    alpha = (v / (1 - intersection / union + v)).detach()
    return reference_diou(first, second) - alpha * v


def pairwise(function):
    return lambda first, second: function(first[..., :, None, :], second[..., None, :, :])


def make_gather(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Tensor, Tensor]:
    index = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    return make_pairs(device, dtype, layout)[0], index.to(device)


def loop_gather(values: Tensor, index: Tensor) -> Tensor:
    return torch.stack([image[chosen] for image, chosen in zip(values, index, strict=True)])


def coder(first: Tensor, second: Tensor) -> Tensor:
    return boxes.decode_boxes(boxes.encode_boxes(first, second), second)


def maps(points: Tensor, other: Tensor) -> Tensor:
    cells = coordinates.roi_cell_to_image(points, 3, 5, 28)
    there = coordinates.image_to_feature(cells, 16)
    return coordinates.feature_to_image(there, 16)


def reference_maps(points: Tensor, other: Tensor) -> Tensor:
    x1, y1, x2, y2 = points.unbind(-1)
    return torch.stack((x1 + (x2 - x1) * 5.5 / 28, y1 + (y2 - y1) * 3.5 / 28), -1)


CASES = [
    OpCase("giou", make_pairs, boxes.giou, reference_giou, (0, 1), FLOATS),
    OpCase("diou", make_pairs, boxes.diou, reference_diou, (0, 1), FLOATS),
    OpCase("ciou", make_pairs, boxes.ciou, reference_ciou, (0, 1), FLOATS),
    OpCase(
        "box_iou",
        make_pairs,
        boxes.box_iou,
        pairwise(lambda a, b: torch.div(*overlaps(a, b))),
        (0, 1),
        FLOATS,
    ),
    OpCase(
        "generalized_box_iou",
        make_pairs,
        boxes.generalized_box_iou,
        pairwise(reference_giou),
        (0, 1),
        FLOATS,
    ),
    OpCase("box coder", make_pairs, coder, lambda first, second: first.clone(), (0,), FLOATS),
    OpCase("gather_boxes", make_gather, boxes.gather_boxes, loop_gather, (0,), FLOATS, exact=True),
    OpCase("coordinate maps", make_pairs, maps, reference_maps, (0,), FLOATS),
]
