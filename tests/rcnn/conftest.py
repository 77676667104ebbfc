"""A small Mask R-CNN composed from the configs, and batches for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
import pytest
import torch
from torch import Tensor, nn

from detector.rcnn import FasterRCNN
from detector.structures import Batch, Polygons, Targets

CONFIGS = Path(__file__).parents[2] / "configs"
NUM_CLASSES = 3
NUM_KEYPOINTS = 4

# Everything narrow, anchors for images of 128 px, and every anchor and proposal sampled: the losses
# then do not depend on random draws.
SMALL = (
    "backbone=resnet18_fpn",
    "model.backbone.out_channels=16",
    "model.backbone.freeze_at=0",
    "model.rpn.anchors.sizes=[[8],[16],[32],[64],[128]]",
    "model.rpn.num_samples=9000",
    "model.roi_sampler.num_samples=2400",
    "model.rpn.train_proposals.post_nms_top_n=300",
    "model.rpn.test_proposals.post_nms_top_n=300",
    "model.box_branch.pooler.canonical_size=56",
    "model.box_branch.head.width=32",
    "model.box_branch.detections.max_detections=30",
)
SMALL_KEYPOINTS = (
    "model.keypoint_branch.head.num_convs=2",
    "model.keypoint_branch.head.width=16",
)
SMALL_MASKS = ("model.mask_branch.head.num_convs=2", "model.mask_branch.head.width=16")


@pytest.fixture
def compose_model() -> Callable[..., FasterRCNN]:
    """``compose_model("model=...", "key=value", ...)`` builds what the configs say."""

    def build(*overrides: str) -> FasterRCNN:
        groups = ["+model=mask_rcnn_fpn", "+backbone=resnet50_fpn", f"+num_classes={NUM_CLASSES}"]
        groups.append(f"+num_keypoints={NUM_KEYPOINTS}")
        changes = []
        for override in overrides:
            group, _, value = override.partition("=")
            if group in ("model", "backbone"):
                groups = [g for g in groups if not g.startswith(f"+{group}=")]
                groups.append(f"+{group}={value}")
            else:
                changes.append(override)
        # The backbone fills a place that the model leaves open.
        groups.sort(reverse=True)
        with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
            config = hydra.compose(overrides=[*groups, *changes])
        return hydra.utils.instantiate(config.model)

    return build


@pytest.fixture
def make_model(compose_model) -> Callable[..., FasterRCNN]:
    """A small model with seeded weights that spread scores, boxes and masks well."""

    def build(*overrides: str, masks: bool = True, keypoints: bool = False) -> FasterRCNN:
        torch.manual_seed(0)
        kinds = {
            (False, False): ("model=faster_rcnn_fpn",),
            (True, False): ("model=mask_rcnn_fpn", *SMALL_MASKS),
            (False, True): ("model=keypoint_rcnn_fpn", *SMALL_KEYPOINTS),
            (True, True): ("model=mask_keypoint_rcnn_fpn", *SMALL_MASKS, *SMALL_KEYPOINTS),
        }
        kind = kinds[masks, keypoints]
        model = compose_model(*kind, *SMALL, *overrides)
        spread_weights(model)
        return model

    return build


@torch.no_grad()
def spread_weights(model: FasterRCNN) -> None:
    """Makes random weights behave a little like trained ones.

    The last layers are larger than training starts from, batch norms have the statistics of their
    inputs (activations would explode), and every class is the best of some boxes.
    """
    for module, std in (
        (model.rpn.head.convs[0][0], 0.1),
        (model.rpn.head.objectness, 0.1),
        (model.rpn.head.deltas, 0.05),
        (model.box_branch.head.fc1, 0.02),
        (model.box_branch.head.fc2, 0.25),
        (model.box_branch.predictor.scores, 0.3),
        (model.box_branch.predictor.deltas, 0.3),
    ):
        nn.init.normal_(module.weight, std=std)
    if model.has_masks:
        nn.init.normal_(model.mask_branch.head.logits.weight, std=0.5)
    if model.has_keypoints:
        nn.init.normal_(model.keypoint_branch.head.deconv.weight, std=0.5)

    def fit_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)))

    def center_scores(scores: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        scores.bias.copy_(-(inputs[0] @ scores.weight.T).mean(0))

    hooks = [
        module.register_forward_pre_hook(fit_norm)
        for module in model.backbone.trunk.modules()
        if hasattr(module, "running_mean")
    ]
    hooks.append(model.box_branch.predictor.scores.register_forward_pre_hook(center_scores))
    batch = _make_batch(seed=1)
    model.eval().detect(batch.images, batch.image_sizes)
    for hook in hooks:
        hook.remove()
    model.train()


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """``make_batch(sizes, objects)``: noisy images with bright quadrilaterals as objects."""
    return _make_batch


def _make_batch(
    sizes: Sequence[tuple[int, int]] = ((128, 128), (128, 128)),
    objects: Sequence[int] = (4, 2),
    padded: tuple[int, int] = (128, 128),
    gt_slots: int = 8,
    seed: int = 0,
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    count, edge_slots = len(sizes), 4 * gt_slots
    images = torch.zeros(count, 3, *padded, dtype=torch.uint8)
    boxes, labels = torch.zeros(count, gt_slots, 4), torch.zeros(count, gt_slots).long()
    valid = torch.arange(gt_slots) < torch.tensor(objects)[:, None]
    edges = torch.zeros(count, edge_slots, 4)
    offsets = (torch.arange(gt_slots + 1) * 4).minimum(torch.tensor(objects)[:, None] * 4)
    for image, ((height, width), number) in enumerate(zip(sizes, objects, strict=True)):
        noise = torch.randint(120, (3, height, width), generator=generator)
        images[image, :, :height, :width] = noise.to(torch.uint8)
        extent = torch.tensor([width, height]).float()
        for gt in range(number):
            # Objects of an eighth to a half of the image, wholly inside.
            size = (torch.rand(2, generator=generator) * 0.375 + 0.125) * extent
            low = torch.rand(2, generator=generator) * (extent - size)
            x1, y1, x2, y2 = box = (*low.tolist(), *(low + size).tolist())
            boxes[image, gt] = torch.tensor(box)
            labels[image, gt] = (gt + image) % NUM_CLASSES
            # Lopsided, so that no cell's centre lies on an edge but by rare chance.
            x, y = x1 + 0.413 * (x2 - x1), y1 + 0.287 * (y2 - y1)
            ring = [(x, y1), (x2, y), (x2 - 0.3 * (x - x1), y2), (x1, y2 - 0.6 * (y - y1))]
            for side in range(4):
                edges[image, 4 * gt + side] = torch.tensor((*ring[side - 1], *ring[side]))
            region = (slice(int(y1), int(y2)), slice(int(x1), int(x2)))
            images[image, labels[image, gt], *region] += 130
    size_tensor = torch.tensor(sizes)
    keypoints = _make_keypoints(boxes, valid, seed)
    targets = Targets(boxes, labels, valid, Polygons(edges, offsets, max_edges=4), keypoints)
    return Batch(images, size_tensor, size_tensor, torch.arange(count), targets)


def _make_keypoints(boxes: Tensor, valid: Tensor, seed: int) -> Tensor:
    """Inside their boxes, a third of them hidden, a third not labelled."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(*boxes.shape[:2], NUM_KEYPOINTS, 2, generator=generator)
    points = boxes[:, :, None, :2] + share * (boxes[..., 2:] - boxes[..., :2])[:, :, None]
    visibility = torch.randint(3, (*share.shape[:3], 1), generator=generator)
    labelled = (visibility > 0) & valid[..., None, None]
    return torch.cat((points, visibility), dim=3) * labelled
