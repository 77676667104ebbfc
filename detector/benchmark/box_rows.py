"""Suppression and matching beside torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import batched_nms as torchvision_batched_nms
from torchvision.ops import box_iou as torchvision_box_iou

from detector.benchmark.comparison import Comparison
from detector.benchmark.inputs import crowded_boxes, generator, pyramid_anchors, random_boxes
from detector.ops.matching import match_boxes
from detector.ops.nms import nms_slots


def box_rows(device: torch.device) -> list[Comparison]:
    """Comparisons of the ops on boxes, on the CPU with fewer images."""
    num_images = 8 if device.type == "cuda" else 2
    return [
        _suppression(device, "proposals", num_images, per_group=2000, num_groups=5, threshold=0.7),
        _suppression(device, "detections", num_images, per_group=25, num_groups=40, threshold=0.5),
        _matching(device),
    ]


def _suppression(
    device: torch.device,
    what: str,
    num_images: int,
    per_group: int,
    num_groups: int,
    threshold: float,
) -> Comparison:
    num_boxes = per_group * num_groups
    boxes = crowded_boxes(num_images, num_boxes, num_objects=60).to(device)
    scores = torch.rand(num_images, num_boxes, generator=generator(7)).to(device)
    groups = torch.arange(num_groups).repeat_interleave(per_group)
    groups = groups.expand(num_images, -1).contiguous().to(device)
    valid = torch.ones_like(scores, dtype=torch.bool)

    def theirs() -> Tensor:
        keep = torch.zeros_like(valid)
        for image in range(num_images):
            kept = torchvision_batched_nms(boxes[image], scores[image], groups[image], threshold)
            keep[image, kept] = True
        return keep

    return Comparison(
        "nms_slots",
        f"{what}: {num_images} images x {num_groups} groups x {per_group}, IoU {threshold}",
        lambda: nms_slots(boxes, scores, groups, valid, threshold),
        {"torchvision batched_nms, image by image": theirs},
        _check_kept,
    )


def _check_kept(ours: Tensor, theirs: Tensor) -> None:
    # torchvision's coordinate offset rounds overlaps that lie at the threshold.
    assert (ours != theirs).float().mean() < 1e-3


def _matching(device: torch.device) -> Comparison:
    anchors = pyramid_anchors().to(device)
    gt_boxes = random_boxes(1, 100, seed=3).to(device)
    gt_valid = torch.ones(1, 100, dtype=torch.bool, device=device)
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)

    def theirs() -> Tensor:
        return matcher(torchvision_box_iou(gt_boxes[0], anchors))

    def check(ours: tuple[Tensor, Tensor], theirs: Tensor) -> None:
        matched, labels = ours[0][0], ours[1][0]
        assert labels.eq(1).equal(theirs >= 0)
        assert labels.eq(0).equal(theirs == Matcher.BELOW_LOW_THRESHOLD)
        # Of two gts with one IoU either may be chosen.
        assert (matched == theirs)[theirs >= 0].float().mean() > 0.99

    return Comparison(
        "match_boxes",
        f"{len(anchors)} anchors x 100 gts",
        lambda: match_boxes(anchors, gt_boxes, gt_valid, 0.3, 0.7, allow_low_quality=True),
        {"torchvision box_iou and Matcher": theirs},
        check,
        with_memory=True,
    )
