"""Ctrl-C and what schedulers send as a wish to stop, heard at the end of the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

# SIGUSR1 is what Slurm's --signal=USR1@120 announces a preemption with. Windows has none.
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


class StopRequest:
    """Within ``with StopRequest() as stop:`` SIGINT, SIGTERM and SIGUSR1 only set ``stop.signal``.

    A second one of any is not caught: it ends the program at once, for one who cannot wait. The
    former handlers are back after the block. Outside the main thread, where Python allows no
    handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._former: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program ended by this signal, such as 143 for SIGTERM."""
        assert self.signal is not None
        return 128 + self.signal

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()


class AgreedStop:
    """A wish to stop that all ranks know of, whichever of them has heard it.

    Args:
        stop: what this rank hears.
        highest: the largest number of all ranks, see
            :meth:`detector.engine.distributed.Ranks.highest`.
    """

    def __init__(self, stop: StopRequest, highest: Callable[[float], float]) -> None:
        self._stop = stop
        self._highest = highest
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        """Whether to stop, as of the last :meth:`ask`."""
        return self.signal is not None

    def ask(self) -> bool:
        """Asks all ranks, which have to ask equally often."""
        number = int(self._highest(self._stop.signal or 0))
        self.signal = signal.Signals(number) if number else None
        return number > 0

    @property
    def exit_code(self) -> int:
        """As that of :class:`StopRequest`."""
        assert self.signal is not None
        return 128 + self.signal
