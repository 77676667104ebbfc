"""From configuration to datasets and model, with the checks that need both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from detector.data.index import ONE_CATEGORY
from detector.data.problems import describe_other_classes
from detector.evaluation.coco import CocoEvaluator
from detector.evaluation.lvis import LVISEvaluator
from detector.evaluation.voc import VOCEvaluator

if TYPE_CHECKING:
    from detector.data.dataset import DetectionDataset


def plain(value: Any) -> Any:
    """Lists and dicts of Python instead of OmegaConf's; anything else as it is."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def build(node: DictConfig | ListConfig | None) -> Any:
    """Calls the ``_target_`` nodes of a configuration; lists and dicts become Python's.

    Raises:
        ValueError, OSError: what a constructor refused, without Hydra's wrapping.
        InstantiationException: what has gone wrong otherwise, naming the key.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, ValueError | OSError):
            raise cause from None
        raise


def build_dataset(data: DictConfig, split: str) -> DetectionDataset:
    """The ``split`` (``"train"`` or ``"val"``) of the ``data`` group.

    ``data.prepare``, where given, is called first; it makes a dataset that can be generated.
    """
    if data.get("prepare") is not None:
        build(data.prepare)
    return build(data[split])


def set_num_classes(cfg: DictConfig, class_names: list[str], dataset: str | Path) -> None:
    """Fills ``num_classes`` from the data.

    Raises:
        ValueError: it is set to another number.
    """
    if cfg.num_classes is not None and cfg.num_classes != len(class_names):
        raise ValueError(
            f"num_classes={cfg.num_classes}, but {dataset} has {len(class_names)} categories; "
            "leave num_classes out, it is taken from the data"
        )
    OmegaConf.update(cfg, "num_classes", len(class_names))


def set_num_keypoints(cfg: DictConfig, num_keypoints: int, dataset: str | Path) -> None:
    """Fills ``num_keypoints`` from data that has keypoints.

    Raises:
        ValueError: it is set to another number, or the model has a keypoint branch and the data no
            keypoints.
    """
    if not num_keypoints:
        if "keypoint_branch" in cfg.model:
            raise ValueError(
                f"{dataset}: its categories name no keypoints, which Keypoint R-CNN needs. Give "
                "the annotation file that has them (COCO's are person_keypoints_*.json), or train "
                "a Faster R-CNN, model=faster_rcnn_fpn"
            )
        return
    if cfg.num_keypoints is not None and cfg.num_keypoints != num_keypoints:
        raise ValueError(
            f"num_keypoints={cfg.num_keypoints}, but {dataset} has {num_keypoints}; leave "
            "num_keypoints out, it is taken from the data"
        )
    OmegaConf.update(cfg, "num_keypoints", num_keypoints)


def classes_of(
    model: nn.Module, class_names: list[str], category_ids: list[int]
) -> tuple[list[str], list[int]]:
    """Names and ids of the labels that a model gives, from those of its data."""
    if model.has_classes:
        return class_names, category_ids
    category_id, name = ONE_CATEGORY
    return [name], [category_id]


def check_same_classes(train_set: DetectionDataset, val_set: DetectionDataset) -> None:
    """Labels must mean the same in both splits.

    Raises:
        ValueError: the categories differ.
    """
    train, val = train_set.index, val_set.index
    if list(train.category_names) != list(val.category_names):
        different = sorted(set(train.category_names) ^ set(val.category_names))
        raise ValueError(
            f"{train.source_file} has {train.num_classes} categories and {val.source_file} "
            f"{val.num_classes}; they differ in {different[:5] or 'their order'}. Give both files "
            "the same 'categories'"
        )


def check_masks(model: nn.Module, train_set: DetectionDataset) -> None:
    """A mask branch needs masks to learn from.

    Raises:
        ValueError: an annotation of the training set has only a box.
    """
    if model.has_masks and not train_set.index.has_masks:
        raise ValueError(
            f"{train_set.index.source_file}: annotation {train_set.index.first_without_mask()} has "
            "no segmentation, which Mask R-CNN needs. Train a Faster R-CNN, "
            "model=faster_rcnn_fpn"
        )


def check_keypoints(
    model: nn.Module, train_set: DetectionDataset, val_set: DetectionDataset
) -> None:
    """A keypoint branch needs keypoints to learn from, the same in both splits.

    Raises:
        ValueError: the training set has another number of them than the branch finds, or others
            than the validation set.
    """
    if not model.has_keypoints:
        return
    train, val = train_set.index, val_set.index
    if model.num_keypoints != train.num_keypoints:
        raise ValueError(
            f"the keypoint branch finds {model.num_keypoints} keypoints, but {train.source_file} "
            f"has {train.num_keypoints}; leave num_keypoints out, it is taken from the data"
        )
    if val.has_keypoints and val.keypoint_names != train.keypoint_names:
        different = sorted(set(train.keypoint_names) ^ set(val.keypoint_names))
        raise ValueError(
            f"{train.source_file} and {val.source_file} have different keypoints, they differ in "
            f"{different[:5] or 'their order'}; give both files the same"
        )


def check_proposals(model: nn.Module, *datasets: DetectionDataset) -> None:
    """Fast R-CNN needs a file of proposals; no other model has a use for one.

    Raises:
        ValueError: a dataset has none, or has one without effect.
    """
    for dataset in datasets:
        if model.needs_proposals and not dataset.has_proposals:
            raise ValueError(
                f"{type(model).__name__} needs proposals for the images of "
                f"{dataset.index.source_file}: give data.train.proposals=FILE.npz and "
                "data.val.proposals=FILE.npz, which tools/propose.py writes"
            )
        if dataset.has_proposals and not model.needs_proposals:
            raise ValueError(
                f"data.train.proposals and data.val.proposals are for Fast R-CNN (such as "
                f"model=fast_rcnn_fpn); {type(model).__name__} proposes itself, leave them out"
            )


def check_validation_loss(model: nn.Module, val_set: DetectionDataset) -> None:
    """A validation loss needs the ground truth that training needs.

    Raises:
        ValueError: the validation set lacks some.
    """
    for needed, there, what in (
        (model.has_masks, val_set.index.has_masks, "segmentations"),
        (model.has_keypoints, val_set.index.has_keypoints, "keypoints"),
    ):
        if needed and not there:
            raise ValueError(
                f"evaluation.loss=true, but {val_set.index.source_file} has no {what}, which "
                f"{type(model).__name__} learns from; set evaluation.loss=false"
            )


def choose_metric(
    evaluation: DictConfig, dataset: DetectionDataset, model: nn.Module | None = None
) -> str:
    """``"coco"``, ``"lvis"`` or ``"voc"``: ``evaluation.metric``, else what goes with the data.

    Proposals, of a model without classes, are measured by average recall, which is COCO's.

    Raises:
        ValueError: another name, COCO's numbers of data that is not in COCO format, or LVIS's of
            data without what was looked for in which image.
    """
    proposes = model is not None and not model.has_classes
    metric = evaluation.get("metric") or ("coco" if proposes else dataset.metric)
    if metric not in ("coco", "lvis", "voc"):
        raise ValueError(f"evaluation.metric={metric}; it must be coco, lvis, voc or null")
    if metric == "coco" and dataset.metric == "voc" and not proposes:
        raise ValueError(
            f"evaluation.metric=coco, but {dataset.index.source_file} is not COCO JSON; leave it "
            "out: voc.AP is the mean AP at IoU .50:.95"
        )
    return metric


def build_evaluator(
    evaluation: DictConfig, dataset: DetectionDataset, model: nn.Module
) -> CocoEvaluator | VOCEvaluator:
    """The evaluator of the ``evaluation`` group for a dataset.

    Args:
        evaluation: the group.
        dataset: what to evaluate on.
        model: tells whether it finds masks and keypoints and tells classes apart; if not, all
            objects are of one class.

    Raises:
        ValueError: the dataset has another number of keypoints than the model, or keypoints that
            cannot be evaluated.
    """
    index = dataset.index if model.has_classes else dataset.index.as_one_class()
    if model.has_keypoints and index.has_keypoints and index.num_keypoints != model.num_keypoints:
        raise ValueError(
            f"the model finds {model.num_keypoints} keypoints of an object, but "
            f"{index.source_file} has {index.num_keypoints}; evaluate on data with the same"
        )
    metric = choose_metric(evaluation, dataset, model)
    # Configurations of older checkpoints do not have the rest.
    analysed = model.has_classes and evaluation.get("errors", True)
    threshold = evaluation.get("score_threshold", 0.5) if analysed else None
    if metric == "voc":
        return VOCEvaluator(index, threshold)
    backend = evaluation.get("backend") or "faster_coco_eval"
    found = {"box": True, "mask": model.has_masks}
    if metric != "lvis":
        found["boundary"] = model.has_masks and evaluation.get("boundary", False)
        found["keypoint"] = model.has_keypoints
    iou_types = [kind for kind, is_found in found.items() if is_found]
    if metric == "lvis":
        return LVISEvaluator(index, iou_types, backend, threshold)
    limits = plain(evaluation.max_detections)
    return CocoEvaluator(index, iou_types, limits, backend, threshold)


def number_of_classes(count: int) -> str:
    """``"1 class"``, ``"5 classes"``."""
    return f"{count} {'class' if count == 1 else 'classes'}"


def describe_model(model: nn.Module) -> str:
    """``"MaskRCNN, 5 classes, 21.3 million parameters, 21.2 trained"``."""
    count = sum(p.numel() for p in model.parameters()) / 1e6
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    classes = number_of_classes(model.num_classes) if model.has_classes else "any class"
    return (
        f"{type(model).__name__}, {classes}, {count:.1f} million parameters, {trained:.1f} trained"
    )


def describe_dataset(dataset: DetectionDataset) -> str:
    """``"data/shapes/annotations/instances_train.json: 1000 images, 3456 objects"``."""
    index = dataset.index
    crowd = int(index.crowd.sum())
    kind = "difficult" if dataset.metric == "voc" else "crowd regions"
    crowds = f", {crowd} {kind}" if crowd else ""
    damaged = sum(problem.other_class is None for problem in index.skipped)
    skipped = f", {damaged} damaged records skipped" if damaged else ""
    if others := describe_other_classes(index.skipped):
        skipped += f", left out {others}"
    objects = index.num_annotations - crowd
    return f"{index.source_file}: {len(index)} images, {objects} objects{crowds}{skipped}"


def config_changes(former: DictConfig, now: DictConfig) -> Iterator[str]:
    """``"optimizer.lr 0.02 -> 0.01"`` for every value that differs and matters for training."""
    free = ("run_dir", "resume", "checkpoint.", "logging.", "evaluation.", "distributed.")
    free += ("profiler.", "training.memory_limit")
    old, new = (dict(_leaves(plain(config))) for config in (former, now))
    for key in sorted(old.keys() | new.keys()):
        if key == "model.backbone.weights" or key.startswith("init."):
            continue  # where it began is no matter when it goes on
        if old.get(key) != new.get(key) and not key.startswith(free):
            yield f"{key} {old.get(key)} -> {new.get(key)}"


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | DictConfig) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | ListConfig) and value:
        for number, child in enumerate(value):
            yield from _leaves(child, f"{prefix}.{number}")
    else:
        yield prefix, value
