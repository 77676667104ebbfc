"""torchvision's detectors, built, fed and stepped as its reference scripts do.

Source of the optimiser and the step: ``references/detection/train.py`` and ``engine.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from detector.benchmark.model_workload import Workload
from detector.interop import torchvision
from detector.structures import Batch

FAMILIES = {"mask_rcnn_r50_fpn": MaskRCNN, "faster_rcnn_r50_fpn": FasterRCNN}


def build(workload: Workload) -> nn.Module:
    """Its model with the weights of ours, the trunk frozen as where it loads ImageNet's.

    Images come in the size that the network takes, and are not resized again.
    """
    trunk = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    sides = [batch.images.shape[2:] for batch in workload.batches]
    model = FAMILIES[workload.network](
        trunk,
        workload.num_classes + 1,
        min_size=min(map(min, sides)),
        max_size=max(map(max, sides)),
        rpn_post_nms_top_n_test=workload.counts.proposals,
        box_batch_size_per_image=workload.counts.samples,
        box_detections_per_img=workload.counts.detections,
        _skip_resize=True,
    )
    model.load_state_dict(torchvision.from_ours(workload.state, None))
    return model


def make_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """That of its reference training."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)


def make_inputs(batch: Batch, with_masks: bool) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images of 0..1 and targets as its datasets give them, bitmaps of full size among them."""
    images = [image / 255 for image in batch.images]
    targets = []
    for number, valid in enumerate(batch.targets.valid):
        target = {
            "boxes": batch.targets.boxes[number, valid],
            "labels": batch.targets.labels[number, valid] + 1,
        }
        if with_masks:
            target["masks"] = torch.from_numpy(np.stack([*_bitmaps(batch, number)]))
        targets.append(target)
    return images, targets


def pin(inputs: tuple[list[Tensor], list[dict[str, Tensor]]]) -> Any:
    """In page-locked memory."""
    images, targets = inputs
    pinned = [{name: value.pin_memory() for name, value in one.items()} for one in targets]
    return [image.pin_memory() for image in images], pinned


def move(inputs: Any, device: torch.device) -> Any:
    """To the device."""
    images, targets = inputs
    moved = [
        {name: value.to(device, non_blocking=True) for name, value in one.items()}
        for one in targets
    ]
    return [image.to(device, non_blocking=True) for image in images], moved


def losses(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """In training mode."""
    return model(*inputs)


def detect(model: nn.Module, inputs: Any) -> list[dict[str, Tensor]]:
    """In evaluation mode: ``boxes``, ``scores``, ``labels`` from 0, masks pasted."""
    images, _ = inputs
    return [{**found, "labels": found["labels"] - 1} for found in model(images)]


def stages(model: nn.Module) -> dict[str, nn.Module]:
    """What ends a stage of inference when it has run, by the stage's name."""
    return {
        "input": model.transform,
        "backbone": model.backbone,
        "rpn": model.rpn,
        "second stage": model.roi_heads,
    }


def poolers(model: nn.Module) -> dict[str, nn.Module]:
    """By branch, what pools its RoIs; its second argument is their boxes."""
    heads = model.roi_heads
    found = {"box": heads.box_roi_pool, "mask": heads.mask_roi_pool}
    return {name: pooler for name, pooler in found.items() if pooler is not None}


def _bitmaps(batch: Batch, number: int) -> Iterator[np.ndarray]:
    """The outlines of an image, each of one ring, as pycocotools fills them."""
    height, width = batch.images.shape[2:]
    for ring in outlines(batch, number):
        (encoded,) = coco_mask.frPyObjects([ring.flatten().tolist()], height, width)
        yield coco_mask.decode(encoded)


def outlines(batch: Batch, number: int) -> Iterator[np.ndarray]:
    """Vertices ``(v, 2)`` of each object of an image, whose outlines are one ring each."""
    edges, offsets = batch.targets.polygons.edges[number], batch.targets.polygons.offsets[number]
    for slot in batch.targets.valid[number].nonzero()[:, 0].tolist():
        yield edges[offsets[slot] : offsets[slot + 1], :2].numpy()
