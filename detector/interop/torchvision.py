"""torchvision's detection models and ImageNet networks: names, recipes, both directions.

Source: ``torchvision.models.detection`` and ``torchvision.models`` of torchvision 0.13 and later,
whose names the published files of earlier versions are brought to first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor
from torchvision.models._api import WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN_ResNet50_FPN_Weights,
)

from detector.backbones.torchvision_weights import find_weights, published_file
from detector.interop.files import StateFile
from detector.interop.key_rules import (
    SAME,
    BackgroundFirst,
    KeyRule,
    KeyTable,
    ReorderedRows,
    Transform,
    UnknownKeys,
    UnusedBackground,
)
from detector.interop.recipes import Recipe, numbered_classes
from detector.interop.torchvision_trunks import (
    fpn_backbone,
    network_table,
    recognise_network,
    resnet_name,
)

# COCO's category ids are the numbers of torchvision's classes, the unused ones among them.
COCO = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
# Which weights a state is, in the meta data of a StateFile that came by name.
WEIGHTS = "torchvision_weights"
# Anchors of a cell in the order of ours (sizes outermost) by their number there (ratios outermost).
SIZES, RATIOS = 5, 3
ANCHORS = tuple(ratio * SIZES + size for size in range(SIZES) for ratio in range(RATIOS))
# Published with a batch norm whose denominator had no epsilon.
WITHOUT_EPS = (
    "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
    "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
    "KeypointRCNN_ResNet50_FPN_Weights.COCO_LEGACY",
    "KeypointRCNN_ResNet50_FPN_Weights.COCO_V1",
)
MAX_KEYPOINT_CONVS = 16
KEYPOINTS = "roi_heads.keypoint_predictor.kps_score_lowres.weight"
SCORES = "roi_heads.box_predictor.cls_score.weight"
BATCH_NORMS = ("model.backbone.norm=bn", "model.backbone.fpn_norm=bn")
MODELS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
)
# Names of before version 0.13.
_FORMER = (
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (
        r"backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)",
        r"backbone.fpn.\1_blocks.\2.0.\3",
    ),
    (
        r"roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)",
        lambda match: f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}",
    ),
)


def detection_table(mobilenet: bool) -> KeyTable:
    """Names of the detection models.

    Args:
        mobilenet: the trunk is MobileNetV3, whose blocks have no name of their own there and whose
            RPN has several sizes of anchors in each cell.
    """
    anchors: Transform = ReorderedRows(ANCHORS) if mobilenet else SAME
    deltas: Transform = ReorderedRows(ANCHORS, rows=4) if mobilenet else SAME
    features = "features." if mobilenet else ""
    box, mask, keypoint = (f"roi_heads.{branch}_" for branch in ("box", "mask", "keypoint"))
    return KeyTable(
        (
            KeyRule("backbone.body.{rest:any}", f"backbone.trunk.{features}{{rest:any}}"),
            KeyRule("backbone.fpn.inner_blocks.{rest:any}", "backbone.lateral.{rest:any}"),
            KeyRule("backbone.fpn.layer_blocks.{rest:any}", "backbone.output.{rest:any}"),
            KeyRule("backbone.fpn.extra_blocks.{rest:any}", "backbone.{rest:any}"),
            KeyRule("rpn.head.conv.{rest:any}", "rpn.head.convs.{rest:any}"),
            KeyRule("rpn.head.cls_logits.{kind}", "rpn.head.objectness.{kind}", anchors),
            KeyRule("rpn.head.bbox_pred.{kind}", "rpn.head.deltas.{kind}", deltas),
            KeyRule(f"{box}head.fc6.{{kind}}", "box_branch.head.fc1.{kind}"),
            KeyRule(f"{box}head.fc7.{{kind}}", "box_branch.head.fc2.{kind}"),
            # Version 2: four convolutions, what flattens (number 4), one fully connected layer.
            KeyRule(
                f"{box}head.{{conv:int}}.{{layer:int}}.{{kind}}",
                "box_branch.head.convs.{conv:int}.{layer:int}.{kind}",
            ),
            KeyRule(f"{box}head.5.{{kind}}", "box_branch.head.fcs.0.{kind}"),
            KeyRule(
                f"{box}predictor.cls_score.{{kind}}",
                "box_branch.predictor.scores.{kind}",
                BackgroundFirst(),
            ),
            KeyRule(
                f"{box}predictor.bbox_pred.{{kind}}",
                "box_branch.predictor.deltas.{kind}",
                UnusedBackground(4),
            ),
            KeyRule(f"{mask}head.{{rest:any}}", "mask_branch.head.convs.{rest:any}"),
            KeyRule(f"{mask}predictor.conv5_mask.{{kind}}", "mask_branch.head.deconv.{kind}"),
            KeyRule(
                f"{mask}predictor.mask_fcn_logits.{{kind}}",
                "mask_branch.head.logits.{kind}",
                UnusedBackground(),
            ),
            # Each convolution is followed by a ReLU with a number of its own.
            *(
                KeyRule(
                    f"{keypoint}head.{2 * conv}.{{kind}}",
                    f"keypoint_branch.head.convs.{conv}.0.{{kind}}",
                )
                for conv in range(MAX_KEYPOINT_CONVS)
            ),
            KeyRule(
                f"{keypoint}predictor.kps_score_lowres.{{kind}}",
                "keypoint_branch.head.deconv.{kind}",
            ),
        )
    )


def current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the names of today's torchvision, as a model there would load it."""
    result = {}
    for name, value in tensors.items():
        name = name.removeprefix("module.")  # of distributed training
        for former, now in _FORMER:
            if re.fullmatch(former, name):
                name = re.sub(former, now, name)
        result[name] = value
    return result


def recognise(state: StateFile) -> Recipe | None:
    """The recipe of a detection model or ImageNet network; ``None`` if it is neither.

    The weights' entry in torchvision's catalogue, found by the name they were asked for or by the
    name of their file, gives the names of the classes and what the tensors do not tell: the
    epsilon of the batch norms, and which of the two MobileNet recipes.
    """
    tensors = current_names(state.tensors)
    if not any(name.startswith("backbone.body.") for name in tensors):
        return recognise_network(tensors)
    model = _model_name(tensors, state)
    if model is None:
        return None
    weights = _catalogue_entry(state)
    overrides = list(_overrides(model))
    overrides += _norms(tensors)
    if weights is not None and str(weights) in WITHOUT_EPS:
        overrides.append("model.backbone.norm_eps=0.0")
    if KEYPOINTS in tensors:
        overrides.append(f"num_keypoints={tensors[KEYPOINTS].shape[1]}")
        weights = weights or KeypointRCNN_ResNet50_FPN_Weights.COCO_V1
    names, ids = _classes(len(tensors[SCORES]) - 1, weights)
    return Recipe(f"torchvision {model}", tuple(overrides), names, ids)


def to_ours(state: StateFile, recipe: Recipe) -> dict[str, Tensor]:
    """Our state dict.

    Raises:
        UnknownKeys: names that no torchvision model of this kind has.
    """
    return _table(recipe).to_ours(current_names(state.tensors))


def from_ours(model_state: Mapping[str, Tensor], config: DictConfig) -> dict[str, Tensor]:
    """torchvision's state dict of our model.

    Raises:
        ValueError: torchvision has no part that ours has.
    """
    mobilenet = any(name.startswith("backbone.trunk.features.") for name in model_state)
    try:
        return detection_table(mobilenet).to_theirs(model_state)
    except UnknownKeys as error:
        raise ValueError(
            f"torchvision has no such model: it has nothing for {', '.join(error.names[:3])}"
        ) from None


def their_name(name: str, recipe: Recipe) -> str | None:
    """torchvision's name of our ``name``."""
    return _table(recipe).their_name(name)


def known_recipes() -> Sequence[Recipe]:
    """The detection models with COCO's classes."""
    recipes = []
    for model in MODELS:
        overrides, classes = _overrides(model), _classes(90, COCO)
        if model.startswith("keypoint"):
            overrides, classes = (*overrides, "num_keypoints=17"), (("person",), (1,))
        recipes.append(Recipe(f"torchvision {model}", overrides, *classes))
    return recipes


def _table(recipe: Recipe) -> KeyTable:
    return network_table(recipe) if recipe.parts else detection_table("mobilenet" in recipe.name)


def _catalogue_entry(state: StateFile) -> WeightsEnum | None:
    if WEIGHTS in state.metadata:
        return find_weights(state.metadata[WEIGHTS])
    return published_file(state.path)


def _model_name(tensors: Mapping[str, Tensor], state: StateFile) -> str | None:
    """Such as ``maskrcnn_resnet50_fpn_v2``; ``None`` for one-stage and foreign models."""
    if SCORES not in tensors or not any(name.startswith("rpn.head.") for name in tensors):
        return None
    family = "fasterrcnn"
    for branch, name in (("mask", "maskrcnn"), ("keypoint", "keypointrcnn")):
        if any(key.startswith(f"roi_heads.{branch}_") for key in tensors):
            family = name
    if "backbone.body.16.0.weight" in tensors:
        where = f"{state.metadata.get(WEIGHTS, '')} {Path(state.path).name}".lower()
        return f"{family}_mobilenet_v3_large{'_320' if '320' in where else ''}_fpn"
    trunk = resnet_name(tensors, "backbone.body.")
    if trunk is None:
        return None
    version = "_v2" if "roi_heads.box_head.5.weight" in tensors else ""
    return f"{family}_{trunk}_fpn{version}"


def _overrides(model: str) -> tuple[str, ...]:
    family, _, rest = model.partition("_")
    kind = family.replace("rcnn", "_rcnn")
    if rest.startswith("mobilenet"):
        overrides = [f"model=torchvision_{kind}_{rest}", "backbone=mobilenet_v3_large_fpn"]
        if "320" in rest:
            overrides.append("augment=torchvision_320")
    else:
        trunk, _, version = rest.partition("_fpn")
        overrides = [f"model=torchvision_{kind}_r50_fpn{version}", *fpn_backbone(trunk)]
        if version:
            overrides += BATCH_NORMS
    # Images are padded to multiples of 32 and no further, as there.
    return (*overrides, "data.buckets=null")


def _norms(tensors: Mapping[str, Tensor]) -> list[str]:
    """Batch norms that learn count batches; frozen ones have statistics alone."""
    overrides = []
    for part, key in (("body", "norm"), ("fpn", "fpn_norm")):
        names = [name for name in tensors if name.startswith(f"backbone.{part}.")]
        if any(name.endswith("num_batches_tracked") for name in names):
            overrides.append(f"model.backbone.{key}=bn")
        elif any(name.endswith("running_mean") for name in names):
            overrides.append(f"model.backbone.{key}=frozen_bn")
    return overrides


def _classes(count: int, weights: WeightsEnum | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids of the foreground; 90 classes are COCO's, numbered by its ids with gaps."""
    names = (weights or COCO).meta["categories"][1:]
    if count != len(names):
        return numbered_classes(count)
    ids = tuple(range(1, count + 1))
    return tuple(
        f"unused {number}" if name == "N/A" else name
        for number, name in zip(ids, names, strict=True)
    ), ids
