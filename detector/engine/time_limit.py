"""Training that has to be over, evaluated and saved by a certain time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from detector.engine.schedule import Schedule

MARGIN = 1.2  # the next evaluation may take longer than the last one did: there is more to find


class TimeLimit:
    """The wall-clock time that a training may take, and how much of it is left for steps.

    What has to happen after the last step, an evaluation and the last checkpoint, is measured
    whenever it happens, and that much is kept free. Before the first evaluation it is taken to last
    as long as training on as many images would, which is longer than evaluating commonly takes.

    The learning rate follows the time, so that it has fallen to its end when the time is over: see
    :meth:`pace`. What a run computes then depends on the speed of the machine.

    Args:
        seconds: of the whole training, interruptions not counted; ``None`` for no limit.
        spent: of it before a resume.
        val_steps: how many steps would take as many images as an evaluation does.
        began: when this process began with it, by ``clock``; now, if not given.
        clock: gives seconds.

    Attributes:
        saving: seconds that the last checkpoint took to write.
    """

    def __init__(
        self,
        seconds: float | None,
        spent: float = 0.0,
        val_steps: float = 0.0,
        began: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = seconds
        self._val_steps = val_steps
        self._clock = clock
        self._spent = spent
        self._began = (clock() if began is None else began) - spent
        self._steps: deque[float] = deque(maxlen=20)
        self._step_began: float | None = None
        self._evaluation: float | None = None
        self.saving = 0.0

    def __str__(self) -> str:
        return "" if self.limit is None else f", or {self.limit:.0f} seconds in all"

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self._clock() - self._began

    def start_step(self) -> None:
        """Call it before each step."""
        self._step_began = self._clock()

    def end_step(self) -> None:
        """Call it after each step."""
        assert self._step_began is not None
        self._steps.append(self._clock() - self._step_began)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation and what belongs to it."""
        began = self._clock()
        yield
        self._evaluation = self._clock() - began

    @property
    def reserve(self) -> float:
        """Seconds to keep for what comes after the last step."""
        step = max(self._steps, default=0.0)
        evaluation = self._val_steps * step if self._evaluation is None else self._evaluation
        return MARGIN * (evaluation + 2 * self.saving)

    @property
    def is_over(self) -> bool:
        """Whether another step would leave too little time for what comes after it."""
        if self.limit is None or (not self._steps and not self._spent):
            return False  # one step at least
        return self.elapsed + max(self._steps, default=0.0) + self.reserve >= self.limit

    def pace(self, schedule: Schedule, max_steps: int) -> Callable[[int], float]:
        """The schedule run through within the time.

        The rate decays by whichever is further, the share of ``max_steps`` or of the time for
        steps, as in training under a budget (Li et al., 2020): a schedule that is cut off leaves
        most of its gain behind. Warm-up goes by steps. Without a limit, ``schedule`` itself.
        """
        if self.limit is None:
            return schedule

        def multiplier(step: int) -> float:
            share = self.elapsed / max(self.limit - self.reserve, 1e-9)
            reached = max(step, min(int(share * max_steps), max_steps))
            return schedule.warmup(step) * schedule.decay(reached)

        return multiplier
