"""The pictures that a training draws after its evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from detector.data.index import AnnotationIndex
from detector.engine import assembly
from detector.engine.pictures import Comparisons
from detector.engine.runtime import Runtime
from detector.predictor import Detector


class TrainingPictures:
    """A model under training on images of the validation set, as its users will have it.

    Args:
        model: is not copied: the pictures show what it has learned so far. One alone that needs
            proposals has none to draw.
        cfg: of the training.
        runtime: how to run the model.
        train: of the training set, for the names of classes and keypoints.
        val: of the validation set.

    Attributes:
        watcher: the detector that finds what is drawn.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: DictConfig,
        runtime: Runtime,
        train: AnnotationIndex,
        val: AnnotationIndex,
    ) -> None:
        class_names, category_ids = assembly.classes_of(
            model, train.category_names, train.category_ids.tolist()
        )
        self.watcher = Detector(
            model,
            class_names=class_names,
            category_ids=category_ids,
            transforms=assembly.build(cfg.augment.val),
            runtime=runtime,
            buckets=assembly.plain(cfg.data.buckets),
            keypoint_names=train.keypoint_names if model.has_keypoints else (),
            skeleton=train.skeleton if model.has_keypoints else (),
        )
        count = 0 if model.needs_proposals else cfg.logging.pictures
        self._comparisons = Comparisons(val, count, cfg.logging.score_threshold)

    def draw(self, step: int, folder: Path, log: Any, say: Callable[[str], None]) -> None:
        """Writes them into the folder and the metric log; that there is no room is said only."""
        try:
            for name, picture in self._comparisons.draw(self.watcher, folder):
                log.picture(step, name, picture)
        except OSError as error:
            say(f"warning: the pictures of step {step} could not be written ({error})")
