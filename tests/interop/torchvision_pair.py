"""torchvision's models with random weights that behave like trained ones, and ours of the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from detector.data.collate import Collate
from detector.data.dataset import DetectionDataset
from detector.data.transforms import ResizeShortestEdge
from detector.engine.assembly import build
from detector.engine.checkpoint import checkpoint_config, load_weights
from detector.interop.convert import load_any
from detector.structures import Batch

# Proposals that training gives its heads, on both sides; and enough samples to take all.
TRAIN_PROPOSALS = 12
OURS = (
    f"model.rpn.train_proposals.post_nms_top_n={TRAIN_PROPOSALS}",
    "model.rpn.num_samples=20000",
    "model.roi_sampler.num_samples=600",
    "model.backbone.freeze_at=0",
)
THEIRS = {
    "rpn_post_nms_top_n_train": TRAIN_PROPOSALS,
    "rpn_batch_size_per_image": 10**6,
    "box_batch_size_per_image": 10**6,
    "_skip_resize": True,
}


@dataclass(frozen=True)
class Case:
    """A model of torchvision's, and what is particular about its weights.

    Attributes:
        builder: name of the function in ``torchvision.models.detection``.
        num_classes: K.
        frozen: batch norms of the trunk are frozen, as where its ImageNet weights are loaded.
        eps: of the frozen batch norms.
        detections: D on both sides, few where each takes a mask head.
        longest: pixels of the images' longer side, an odd multiple of 32, so that the coarsest
            level has no whole stride.
    """

    builder: str
    num_classes: int
    frozen: bool = False
    eps: float = 1e-5
    detections: int = 100
    longest: int = 160


@dataclass(frozen=True)
class Pair:
    case: Case
    theirs: nn.Module
    ours: nn.Module
    content: dict
    batch: Batch
    images: ImageList


def make_reference(case: Case) -> nn.Module:
    """torchvision's model, untrained and without frozen layers."""
    settings = {**THEIRS, "box_detections_per_img": case.detections}
    classes = case.num_classes + 1
    if not case.frozen:
        build_model = getattr(detection, case.builder)
        return build_model(weights=None, weights_backbone=None, num_classes=classes, **settings)
    # The builders freeze norms only together with weights that they fetch.
    if "mobilenet" in case.builder:
        trunk = mobilenet_backbone(
            backbone_name="mobilenet_v3_large", weights=None, fpn=True, trainable_layers=6
        )
        reference = getattr(detection, case.builder)(
            weights=None, weights_backbone=None, num_classes=classes, **settings
        )
        reference.backbone = trunk
        return reference
    trunk = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
    family = {"fasterrcnn": detection.FasterRCNN, "maskrcnn": detection.MaskRCNN}
    reference = family[case.builder.partition("_")[0]](trunk, classes, **settings)
    overwrite_eps(reference, case.eps)
    return reference


# Standard deviations that outputs are given, of the size that trained models have.
SPREAD = {
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.35,
    "roi_heads.box_predictor.cls_score": 5.0,
    "roi_heads.box_predictor.bbox_pred": 0.8,
    "roi_heads.mask_predictor.mask_fcn_logits": 2.0,
    "roi_heads.keypoint_predictor.kps_score_lowres": 2.0,
}
# From where to where the mean of each output is.
BIAS = {"rpn.head.cls_logits": (-1.5, 0.0), "roi_heads.box_predictor.cls_score": (0.0, 2.0)}


@torch.no_grad()
def randomise(model: nn.Module, images: ImageList, seed: int) -> None:
    """Weights, batch-norm statistics and head biases of a model that detects a lot.

    Statistics are near those of the inputs, so that activations neither die nor explode, but far
    from 0 and 1; the outputs have the spread of :data:`SPREAD`, and some classes a high bias.
    """
    generator = torch.Generator().manual_seed(seed)

    def between(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    def fit_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        pixels = inputs[0].movedim(1, 0).flatten(1)
        mean, deviation = pixels.mean(1), pixels.std(1) + 1e-3
        norm.running_mean.copy_(mean + deviation * between(mean, -0.3, 0.3))
        norm.running_var.copy_(deviation.square() * between(mean, 0.6, 1.5))

    def spread(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        name = names.get(layer)
        if name is None:
            return None  # of a coarser level
        del names[layer]
        shape = (1, -1, *(1,) * (output.dim() - 2))
        raw = output - layer.bias.view(shape)
        factor = SPREAD[name] / raw.std()
        mean = factor * raw.transpose(0, 1).flatten(1).mean(1)
        layer.weight.mul_(factor)
        layer.bias.copy_(between(mean, *BIAS.get(name, (-0.1, 0.1))) - mean)
        return factor * raw + layer.bias.view(shape)

    modules = dict(model.named_modules())
    names = {modules[name]: name for name in SPREAD if name in modules}
    hooks = [layer.register_forward_hook(spread) for layer in names]
    for module in modules.values():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.weight.copy_(between(module.weight, 0.7, 1.3))
            module.bias.copy_(between(module.bias, -0.2, 0.2))
            hooks.append(module.register_forward_pre_hook(fit_norm))
    for module in modules.values():
        if isinstance(module, Bottleneck):
            module.bn3.weight.mul_(0.3)
    model.eval()
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features)
    model.roi_heads(features, [boxes[:40] for boxes in proposals], images.image_sizes)
    assert not names
    for hook in hooks:
        hook.remove()


def make_batch(root: Path, num_classes: int, longest: int) -> Batch:
    """A landscape and a portrait image of COCO with their objects, labels folded into K."""
    dataset = DetectionDataset(
        root / "annotations" / "instances_val2017.json",
        root / "val2017",
        augment=[ResizeShortestEdge(longest, longest)],
    )
    index = dataset.index
    some = (np.diff(index.annotation_offsets) >= 3) & (np.diff(index.annotation_offsets) <= 5)
    chosen = [
        np.flatnonzero(some & shape)[0]
        for shape in (index.widths > index.heights, index.widths < index.heights)
    ]
    batch = Collate()([dataset[int(number)] for number in chosen])
    targets = batch.targets
    targets = replace(
        targets,
        labels=targets.labels % num_classes,
        keypoints=random_keypoints(targets.boxes) * targets.valid[..., None, None],
    )
    return replace(batch, targets=targets)


def random_keypoints(boxes: Tensor) -> Tensor:
    """Keypoints ``(B, G, 17, 3)`` in and a little beside boxes ``(B, G, 4)``, some not labelled."""
    generator = torch.Generator().manual_seed(2)
    place = torch.rand(*boxes.shape[:2], 17, 2, generator=generator) * 1.2 - 0.1
    points = boxes[..., None, :2] + place * (boxes[..., 2:] - boxes[..., :2])[:, :, None]
    visibility = torch.randint(0, 3, (*boxes.shape[:2], 17, 1), generator=generator)
    return torch.cat((points, visibility), -1) * (visibility > 0)


def make_pair(case: Case, root: Path, folder: Path) -> Pair:
    """Their model with random weights, and ours from the file that they are saved to."""
    torch.manual_seed(0)
    theirs = make_reference(case)
    batch = make_batch(root, case.num_classes, case.longest)
    images = their_images(theirs, batch)
    randomise(theirs, images, seed=1)
    path = folder / f"{case.builder}.pth"
    torch.save(theirs.state_dict(), path)
    overrides = [*OURS, f"model.box_branch.detections.max_detections={case.detections}"]
    if case.eps != 1e-5:
        overrides.append(f"model.backbone.norm_eps={case.eps}")
    content = load_any(path, overrides)
    ours = build(checkpoint_config(content).model)
    load_weights(ours, content["model"], path)
    return Pair(case, theirs, ours, content, batch, images)


def their_images(theirs: nn.Module, batch: Batch) -> ImageList:
    """The batch as torchvision normalises and pads it."""
    pixels = [
        image[:, :height, :width] / 255
        for image, (height, width) in zip(batch.images, batch.image_sizes.tolist(), strict=True)
    ]
    return theirs.transform(pixels)[0]
