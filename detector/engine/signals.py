"""Ctrl-C and what schedulers send as a wish to stop, heard at the end of the current step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

# SIGUSR1 is what Slurm's --signal=USR1@120 announces a preemption with; SIGHUP comes when the
# terminal is closed or its connection breaks. Windows has neither.
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
    if hasattr(signal, name)
]


class StopRequest:
    """Within ``with StopRequest() as stop:`` the :data:`SIGNALS` only set ``stop.signal``.

    A second one of any is not caught: it ends the program at once, for one who cannot wait. The
    former handlers are back after the block. Outside the main thread, where Python allows no
    handlers, it does nothing. Under ``nohup`` SIGHUP stays ignored.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._former: dict[signal.Signals, object] = {}
        # Asked now: a terminal that is gone is none any more.
        streams = [stream for stream in (sys.__stdout__, sys.__stderr__) if stream is not None]
        self._terminals = [stream.fileno() for stream in streams if stream.isatty()]

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
                if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if self.signal.name == "SIGHUP":
            self._let_go_of_terminal()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def _let_go_of_terminal(self) -> None:
        """Writes to it would be errors now, and come before the work is saved."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


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
