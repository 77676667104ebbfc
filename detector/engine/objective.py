"""The one number that says which of two evaluations is better, and when to give up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from omegaconf import DictConfig

from detector.engine.checkpoint import best_metric

VAL_LOSS = ("val", "loss")


@dataclass(frozen=True)
class Objective:
    """A number of an evaluation's metrics.

    Attributes:
        kind, key: where it stands in them.
        lower_is_better: of losses.
    """

    kind: str
    key: str
    lower_is_better: bool = False

    def __str__(self) -> str:
        return f"{self.kind}.{self.key}"

    def value(self, metrics: Mapping[str, Mapping[str, Any]]) -> float:
        """The number in an evaluation's metrics."""
        return metrics[self.kind][self.key]

    def improves(self, value: float, best: float | None, by: float = 0.0) -> bool:
        """Whether ``value`` is better than ``best`` by more than ``by``; NaN never is."""
        if best is None:
            return value == value
        return value < best - by if self.lower_is_better else value > best + by


def choose_objective(
    setting: str,
    name: str | None,
    has_val_loss: bool,
    *evaluation: Any,
) -> Objective:
    """The objective of a setting.

    Args:
        setting: its key, for messages.
        name: ``"val.loss"``, or see :func:`detector.engine.checkpoint.best_metric`.
        has_val_loss: whether evaluations have a validation loss.
        evaluation: further arguments of ``best_metric``: what is evaluated.

    Raises:
        ValueError: there is no such number.
    """
    if name == "val.loss":
        if not has_val_loss:
            raise ValueError(f"{setting}=val.loss needs evaluation.loss=true")
        return Objective(*VAL_LOSS, lower_is_better=True)
    try:
        return Objective(*best_metric(name, *evaluation))
    except ValueError as error:
        text = str(error).replace("checkpoint.metric", setting)
        raise ValueError(f"{text}; or val.loss, with evaluation.loss=true") from None


class EarlyStopping:
    """Ends a training that has stopped getting better.

    Args:
        objective: what should get better.
        patience: evaluations in a row without an improvement that end it.
        min_delta: how much better counts as an improvement, 0 or more.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(self, objective: Objective, patience: int = 5, min_delta: float = 0.0) -> None:
        if patience < 1 or min_delta < 0:
            raise ValueError(
                f"training.early_stopping.patience={patience} and min_delta={min_delta}: give at "
                "least 1 evaluation, and 0 or more"
            )
        self.objective = objective
        self.patience = patience
        self.min_delta = min_delta
        self.best: float | None = None
        self.waited = 0

    @classmethod
    def of(cls, settings: DictConfig, *evaluation: Any) -> Self | None:
        """Early stopping as in the group ``training.early_stopping``; ``None`` without patience.

        Args:
            settings: the group.
            evaluation: further arguments of :func:`choose_objective`.
        """
        if settings.patience is None:
            return None
        objective = choose_objective("training.early_stopping.metric", settings.metric, *evaluation)
        return cls(objective, settings.patience, settings.min_delta)

    def update(self, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        """Looks at an evaluation's metrics."""
        value = self.objective.value(metrics)
        if self.objective.improves(value, self.best, self.min_delta):
            self.best, self.waited = value, 0
        else:
            self.waited += 1

    @property
    def is_over(self) -> bool:
        """Whether it has waited long enough."""
        return self.waited >= self.patience

    def __str__(self) -> str:
        shown = "undefined" if self.best is None else f"{self.best:.4g}"
        return f"{self.objective} has not improved on {shown} in {self.waited} evaluations"

    def state_dict(self) -> dict[str, Any]:
        """What it has seen."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what another has seen."""
        self.best, self.waited = state["best"], state["waited"]
