"""The numbers that torchvision's detectors have of their own, each beside torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools.coco import COCO
from torchvision.models.detection.anchor_utils import AnchorGenerator as TheirAnchors
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import FrozenBatchNorm2d, box_iou, clip_boxes_to_image
from torchvision.ops.poolers import LevelMapper

from detector.backbones.normalization import norm_layer
from detector.data.collate import Collate
from detector.data.dataset import DetectionDataset
from detector.data.transforms import ResizeShortestEdge
from detector.interop.recipes import compose_config
from detector.interop.torchvision import known_recipes
from detector.ops.multiscale_roi_align import assign_levels
from detector.ops.polygons import rasterize_polygons
from detector.roi_heads.detections import DetectionLayer
from detector.rpn.anchors import AnchorGenerator
from detector.rpn.proposals import ProposalLayer
from detector.structures import Proposals


@pytest.mark.parametrize("side", [160, 224, 800])
def test_anchors_are_rounded_and_strides_fit_the_image(side: int) -> None:
    strides, sizes = (4, 8, 16, 32, 64), ((30,), (64,), (100,), (256,), (512,))
    cells = [side // stride if stride < 64 else -(-side // 64) for stride in strides]
    maps = [torch.zeros(1, 1, n, n) for n in cells]
    theirs = TheirAnchors(sizes, ((0.5, 1.0, 2.0),) * 5)
    expected = theirs(ImageList(torch.zeros(1, 3, side, side), [(side, side)]), maps)[0]
    ours = AnchorGenerator(sizes, strides=strides, rounded=True, fitted_strides=True)
    assert torch.equal(torch.cat(ours(maps)), expected)
    plain = torch.cat(AnchorGenerator(sizes, strides=strides)(maps))
    assert not torch.equal(plain, expected)
    with pytest.raises(ValueError, match="rounded=false"):
        AnchorGenerator(legacy=True, rounded=True)


def test_a_box_at_a_levels_limit_is_the_next_levels() -> None:
    sizes = torch.tensor([112.0, 224.0, 448.0])[:, None] * (1 + torch.arange(-30, 31) * 1e-7)
    sizes = sizes.flatten()
    boxes = torch.stack((*(torch.zeros_like(sizes),) * 2, sizes, sizes), 1)
    expected = LevelMapper(2, 5)([boxes])
    canonical = compose_config(known_recipes()[0]).model.box_branch.pooler.canonical_size
    levels = assign_levels(boxes, 4, canonical_size=canonical)
    # Rounding decides about boxes within three ten millionths of the limit.
    limit = torch.tensor([112.0, 224.0, 448.0]) / 2**1e-6
    clear = ((sizes[:, None] / limit - 1).abs() > 3e-7).all(1)
    assert clear.float().mean() > 0.8
    assert torch.equal(levels[clear], expected[clear])
    assert not torch.equal(assign_levels(boxes, 4)[clear], expected[clear])


def test_proposals_of_low_probability_and_small_boxes_are_dropped() -> None:
    anchors = [torch.tensor([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 40.0005, 10.0]])]
    logits = [torch.tensor([[0.0, -4.0, 1.0]])]
    deltas, size = [torch.zeros(1, 3, 4)], torch.tensor([[64, 64]])
    kept = ProposalLayer(min_size=0.001, score_threshold=0.05)(anchors, logits, deltas, size)
    assert kept.boxes[kept.valid].tolist() == [[0, 0, 10, 10]]
    assert ProposalLayer()(anchors, logits, deltas, size).valid.sum() == 3
    with pytest.raises(ValueError, match="score_threshold=1"):
        ProposalLayer(score_threshold=1.0)


def test_small_detections_are_dropped() -> None:
    boxes = torch.tensor([[[0, 0, 10, 10], [20, 0, 20.005, 10]]])
    proposals = Proposals(boxes, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    scores, deltas = torch.full((1, 2, 1), 0.9), torch.zeros(1, 2, 1, 4)
    size = torch.tensor([[64, 64]])
    assert DetectionLayer()(scores, deltas, proposals, size).valid.sum() == 2
    found = DetectionLayer(min_size=0.01)(scores, deltas, proposals, size)
    assert found.boxes[found.valid].tolist() == [[0, 0, 10, 10]]


def test_norms_may_have_another_epsilon() -> None:
    norm = norm_layer("frozen_bn", eps=0.0)(2)
    assert isinstance(norm, FrozenBatchNorm2d)
    norm.running_var.fill_(1e-6)
    x = torch.rand(1, 2, 3, 3)
    torch.testing.assert_close(norm(x), x * 1000)
    assert norm_layer("bn", eps=0.1)(2).eps == 0.1
    assert norm_layer("gn", eps=0.1)(32).eps == 0.1
    with pytest.raises(ValueError, match=r"norm_eps=0\.1 with norm=none"):
        norm_layer("none", eps=0.1)


def test_polygon_targets_differ_from_resampled_bitmaps_in_few_cells(test_data) -> None:
    """torchvision resamples bitmaps to 28 x 28; on average at most 2 % of the cells differ.

    In RoIs as training draws them, anchors and the objects' own boxes of an IoU of at least .5, at
    the size that its models train on. It reads the bitmaps half a pixel beside, and pycocotools
    draws outlines a little wide, which both count most for small objects.
    """
    root = test_data / "coco_mini"
    annotations = root / "annotations" / "instances_val2017.json"
    resize = [ResizeShortestEdge(800, 1333)]
    dataset, coco = DetectionDataset(annotations, root / "val2017", resize), COCO(annotations)
    generator = torch.Generator().manual_seed(0)
    anchors = TheirAnchors(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    different = []
    for number in range(20):
        batch = Collate()([dataset[number]])
        records = [a for a in coco.imgToAnns[int(batch.image_ids[0])] if not a["iscrowd"]]
        valid = batch.targets.valid[0]
        gt = batch.targets.boxes[0, valid]
        assert len(records) == len(gt)
        if not records:
            continue
        bitmaps = torch.from_numpy(np.stack([coco.annToMask(record) for record in records]))
        height, width = batch.image_sizes[0].tolist()
        corners = torch.tensor([record["bbox"][:2] for record in records])
        corners *= torch.tensor([width / bitmaps.shape[2], height / bitmaps.shape[1]])
        bitmaps = F.interpolate(bitmaps[:, None].float(), size=(height, width))[:, 0].byte()
        order = torch.cdist(gt[:, :2], corners).argmin(1)

        padded = batch.images.shape[2:]
        maps = [torch.zeros(1, 1, *(-(-side // s) for side in padded)) for s in (4, 8, 16, 32, 64)]
        candidates = anchors(ImageList(batch.images, [(height, width)]), maps)[0]
        candidates = clip_boxes_to_image(torch.cat((candidates, gt)), (height, width))
        overlap, index = box_iou(gt, candidates).max(0)
        keep = torch.nonzero(overlap >= 0.5)[:, 0]
        keep = keep[torch.randperm(len(keep), generator=generator)[:128]]
        boxes, index = candidates[keep], index[keep]
        image = torch.zeros_like(index)
        ours = rasterize_polygons(batch.targets.polygons, boxes, image, index, 28)
        theirs = project_masks_on_boxes(bitmaps[order], boxes, index, 28)
        different.append((ours - (theirs >= 0.5).float()).abs().mean((1, 2)))
    different = torch.cat(different)
    assert len(different) > 1000
    assert different.mean() <= 0.02
