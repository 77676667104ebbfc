"""Detectron2's models and the ImageNet networks they start from: recipes, both directions.

Files of its zoo (``.pkl``, ``.pth``), of its own trainings, and of Detectron before it, with the
names of Caffe2 blobs. Source: its configuration defaults (``detectron2/config/defaults.py``) and
the files of ``configs/``, version 0.6.

Names and shapes tell which model it is; :mod:`detector.interop.detectron2_networks` says the rest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import torch
from omegaconf import DictConfig
from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from detector.data.voc import VOC_CLASSES
from detector.interop.caffe2_names import is_caffe2
from detector.interop.detectron2_names import (
    BOX_HEAD,
    BOX_PREDICTOR,
    KEYPOINT_HEAD,
    MASK_HEAD,
    PIXEL_MEAN,
    PIXEL_STD,
    RPN,
    TRUNKS,
    Layout,
)
from detector.interop.detectron2_networks import (
    MEAN,
    NO_STD,
    Conventions,
    conventions_of,
    current_names,
)
from detector.interop.files import StateFile
from detector.interop.key_rules import KeyTable, UnknownKeys
from detector.interop.recipes import Recipe, numbered_classes
from detector.interop.torchvision_trunks import resnet_name

KINDS = ("fpn", "c4", "dc5")
MODELS = (
    *(f"{kind}_rcnn_{trunk}" for kind in ("faster", "mask") for trunk in KINDS),
    *("fast_rcnn_fpn", "cascade_rcnn_fpn", "cascade_mask_rcnn_fpn"),
    *("keypoint_rcnn_fpn", "mask_keypoint_rcnn_fpn"),
)


def recognise(state: StateFile) -> Recipe | None:
    """The recipe of a detector or ImageNet network; ``None`` if it is neither.

    Raises:
        ValueError: a detector of Detectron2's that is not here.
    """
    tensors = current_names(state)
    conventions = conventions_of(tensors, state)
    layout = Layout.of_theirs(tensors, conventions.bgr)
    if layout is None:
        return None
    renamed = {layout.table.our_name(name): value for name, value in tensors.items()}
    ours = {name: value for name, value in renamed.items() if name is not None}
    network = resnet_name(ours, "backbone.trunk.")
    if network is None:
        return None
    trunk = _trunk_overrides(network, ours, conventions)
    if not layout.trunk:
        overrides = ("model=faster_rcnn_fpn", "backbone=resnet50_fpn", *trunk)
        return Recipe(f"Detectron2 {network}", overrides, parts=("backbone.trunk.",))
    name, overrides = _detector(tensors, ours, layout, state.path)
    if is_caffe2(state.tensors):
        name, overrides = f"Detectron {name}", [*overrides, *_detectron_overrides(tensors)]
    else:
        name = f"Detectron2 {name}"
    names, ids = _classes(tensors)
    return Recipe(f"{name} {network}", (*overrides, *trunk), names, ids)


def to_ours(state: StateFile, recipe: Recipe) -> dict[str, Tensor]:
    """Our state dict.

    Raises:
        UnknownKeys: names that no model of ours has.
    """
    tensors = current_names(state)
    layout = Layout.of_theirs(tensors, conventions_of(tensors, state).bgr)
    if layout is None:
        raise UnknownKeys(list(tensors))
    return layout.table.to_ours(tensors)


def from_ours(model_state: Mapping[str, Tensor], config: DictConfig) -> dict[str, Tensor]:
    """Detectron2's state dict of our model, for pixels in its order, blue first.

    It has ``pixel_mean`` and ``pixel_std`` besides, which a model there takes from its
    configuration: it reports them as not used.

    Raises:
        ValueError: Detectron2 has no model of this architecture.
    """
    _check_writable(config)
    try:
        state = Layout.of_ours(model_state).table.to_theirs(model_state)
    except UnknownKeys as error:
        raise ValueError(
            f"Detectron2 has no such model: {len(error.names)} of its {len(model_state)} tensors "
            f"have no name there, such as {', '.join(error.names[:3])}"
        ) from error
    for name, values in ((PIXEL_MEAN, config.model.normalizer.mean), (PIXEL_STD, _std(config))):
        state[name] = torch.tensor([float(x) for x in reversed(values)]).view(-1, 1, 1)
    return state


def their_name(name: str, recipe: Recipe) -> str | None:
    """Detectron2's name of our ``name``."""
    return _table_of_recipe(recipe, name).their_name(name)


def known_recipes() -> Sequence[Recipe]:
    """The kinds of models in the zoo, with R-50 and COCO's classes."""
    names, ids = coco_classes()
    trunk = _trunk_overrides("resnet50", {}, Conventions(MEAN, NO_STD, stride_in_1x1=True))
    recipes = []
    for model, backbone in (
        *((f"{task}_rcnn_{kind}", kind) for task in ("faster", "mask") for kind in KINDS),
        ("cascade_mask_rcnn_fpn", "fpn"),
        ("rpn_fpn", "fpn"),
    ):
        overrides = (f"model={model}", f"backbone=resnet50_{backbone}", *trunk)
        recipes.append(Recipe(f"Detectron2 {model} resnet50", overrides, names, ids))
    person = ("model=keypoint_rcnn_fpn", "backbone=resnet50_fpn", *trunk, "num_keypoints=17")
    recipes.append(Recipe("Detectron2 keypoint_rcnn_fpn resnet50", person, ("person",), (1,)))
    return recipes


def coco_classes() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names and ids of COCO's 80 classes, whose 90 ids have gaps."""
    named = enumerate(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    kept = [(name, number) for number, name in named if number and name != "N/A"]
    return tuple(name for name, _ in kept), tuple(number for _, number in kept)


def _trunk_overrides(
    network: str, ours: Collection[str], conventions: Conventions
) -> tuple[str, ...]:
    norm = _norm(ours, "backbone.trunk.bn1.") or "frozen_bn"
    chosen = (f"model.backbone.name={network}", f"model.backbone.norm={norm}")
    return (*chosen, *conventions.overrides)


def _norm(ours: Collection[str], prefix: str) -> str | None:
    """Our name of the norm whose tensors begin with ``prefix``; ``None``: there is none."""
    if f"{prefix}weight" not in ours:
        return None
    if f"{prefix}running_mean" not in ours:
        return "gn"
    return "bn" if f"{prefix}num_batches_tracked" in ours else "frozen_bn"


def _detector(
    tensors: Mapping[str, Tensor], ours: Mapping[str, Tensor], layout: Layout, path: str
) -> tuple[str, list[str]]:
    """Our model's name and the overrides that make it."""

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in tensors)

    if layout.trunk == TRUNKS[0]:
        kind = "fpn"
    else:
        kind = "dc5" if has(f"{layout.trunk}res5.") else "c4"
    if not has(BOX_PREDICTOR):
        counts = {"fpn": (1000, 2000), "c4": (12000, 2000), "dc5": (12000, 2000)}[kind]
        overrides = [
            f"model=rpn_{'fpn' if kind == 'fpn' else 'c4'}",
            f"backbone=resnet50_{kind}",
            f"model.rpn.test_proposals.pre_nms_top_n={counts[0]}",
            f"model.rpn.test_proposals.post_nms_top_n={counts[1]}",
        ]
        return f"rpn_{kind}", [*overrides, *_head_overrides(tensors, ours)]
    cascade, mask, keypoint = has(f"{BOX_PREDICTOR}0."), has(MASK_HEAD), has(KEYPOINT_HEAD)
    base = f"{'mask_' * mask}{'keypoint_' * keypoint}" or ("" if cascade else "faster_")
    model = f"{'cascade_' * cascade}{base}rcnn_{kind}"
    if not has(RPN):
        model = f"fast_rcnn_{kind}" if model == f"faster_rcnn_{kind}" else f"{model} without an RPN"
    if layout.conv_box_head and model not in ("faster_rcnn_fpn", "mask_rcnn_fpn"):
        model = f"{model} with convolutions in the box head"
    if model not in MODELS:
        raise ValueError(
            f"{path} is Detectron2's {model}, which is not here; there are {', '.join(MODELS)}"
        )
    overrides = [f"model={model}{'_4conv1fc' * layout.conv_box_head}", f"backbone=resnet50_{kind}"]
    overrides += ["roi_op=roi_align_adaptive", *_head_overrides(tensors, ours)]
    if keypoint:
        overrides += ["model.box_branch.smooth_l1_beta=0.5"]
        overrides += ["model.rpn.train_proposals.post_nms_top_n=1500"]
    return model, overrides


def _head_overrides(tensors: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    """Numbers of layers, norms and kinds of outputs that differ from our models' own."""

    def count(pattern: str) -> int:
        return len({match[1] for name in ours if (match := re.match(pattern, name))})

    overrides = []
    for key, norm in (
        ("backbone.fpn_norm", _norm(ours, "backbone.lateral.0.1.")),
        ("box_branch.head.norm", _norm(ours, "box_branch.head.convs.0.1.")),
        ("mask_branch.head.norm", _norm(ours, "mask_branch.head.convs.0.1.")),
    ):
        overrides += [f"model.{key}={norm}"] if norm else []
    for key, found, own in (
        ("rpn.head.num_convs", count(r"rpn\.head\.convs\.(\d+)\.0\.weight"), 1),
        ("box_branch.head.num_convs", count(r"box_branch\.head\.convs\.(\d+)\.0\.weight"), 4),
        ("box_branch.head.num_fcs", count(r"box_branch\.head\.fcs\.(\d+)\.weight"), 1),
        ("mask_branch.head.num_convs", count(r"mask_branch\.head\.convs\.(\d+)\.0\.weight"), 4),
    ):
        overrides += [f"model.{key}={found}"] if found not in (0, own) else []
    deltas = tensors.get(f"{BOX_PREDICTOR}bbox_pred.weight")
    if deltas is not None and len(deltas) == 4 and _num_classes(tensors) > 1:
        overrides.append("model.box_branch.predictor.class_agnostic=true")
    masks = tensors.get(f"{MASK_HEAD}predictor.weight")
    if masks is not None and len(masks) == 1 and _num_classes(tensors) > 1:
        overrides.append("model.mask_branch.head.masks=class_agnostic")
    keypoints = tensors.get(f"{KEYPOINT_HEAD}score_lowres.weight")
    if keypoints is not None:
        overrides.append(f"num_keypoints={keypoints.shape[1]}")
    return overrides


def _detectron_overrides(tensors: Collection[str]) -> list[str]:
    """Anchors and RoIAlign of the code before Detectron2."""
    overrides = ["model.rpn.anchors.legacy=true"] if f"{RPN}conv.weight" in tensors else []
    if any(name.startswith(BOX_PREDICTOR) for name in tensors):
        # Sampling adaptively on C4 and 2 x 2 times on a pyramid.
        samples = 2 if f"{BOX_HEAD}fc1.weight" in tensors else 0
        overrides += ["roi_op.aligned=false", f"roi_op.sampling_ratio={samples}"]
    return overrides


def _num_classes(tensors: Mapping[str, Tensor]) -> int:
    scores = tensors.get(f"{BOX_PREDICTOR}cls_score.bias")
    scores = tensors.get(f"{BOX_PREDICTOR}0.cls_score.bias") if scores is None else scores
    return 80 if scores is None else len(scores) - 1


def _classes(tensors: Mapping[str, Tensor]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids by the number of classes; an RPN alone is taken to be COCO's."""
    count = _num_classes(tensors)
    if count == 80:
        return coco_classes()
    if count == len(VOC_CLASSES):
        return VOC_CLASSES, tuple(range(1, count + 1))
    if count == 1 and any(name.startswith(KEYPOINT_HEAD) for name in tensors):
        return ("person",), (1,)
    return numbered_classes(count)


def _table_of_recipe(recipe: Recipe, name: str) -> KeyTable:
    if recipe.parts:
        return Layout("").table
    given = dict(override.split("=", 1) for override in recipe.overrides if "=" in override)
    has_fpn = given.get("backbone", "").endswith("_fpn")
    return Layout(
        TRUNKS[0] if has_fpn else TRUNKS[1],
        int(given.get("model.rpn.head.num_convs", 1)) > 1,
        given.get("model", "").endswith("_4conv1fc"),
    ).table


def _std(config: DictConfig) -> Sequence[float]:
    return config.model.normalizer.std


def _check_writable(config: DictConfig) -> None:
    """What has the same names there, but another meaning.

    Raises:
        ValueError: the first thing that differs.
    """
    model = config.model
    backbone, head = model.get("backbone", {}), model.get("rpn", {}).get("head", {})
    masks = model.get("mask_branch", {}).get("head", {}).get("masks", "class_specific")
    for key, value, allowed in (
        ("model.backbone.levels", list(backbone.get("levels", [2, 3, 4, 5])), [2, 3, 4, 5]),
        ("model.backbone.extra", backbone.get("extra", "pool"), "pool"),
        ("model.rpn.head.objectness", head.get("objectness", "sigmoid"), "sigmoid"),
        ("model.mask_branch.head.masks", "softmax" if masks == "softmax" else "", ""),
    ):
        if value != allowed:
            raise ValueError(f"Detectron2 has no model with {key}={value}")
