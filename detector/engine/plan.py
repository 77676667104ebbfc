"""How long to train, and when to evaluate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Training in steps.

    Attributes:
        max_steps: the last step.
        evaluate_every: steps between evaluations, 0 for one at the end.
        steps_per_epoch: steps that make an epoch; a fraction where several batches make a step.
    """

    max_steps: int
    evaluate_every: int
    steps_per_epoch: float

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation belongs after ``step`` finished steps."""
        if step == self.max_steps:
            return True
        return step > 0 and is_due(step, self.evaluate_every)

    def without_effect(self, max_epochs: float | None) -> list[str]:
        """A sentence if ``training.max_epochs`` was given but the steps end sooner."""
        if max_epochs is None or round(max_epochs * self.steps_per_epoch) <= self.max_steps:
            return []
        return [
            f"training.max_epochs={max_epochs} is not reached within training.max_steps="
            f"{self.max_steps}; set training.max_steps=null to train that long"
        ]


def plan_training(
    steps_per_epoch: float,
    max_steps: int | None,
    max_epochs: float | None,
    evaluate_every: int = 0,
    evaluate_every_epochs: float = 0,
) -> Plan:
    """A plan from limits in steps and in epochs.

    Args:
        steps_per_epoch: steps that make an epoch.
        max_steps, max_epochs: whichever comes first ends the training; one may be ``None``.
        evaluate_every, evaluate_every_epochs: in steps or in epochs; one may be 0.

    Raises:
        ValueError: no limit, or one that is not positive; both kinds of evaluation interval.
    """
    for name, limit in (("max_steps", max_steps), ("max_epochs", max_epochs)):
        if not isinstance(limit, int | float | None):
            raise ValueError(f"training.{name}={limit}; it must be a number, or null")
    limits = []
    if max_steps is not None:
        limits.append(max_steps)
    if max_epochs is not None:
        limits.append(round(max_epochs * steps_per_epoch))
    if not limits or min(limits) < 1:
        raise ValueError(
            f"training.max_steps={max_steps} and training.max_epochs={max_epochs}: "
            "give at least one, and of at least one step"
        )
    if evaluate_every < 0 or evaluate_every_epochs < 0:
        raise ValueError("evaluation.every and evaluation.every_epochs must be 0 or more")
    if evaluate_every and evaluate_every_epochs:
        raise ValueError("set either evaluation.every (steps) or evaluation.every_epochs, not both")
    if evaluate_every_epochs:
        evaluate_every = max(1, round(evaluate_every_epochs * steps_per_epoch))
    return Plan(min(limits), evaluate_every, steps_per_epoch)


def is_due(step: int, every: int) -> bool:
    """Whether something that happens ``every`` so many steps happens now; 0 is never."""
    return every > 0 and step % every == 0
