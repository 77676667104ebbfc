"""Boxes to suppress and to match."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from detector.ops.matching import match_boxes
from detector.ops.nms import batched_nms, nms, nms_slots
from detector.ops.reference import matching as reference_matching
from detector.ops.reference import nms as reference_nms
from detector.ops.soft_nms import soft_nms
from tests.ops.case import OpCase


def random_boxes(*shape: int, extent: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * extent
    return torch.cat((corner, corner + 4 + torch.rand(*shape, 2, generator=generator) * 40), -1)


def slots(num_slots: int, num_groups: int):
    """Two images, a fifth of their slots empty, many scores equal, some boxes NaN or empty."""

    def make(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> tuple:
        generator = torch.Generator().manual_seed(num_slots)
        boxes = random_boxes(2, num_slots, extent=3.0 * num_slots**0.5, seed=num_slots)
        boxes[:, 3::97] = torch.nan
        boxes[:, 5::89, 2:] = boxes[:, 5::89, :2]
        scores = torch.randint(num_slots, (2, num_slots), generator=generator) / num_slots
        groups = torch.randint(num_groups, (2, num_slots), generator=generator) - 1
        valid = torch.rand(2, num_slots, generator=generator) < 0.8
        return tuple(x.to(device) for x in (boxes.to(dtype), scores.to(dtype), groups, valid))

    return make


def lists(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> tuple:
    return tuple(x[0] for x in slots(300, 4)(device, dtype, layout)[:3])


def reference_lists(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    valid = torch.ones_like(groups, dtype=torch.bool)
    keep = reference_nms.nms_slots(
        boxes[None], scores[None], groups[None], valid[None], iou_threshold
    )[0]
    order = scores.argsort(descending=True, stable=True)
    return order[keep[order]]


def nearly_hard(boxes: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """So narrow a gaussian drops all that overlaps."""
    return soft_nms(boxes, scores + 1, 0.5, "gaussian", sigma=1e-12, groups=groups)[0]


def pairs(num_anchors: int, num_gts: int, shared: bool):
    """Two images, the second without gts; gts that are equal, NaN and out of reach."""

    def make(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> tuple:
        shape = (num_anchors,) if shared else (2, num_anchors)
        anchors = random_boxes(*shape, extent=120.0, seed=1).round()
        gt_boxes = random_boxes(2, num_gts, extent=120.0, seed=2).round()
        gt_boxes[:, 1::3] = gt_boxes[:, ::3][:, : gt_boxes[:, 1::3].shape[1]]
        gt_boxes[:, -1] = torch.nan
        gt_boxes[:, -2] += 1e4
        valid = torch.arange(num_gts).expand(2, -1) % 5 != 0
        valid = valid & torch.tensor([[True], [False]])
        return anchors.to(device), gt_boxes.to(device), valid.to(device)

    return make


def nms_ops(device: torch.device) -> list:
    return [
        (
            torch.ops.detector.nms_slots.default,
            (*slots(40, 3)(device, torch.float32, torch.contiguous_format), 0.5),
        )
    ]


def matching_ops(device: torch.device) -> list:
    return [
        (
            torch.ops.detector.match_boxes.default,
            (*pairs(50, 6, shared)(device, torch.float32, torch.contiguous_format), 0.3, 0.7, True),
        )
        for shared in (True, False)
    ]


def matching_case(name: str, make, low_quality: bool, custom_ops=None) -> OpCase:
    options = {"low": 0.3, "high": 0.6, "allow_low_quality": low_quality}
    return OpCase(
        name,
        make,
        partial(match_boxes, **options),
        partial(reference_matching.match_boxes, **options),
        exact=True,
        custom_ops=custom_ops,
    )


FLOATS = (torch.float32, torch.float16, torch.bfloat16)

CASES = [
    *(
        OpCase(
            f"nms_slots of {num_slots} in {num_groups} groups",
            slots(num_slots, num_groups),
            partial(nms_slots, iou_threshold=threshold),
            partial(reference_nms.nms_slots, iou_threshold=threshold),
            dtypes=FLOATS,
            exact=True,
            custom_ops=nms_ops if num_slots == 1 else None,
        )
        for num_slots, num_groups, threshold in ((1, 1, 0.5), (400, 80, 0.5), (2500, 2, 0.7))
    ),
    OpCase(
        "batched_nms",
        lists,
        partial(batched_nms, iou_threshold=0.4),
        partial(reference_lists, iou_threshold=0.4),
        dtypes=FLOATS,
        exact=True,
        capturable=False,
        traceable=False,
    ),
    OpCase(
        "nms",
        lambda *where: lists(*where)[:2],
        partial(nms, iou_threshold=0.4),
        lambda boxes, scores: reference_lists(boxes, scores, scores.new_zeros(300).long(), 0.4),
        dtypes=FLOATS,
        exact=True,
        capturable=False,
        traceable=False,
    ),
    OpCase(
        "soft_nms",
        lists,
        nearly_hard,
        partial(reference_lists, iou_threshold=0.0),
        exact=True,
        capturable=False,
        traceable=False,
    ),
    matching_case("match_boxes", pairs(3000, 40, True), False, matching_ops),
    matching_case("match_boxes with low quality", pairs(3000, 140, True), True),
    matching_case("match_boxes of proposals", pairs(1000, 16, False), True),
]
