"""Detectron2's detectors, built, fed and stepped as its own trainer does.

Source of the optimiser and the step: ``detectron2/solver/build.py``, ``engine/train_loop.py``. The
functions are those of :mod:`detector.benchmark.torchvision_peer`. Its baselines sample each RoI
adaptively; here 2 x 2 times in a cell as ours, which is less work for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector.benchmark.model_workload import Workload
from detector.benchmark.torchvision_peer import outlines
from detector.interop import detectron2
from detector.interop.recipes import compose_config
from detector.structures import Batch

CONFIGS = {
    "mask_rcnn_r50_fpn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "faster_rcnn_r50_fpn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
}


def build(workload: Workload) -> nn.Module:
    """Its model with the weights of ours.

    Raises:
        ImportError: it is not installed.
    """
    from detectron2.modeling import build_model

    model = build_model(_config(workload))
    ours = compose_config(workload.recipe())
    state = detectron2.from_ours(workload.state, ours)
    # A model there has its pixels' mean and deviation from its configuration.
    state = {name: value for name, value in state.items() if not name.startswith("pixel_")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.startswith("pixel_")]
    assert not missing and not unexpected, (missing, unexpected)
    return model


def _config(workload: Workload) -> Any:
    from detectron2 import model_zoo
    from detectron2.config import get_cfg

    config = get_cfg()
    config.merge_from_file(model_zoo.get_config_file(CONFIGS[workload.network]))
    config.MODEL.DEVICE, config.MODEL.WEIGHTS = "cpu", ""
    config.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 2
    config.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO = 2
    config.MODEL.RPN.POST_NMS_TOPK_TEST = workload.counts.proposals
    config.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = workload.counts.samples
    config.TEST.DETECTIONS_PER_IMAGE = workload.counts.detections
    return config


def make_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """That of its trainer."""
    from detectron2.config import get_cfg
    from detectron2.solver import build_optimizer

    config = get_cfg()
    config.SOLVER.BASE_LR = lr
    return build_optimizer(config, model)


def make_inputs(batch: Batch, with_masks: bool) -> list[dict[str, Any]]:
    """Images of blue, green, red and instances as its mappers give them, masks as polygons."""
    from detectron2.structures import Boxes, Instances, PolygonMasks

    inputs = []
    for number, image in enumerate(batch.images):
        height, width = image.shape[1:]
        valid = batch.targets.valid[number]
        objects = Instances((height, width))
        objects.gt_boxes = Boxes(batch.targets.boxes[number, valid])
        objects.gt_classes = batch.targets.labels[number, valid]
        if with_masks:
            rings = [[ring.flatten().astype(np.float64)] for ring in outlines(batch, number)]
            objects.gt_masks = PolygonMasks(rings)
        blue_first = image.flip(0).contiguous()
        inputs.append({"image": blue_first, "height": height, "width": width, "instances": objects})
    return inputs


def pin(inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Its loaders do not use page-locked memory."""
    return inputs


def move(inputs: list[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """Nothing: its models move what they are given, as a part of their forward pass."""
    return inputs


def losses(model: nn.Module, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
    """In training mode."""
    from detectron2.utils.events import EventStorage

    with EventStorage():
        return model(inputs)


def detect(model: nn.Module, inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """In evaluation mode: ``boxes``, ``scores``, ``labels`` from 0, masks pasted."""
    found = [one["instances"] for one in model(inputs)]
    names = {"boxes": "pred_boxes", "scores": "scores", "labels": "pred_classes"}
    results = []
    for one in found:
        result = {name: one.get(theirs) for name, theirs in names.items()}
        result["boxes"] = result["boxes"].tensor
        if one.has("pred_masks"):
            result["masks"] = one.pred_masks
        results.append(result)
    return results


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """What ends a stage of inference when it has run, by the stage's name."""
    return {
        "backbone": model.backbone,
        "rpn": model.proposal_generator,
        "second stage": model.roi_heads,
    }


def poolers(model: nn.Module) -> dict[str, nn.Module]:
    """By branch, what pools its RoIs; its second argument is their boxes."""
    heads = model.roi_heads
    found = {"box": heads.box_pooler, "mask": getattr(heads, "mask_pooler", None)}
    return {name: pooler for name, pooler in found.items() if pooler is not None}
