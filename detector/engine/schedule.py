"""The learning rate as a pure function of the step.

A schedule maps the number of finished steps to a multiplier of each parameter group's base
learning rate. It holds no state, so resuming needs nothing but the step.
"""

from __future__ import annotations

import bisect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence


class Schedule(ABC):
    """Linear warm-up times a subclass's ``decay``.

    The multiplier grows linearly from ``warmup_factor`` at step 0 to 1 at ``warmup_steps``. Without
    it a fresh RPN and box head send gradients that destroy a pretrained trunk in the first steps
    (Goyal et al. 2017, section 2.2; Detectron's 1x recipe).

    Args:
        warmup_steps: steps of warm-up, 0 for none.
        warmup_factor: multiplier at step 0, in ``(0, 1]``.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(self, warmup_steps: int = 0, warmup_factor: float = 0.001) -> None:
        if warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps is {warmup_steps}; it must be 0 or more")
        if not 0 < warmup_factor <= 1:
            raise ValueError(f"schedule.warmup_factor is {warmup_factor}; it must lie in (0, 1]")
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor

    def __call__(self, step: int) -> float:
        """The multiplier of the step after ``step`` finished ones; 0 is the first."""
        return self.decay(step) * self.warmup(step)

    def warmup(self, step: int) -> float:
        """The warm-up alone: 1 when it is over."""
        if step >= self.warmup_steps:
            return 1.0
        progress = step / self.warmup_steps
        return self.warmup_factor * (1 - progress) + progress

    @abstractmethod
    def decay(self, step: int) -> float:
        """The multiplier without warm-up."""

    def without_effect(self, max_steps: int) -> list[str]:
        """Sentences on settings that a training of ``max_steps`` never comes to."""
        if self.warmup_steps >= max_steps:
            return [
                f"schedule.warmup_steps={self.warmup_steps} is not over within "
                f"training.max_steps={max_steps}; the full learning rate is never used"
            ]
        return []


class MultiStep(Schedule):
    """Multiplied by ``gamma`` at every milestone, as in the papers.

    Args:
        milestones: steps at which the rate drops, rising (60000, 80000 of 90000 in the 1x recipe).
        gamma: factor of each drop.
        warmup_steps, warmup_factor: see :class:`Schedule`.

    Raises:
        ValueError: milestones that do not rise, or a value outside its range.
    """

    def __init__(
        self,
        milestones: Sequence[int],
        gamma: float = 0.1,
        warmup_steps: int = 0,
        warmup_factor: float = 0.001,
    ) -> None:
        super().__init__(warmup_steps, warmup_factor)
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"schedule.milestones are {list(milestones)}; they must rise")
        if not 0 < gamma <= 1:
            raise ValueError(f"schedule.gamma is {gamma}; it must lie in (0, 1]")
        self.milestones = list(milestones)
        self.gamma = gamma

    def decay(self, step: int) -> float:
        return self.gamma ** bisect.bisect_right(self.milestones, step)

    def without_effect(self, max_steps: int) -> list[str]:
        late = [milestone for milestone in self.milestones if milestone >= max_steps]
        if not late:
            return super().without_effect(max_steps)
        return [
            *super().without_effect(max_steps),
            f"schedule.milestones {late} are not reached within training.max_steps={max_steps}; "
            "the learning rate does not drop there",
        ]


class Cosine(Schedule):
    """Half a cosine from 1 to ``final_factor`` (Loshchilov & Hutter 2017), flat afterwards.

    Args:
        total_steps: step at which ``final_factor`` is reached; usually ``${training.max_steps}``.
        final_factor: multiplier at the end.
        warmup_steps, warmup_factor: see :class:`Schedule`.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        total_steps: int,
        final_factor: float = 0.0,
        warmup_steps: int = 0,
        warmup_factor: float = 0.001,
    ) -> None:
        super().__init__(warmup_steps, warmup_factor)
        if total_steps <= 0:
            raise ValueError(f"schedule.total_steps is {total_steps}; it must be 1 or more")
        if not 0 <= final_factor <= 1:
            raise ValueError(f"schedule.final_factor is {final_factor}; it must lie in [0, 1]")
        self.total_steps = total_steps
        self.final_factor = final_factor

    def decay(self, step: int) -> float:
        progress = min(step / self.total_steps, 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.final_factor + (1 - self.final_factor) * cosine
