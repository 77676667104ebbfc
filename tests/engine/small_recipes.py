"""Recipes shrunk so that a step takes a fraction of a second."""

from __future__ import annotations

import dataclasses

from omegaconf import DictConfig, OmegaConf
from torch import nn

from tests.rcnn.conftest import NUM_KEYPOINTS
from tests.rcnn.conftest import _make_batch as make_batch
from tests.rcnn.test_fast_rcnn import make_proposals

NARROW = {
    "model.rpn.num_samples": 32,
    "model.rpn.train_proposals.pre_nms_top_n": 64,
    "model.rpn.train_proposals.post_nms_top_n": 24,
    "model.rpn.test_proposals.pre_nms_top_n": 64,
    "model.rpn.test_proposals.post_nms_top_n": 16,
    "model.roi_sampler.num_samples": 16,
    "model.box_branch.pooler.canonical_size": 16.0,
    "model.box_branch.head.width": 32,
    "model.box_branch.head.conv_width": 32,
    "model.box_branch.detections.max_detections": 8,
    "model.box_branch.pooler.crops.output_size": 64,
    "model.mask_branch.head.width": 16,
    "model.keypoint_branch.head.width": 16,
}


def shrink(cfg: DictConfig) -> DictConfig:
    """The same arrangement, with narrow layers, few samples and anchors for images of 128 px."""
    cfg = cfg.copy()
    model = cfg.model
    cfg.num_classes = 3
    cfg.num_keypoints = NUM_KEYPOINTS
    model.backbone.weights = None
    for key, value in NARROW.items():
        if OmegaConf.select(cfg, key) is not None:
            OmegaConf.update(cfg, key, value)
    if str(model.backbone.get("name")).startswith("res"):
        model.backbone.name = "resnet18"
        kind = model.backbone._target_.rpartition("_")[2]
        model.backbone.out_channels = {"fpn": 32, "c4": 256}.get(kind, 512)
        if "out_channels" in model.get("box_branch", {}).get("pooler", {}):
            model.box_branch.pooler.out_channels = 512
    if "rpn" in model:
        sizes = model.rpn.anchors.sizes
        model.rpn.anchors.sizes = [[size / 8 for size in level] for level in sizes]
    return cfg


def make_inputs(model: nn.Module) -> tuple:
    """A batch with whatever the model asks for."""
    batch = make_batch(gt_slots=4)
    targets = dataclasses.replace(batch.targets, labels=batch.targets.labels % model.num_classes)
    proposals = [make_proposals(targets, 16)] if model.needs_proposals else []
    return batch.images, batch.image_sizes, targets, proposals
