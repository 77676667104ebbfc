"""What others publish of a model's size, beside ours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torchvision
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detector.engine.parts import build_without_memory, measure_parts, multiply_adds
from detector.rcnn import RCNN
from detector.roi_heads.stage import RoIStage
from detector.roi_heads.vgg import VGGHead

# torchvision's weights by detector, trunk and box head, on FPN.
_DETECTORS = {
    ("FasterRCNN", "resnet50", "TwoFCHead"): "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
    ("MaskRCNN", "resnet50", "TwoFCHead"): "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
    ("KeypointRCNN", "resnet50", "TwoFCHead"): "KeypointRCNN_ResNet50_FPN_Weights.COCO_V1",
    ("FasterRCNN", "resnet50", "ConvFCHead"): "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1",
    ("MaskRCNN", "resnet50", "ConvFCHead"): "MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1",
    ("FasterRCNN", "mobilenet_v3_large", "TwoFCHead"): (
        "FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1"
    ),
}
# Its multiply-adds are of one image of noise, resized to this side.
_SIDE = 800
# What the models take for objects in the noise, of which masks or keypoints are computed; others
# find none.
_FOUND = {
    "KeypointRCNN_ResNet50_FPN_Weights.COCO_V1": 1,
    "MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1": 100,
}


@dataclass(frozen=True)
class Comparison:
    """A published number beside ours.

    Attributes:
        what: is counted, and under which conditions.
        source: who publishes it.
        published: their number.
        ours: the same of the configuration, under those conditions.
    """

    what: str
    source: str
    published: int
    ours: int


def compare_with_published(cfg: DictConfig) -> list[Comparison]:
    """What is published of the configuration's detector and of its trunk, read from torchvision.

    A detector that differs in some number, such as channels, is compared with the one that it
    derives from.

    Args:
        cfg: with the group ``model``.
    """
    return [*_compare_detector(cfg), *_compare_trunk(cfg)]


def _compare_detector(cfg: DictConfig) -> list[Comparison]:
    name = _DETECTORS.get(_kind(cfg.model) or ("", "", ""))
    if name is None:
        return []
    meta = torchvision.models.get_weight(name).meta
    num_classes = len(meta["categories"]) - 1
    model = build_without_memory(cfg, num_classes)
    predictor = model.box_branch.predictor
    # torchvision predicts a box, and a mask, for the background too.
    background = 4 * (predictor.in_channels + 1)
    if model.has_masks:
        background += model.mask_branch.head.logits.in_channels + 1
    parameters = sum(parameter.numel() for parameter in model.parameters()) + background
    classes = f"with {num_classes} classes and background, its outputs too"
    source = f"torchvision {name}"
    rows = [Comparison(f"parameters {classes}", source, meta["num_params"], parameters)]
    # MobileNet's counts only the proposals that some threshold leaves.
    if "_ops" in meta and cfg.model.backbone.get("name") is not None:
        parts = measure_parts(model, 1, _SIDE, _SIDE)
        branch = [p for p in parts if p.path.startswith(("mask_branch", "keypoint_branch"))]
        [scored] = [part.shapes[0][0] for part in parts if part.path == "box_branch.predictor"]
        ours = multiply_adds([part for part in parts if part not in branch])
        ours += scored * 4 * predictor.in_channels
        what = f"multiply-adds at {_SIDE} x {_SIDE} {classes}"
        if branch:
            found = _FOUND.get(name, 0)
            each = multiply_adds(branch) // model.box_branch.detections.max_detections
            if model.has_masks:
                each += branch[-1].shapes[0][-1] ** 2 * model.mask_branch.head.logits.in_channels
            ours += found * each
            what += f", {'masks' if model.has_masks else 'keypoints'} of {found} objects"
        rows.append(Comparison(what, source, round(meta["_ops"] * 1e9), ours))
    return rows


def _kind(model: DictConfig) -> tuple[str, str, str] | None:
    """The key in :data:`_DETECTORS`, if it can be one: their pyramids, with the plain heads."""
    fixed = {"box_branch._target_": "BoxBranch"}
    if "mask_branch" in model:
        fixed["mask_branch.head._target_"] = "FCNMaskHead"
    if any(_target(model, key) != kind for key, kind in fixed.items()):
        return None
    trunks = {
        "resnet_fpn": model.backbone.get("name"),
        "mobilenet_v3_large_fpn": "mobilenet_v3_large",
    }
    trunk = trunks.get(_target(model, "backbone._target_"))
    head = _target(model, "box_branch.head._target_")
    # The second version has batch norms and two convolutions in the RPN.
    first = head == "ConvFCHead" and model.rpn.head.num_convs == 1
    return None if trunk is None or first else (_target(model, "_target_"), trunk, head)


def _target(model: DictConfig, key: str) -> str:
    return (OmegaConf.select(model, key) or "").rpartition(".")[2]


def _compare_trunk(cfg: DictConfig) -> list[Comparison]:
    """ResNets with their last stage, wherever it is, and VGG16 with its hidden layers."""
    if not cfg.model.backbone._target_.startswith("detector."):  # a trunk of the user's own
        return []
    target = cfg.model.backbone._target_.rpartition(".")[2]
    model = build_without_memory(cfg, num_classes=1)
    # R-CNN's backbone is the image; the trunk comes after its pooler.
    warped = model.box_branch.pooler if isinstance(model, RCNN) else None
    parts = [warped.trunk.trunk if warped else model.backbone.trunk]
    parts += [module for module in model.modules() if isinstance(module, RoIStage | VGGHead)]
    if target.startswith("resnet"):
        name = cfg.model.backbone.name
        complete = any(hasattr(part, "layer4") for part in parts)
    else:
        name = target
        complete = target == "vgg16" and isinstance(parts[-1], VGGHead)
    if not complete:
        return []
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    with torch.device("meta"):
        network = torchvision.models.get_model(name)
    # VGG's classifier ends with the layer that ResNet calls fc.
    classifier = network.fc if hasattr(network, "fc") else network.classifier[-1]
    published = weights.meta["num_params"] - sum(p.numel() for p in classifier.parameters())
    ours = sum(_numbers(part) for part in parts)
    return [
        Comparison(
            "parameters of the trunk without classifier, those of frozen norms too",
            f"torchvision {weights}",
            published,
            ours,
        )
    ]


def _numbers(module: nn.Module) -> int:
    """Parameters, and the scale and shift of frozen batch norms, which are buffers."""
    norms = [one for one in module.modules() if isinstance(one, FrozenBatchNorm2d)]
    affine = sum(norm.weight.numel() + norm.bias.numel() for norm in norms)
    return affine + sum(parameter.numel() for parameter in module.parameters())
