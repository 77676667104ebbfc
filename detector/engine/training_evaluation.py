"""What a training is measured by while it lasts, and what of it decides."""

from __future__ import annotations

from typing import NamedTuple

from omegaconf import DictConfig
from torch import nn

from detector.data.dataset import DetectionDataset
from detector.engine import assembly
from detector.engine.objective import EarlyStopping, Objective, choose_objective
from detector.engine.runtime import Runtime
from detector.engine.validation_loss import ValidationLoss
from detector.evaluation.coco import CocoEvaluator


class TrainingEvaluation(NamedTuple):
    """The parts of the evaluations of a training.

    Attributes:
        evaluator: of detections.
        losses: on the validation set, where they are wanted.
        objective: what chooses ``best.pt``.
        early: early stopping, where it is wanted.
    """

    evaluator: CocoEvaluator
    losses: ValidationLoss | None
    objective: Objective
    early: EarlyStopping | None


def build_evaluation(
    cfg: DictConfig, val_set: DetectionDataset, model: nn.Module, runtime: Runtime
) -> TrainingEvaluation:
    """What ``evaluation``, ``checkpoint.metric`` and ``training.early_stopping`` ask for.

    Raises:
        ValueError: a metric that is not measured, or a loss of what the data does not have.
    """
    evaluator = assembly.build_evaluator(cfg.evaluation, val_set, model)
    losses = ValidationLoss(runtime, cfg.seed) if cfg.evaluation.loss else None
    if losses:
        assembly.check_validation_loss(model, val_set)
    measured = (
        losses is not None,
        model.has_masks and val_set.index.has_masks,
        assembly.plain(cfg.evaluation.max_detections),
        assembly.choose_metric(cfg.evaluation, val_set, model),
        model.has_keypoints and val_set.index.has_keypoints,
    )
    objective = choose_objective("checkpoint.metric", cfg.checkpoint.metric, *measured)
    early = EarlyStopping.of(cfg.training.early_stopping, *measured)
    return TrainingEvaluation(evaluator, losses, objective, early)
