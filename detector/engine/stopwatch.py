"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections import defaultdict

import torch


class Stopwatch:
    """Splits steps into named laps without making the host wait for the device.

    On a GPU the laps are pairs of CUDA events, looked at only by :meth:`read`; on a CPU they are
    wall-clock times. Waiting for data happens on the host, so pass ``on_host=True`` for it.

    Args:
        device: where the model runs.

    Attributes:
        laps: where a list is put, each lap is added: its name, and its begin and end by the host's
            ``time.perf_counter``.
    """

    def __init__(self, device: torch.device) -> None:
        self.laps: list[tuple[str, float, float]] | None = None
        self._device = device
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._steps = 0
        self._began = time.perf_counter()
        self._mark: torch.cuda.Event | None = None
        self._last = self._began

    def start(self) -> None:
        """Begins a step."""
        self._steps += 1
        self._last = time.perf_counter()
        self._mark = None

    def lap(self, name: str, on_host: bool = False) -> None:
        """Books the time since :meth:`start` or the former lap under ``name``."""
        now = time.perf_counter()
        if self.laps is not None:
            self.laps.append((name, self._last, now))
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            if self._mark is not None and not on_host:
                self._events.append((name, self._mark, event))
            else:
                self._seconds[name] += now - self._last
            self._mark = event
        else:
            self._seconds[name] += now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """Mean seconds per step by lap name, and ``step`` from wall clock; begins a new count."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1000
        now = time.perf_counter()
        steps = max(self._steps, 1)
        means = {name: seconds / steps for name, seconds in self._seconds.items()}
        means["step"] = (now - self._began) / steps
        self.restart()
        return means

    def restart(self) -> None:
        """Forgets everything, for instance after a pause for evaluation."""
        self._seconds.clear()
        self._events.clear()
        self._steps = 0
        self._began = time.perf_counter()
