"""Training that has to be over, evaluated and saved by a certain time."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

from detector.engine.schedule import Schedule

Item = TypeVar("Item")

MARGIN = 1.2  # the next evaluation may take longer than the last one did: there is more to find
REHEARSED_MARGIN = 1.4  # a part stood for the whole
ENDING = 2.0  # seconds for workers and the interpreter to end, if it is a process that has to


class TimeLimit:
    """The wall-clock time that a training may take, and how much of it is left for steps.

    What has to happen after the last step, an evaluation and the last checkpoint, is measured
    whenever it happens, and that much is kept free. Until then an evaluation is taken to last as
    long as training on as many images would. That is a guess: drawing, pasting masks and summing up
    may take longer, and the first steps are slow. If a third of the time has passed and nothing has
    been evaluated, the end is rehearsed with a part of the images (see :meth:`rehearse`): early
    enough for the rate to fall in what is left, and late enough for objects to be found.

    The learning rate follows the time, so that it has fallen to its end when the time is over: see
    :meth:`pace`. What a run computes then depends on the speed of the machine.

    Args:
        seconds: of the whole training, interruptions not counted; ``None`` for no limit.
        spent: of it before a resume.
        val_steps: how many steps would take as many images as an evaluation does.
        began: when this process began with it, by ``clock``; now, if not given.
        clock: gives seconds.
        ending: seconds that the process takes to end when training has ended.

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
        ending: float = 0.0,
    ) -> None:
        self.limit = seconds
        self._val_steps = val_steps
        self._clock = clock
        self._spent = spent
        self._began = (clock() if began is None else began) - spent
        self._steps: deque[float] = deque(maxlen=20)
        self._step_began: float | None = None
        self._evaluation: float | None = None
        self._margin = MARGIN
        self._ending = ending
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
        self._margin = MARGIN

    @property
    def wants_rehearsal(self) -> bool:
        """Whether it is time to find out what an evaluation takes."""
        if self.limit is None or self._evaluation is not None or not self._steps:
            return False
        return self.elapsed >= self.limit / 3

    def rehearse(
        self,
        batches: Iterable[Item],
        total: int,
        evaluate: Callable[[Iterable[Item]], object],
        rest: Callable[[], object],
    ) -> str | None:
        """Does a part of what comes after the last step, and concludes how long all of it takes.

        Args:
            batches: of the evaluation.
            total: how many they are.
            evaluate: evaluates on some of them, and sums up as if they were all.
            rest: does what takes as long however many they are: draws pictures.

        Returns:
            A sentence if it takes more time than is left.
        """
        count = min(max(total // 20, 2), 16, total)
        asked: list[float] = []

        def some() -> Iterator[Item]:
            for batch in islice(batches, count):
                yield batch
                asked.append(self._clock())

        assert self.limit is not None
        began = self._clock()
        evaluate(some())
        rest()
        spent = self._clock() - began
        # The first one waits for data workers to start.
        each = (asked[-1] - asked[0]) / (len(asked) - 1) if len(asked) > 1 else spent
        self._evaluation = spent + each * (total - count)
        self._margin = REHEARSED_MARGIN
        late = self.elapsed + self._evaluation + 2 * self.saving + self._ending - self.limit
        if late <= 0:
            return None
        return (
            f"evaluating {total} batches takes about {self._evaluation:.0f} s here, so that "
            f"training.time_limit={self.limit:.0f}s will be exceeded by about {late:.0f} s; raise "
            "it, or evaluate on fewer or smaller images"
        )

    @property
    def reserve(self) -> float:
        """Seconds to keep for what comes after the last step."""
        step = max(self._steps, default=0.0)
        evaluation = self._val_steps * step if self._evaluation is None else self._evaluation
        return self._margin * (evaluation + 2 * self.saving) + self._ending

    @property
    def is_over(self) -> bool:
        """Whether another step would leave too little time for what comes after it."""
        if self.limit is None or (not self._steps and not self._spent):
            return False  # one step at least
        if self._evaluation is None and self.elapsed < self.limit / 3:
            return False  # it will be known
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


def process_began(clock: Callable[[], float] = time.monotonic, proc: Path = Path("/proc")) -> float:
    """When this process was started, by ``clock``: importing takes seconds of a limit too.

    Where the kernel does not tell, now.
    """
    try:
        words = (proc / "self" / "stat").read_text().rpartition(")")[2].split()
        up = float((proc / "uptime").read_text().split()[0])
        age = up - int(words[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return clock()
    return clock() - max(age, 0.0)
