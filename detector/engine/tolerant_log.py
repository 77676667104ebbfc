"""A metric log that a full disk does not end the training with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from detector.engine.metric_log import MetricLog
from detector.engine.run_directory import RunDirectory

NOTHING_LATER = 2**62  # a step: whatever was logged was logged before it


class TolerantLog:
    """Hands every call on to a :class:`MetricLog`.

    What cannot be written is lost, and the first loss is told. The log is opened anew for the next
    call, so that it goes on when there is room again.

    Args:
        run: where to.
        step: finished steps.
        histograms: see :class:`MetricLog`.
        warn: is told of a loss.

    Raises:
        ValueError: see :class:`MetricLog`.
        OSError: it cannot be opened at all.
    """

    def __init__(
        self, run: RunDirectory, step: int, histograms: int, warn: Callable[[str], None]
    ) -> None:
        self._open = partial(MetricLog, run.metric_lines, run.tensorboard, histograms=histograms)
        self._warn = warn
        self._log: MetricLog | None = self._open(step)
        self._has_warned = False

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            try:
                if self._log is None:
                    self._log = self._open(NOTHING_LATER)
                getattr(self._log, name)(*arguments)
            except OSError as error:
                self._lose(error)

        return call

    def close(self) -> None:
        """Closes the log; what it still holds may be lost too."""
        if self._log is not None:
            try:
                self._log.close()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        log, self._log = self._log, None
        with contextlib.suppress(OSError):
            if log is not None:
                log.close()
        if not self._has_warned:
            self._has_warned = True
            self._warn(
                f"warning: metrics.jsonl or the events of TensorBoard could not be written "
                f"({error}); training goes on without, until they can be"
            )
