"""Everything of a training that changes from step to step, as checkpoints hold it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler

from detector.data.loader import TrainLoader
from detector.engine.checkpoint import FORMAT, load_weights
from detector.engine.objective import EarlyStopping, Objective
from detector.engine.optimizer import restore_optimizer
from detector.engine.weight_average import WeightAverage


@dataclass
class TrainingState:
    """The parts that learn or count, and what has been found so far.

    Attributes:
        model, optimizer, loader: of the training.
        objective: what chooses ``best.pt``.
        average: of the weights, where one is kept; it is what gets evaluated and used.
        scaler: the loss scale of fp16.
        early: early stopping.
        step: finished steps.
        evaluation: ``{"step": ..., "metrics": ...}`` of the last one.
        best: the objective's best value.
        seconds: of training before a resume.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: TrainLoader
    objective: Objective
    average: WeightAverage | None = None
    scaler: GradScaler | None = None
    early: EarlyStopping | None = None
    step: int = 0
    evaluation: dict[str, Any] | None = None
    best: float | None = None
    seconds: float = 0.0

    @property
    def evaluated_model(self) -> nn.Module:
        """The averaged model, where there is one."""
        return self.average.model if self.average else self.model

    @property
    def is_evaluated(self) -> bool:
        """Whether the weights as they are have been."""
        return self.evaluation is not None and self.evaluation["step"] == self.step

    def judge(self, metrics: dict[str, Any]) -> bool:
        """Notes an evaluation of the weights as they are; whether it is the best."""
        self.evaluation = {"step": self.step, "metrics": metrics}
        value = self.objective.value(metrics)
        is_best = self.objective.improves(value, self.best)
        if is_best:
            self.best = value
        if self.early:
            self.early.update(metrics)
        return is_best

    def content(self, seconds: float, described: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds, see :mod:`detector.engine.checkpoint`.

        Args:
            seconds: of training so far.
            described: what does not change: the configuration, the classes.
        """
        content = {
            "format": FORMAT,
            "model": self.evaluated_model.state_dict(),
            **described,
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "evaluation": self.evaluation,
            "best": self.best,
            "best_of": str(self.objective),
            "seconds": seconds,
        }
        if self.average:
            content["trained_model"] = self.model.state_dict()
        if self.scaler:
            content["loss_scale"] = self.scaler.state_dict()
        if self.early:
            content["early_stopping"] = self.early.state_dict()
        return content

    def restore(self, content: dict[str, Any], path: Path, keeps_best: bool) -> None:
        """Goes on from a checkpoint.

        Args:
            content: of :func:`detector.engine.checkpoint.load_checkpoint`.
            path: of the file, for messages.
            keeps_best: whether the ``best.pt`` it speaks of is there; a new run directory has a
                best of its own, and so has another objective.

        Raises:
            ValueError: it is of another model, optimiser or dataset.
        """
        load_weights(self.model, content.get("trained_model", content["model"]), path)
        if self.average:
            load_weights(self.average.model, content["model"], path)
        restore_optimizer(self.optimizer, content["optimizer"], path)
        self.loader.load_state_dict(content["loader"])
        self.step, self.evaluation = content["step"], content["evaluation"]
        self.seconds = content.get("seconds", 0.0)
        if keeps_best and content.get("best_of", str(self.objective)) == str(self.objective):
            self.best = content["best"]
        if self.scaler and "loss_scale" in content:
            self.scaler.load_state_dict(content["loss_scale"])
        if self.early and "early_stopping" in content:
            self.early.load_state_dict(content["early_stopping"])
