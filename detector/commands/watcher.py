"""The detector that a training draws its pictures with."""

from __future__ import annotations

from omegaconf import DictConfig
from torch import nn

from detector.data.index import AnnotationIndex
from detector.engine import assembly
from detector.engine.runtime import Runtime
from detector.predictor import Detector


def build_watcher(
    model: nn.Module, cfg: DictConfig, runtime: Runtime, index: AnnotationIndex
) -> Detector:
    """A model under training as its users will have it.

    Args:
        model: is not copied: the detector finds what it has learned so far.
        cfg: of the training.
        runtime: how to run it.
        index: of the training set, for the names of classes and keypoints.
    """
    ids = index.category_ids.tolist()
    class_names, category_ids = assembly.classes_of(model, index.category_names, ids)
    return Detector(
        model,
        class_names=class_names,
        category_ids=category_ids,
        transforms=assembly.build(cfg.augment.val),
        runtime=runtime,
        buckets=assembly.plain(cfg.data.buckets),
        keypoint_names=index.keypoint_names if model.has_keypoints else (),
        skeleton=index.skeleton if model.has_keypoints else (),
    )
