"""A trace of a few steps, and where their time goes.

The trace is a JSON file that ``chrome://tracing``, https://ui.perfetto.dev and TensorBoard's
profiler show: every operation, with its stage of the step (data, forward, backward, update) above
it. The table has the operations that take most. Profiling itself takes time: the shares are
meaningful, the milliseconds are not those of an undisturbed step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from detector.engine.assembly import plain
from detector.engine.atomic_file import atomic_write
from detector.engine.stopwatch import Stopwatch

Item = TypeVar("Item")

ROWS = 15  # operations in the table
_CLOCK = "detector: clock"


class StepProfiler:
    """Profiles the ``steps`` steps after the first ``start`` ones of this process.

    Use it as a context: a trace that is not complete when it ends is written as far as it goes.

    Args:
        folder: where the trace goes.
        device: of the model.
        steps: how many; 0 for none.
        start: steps before, in which caches fill and memory is laid out.
        memory: whether the table has what operations allocate.
        say: is told where the trace is, and given the table.
        what: a step is called.

    Raises:
        ValueError: a number below 0.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        steps: int = 0,
        start: int = 10,
        memory: bool = False,
        say: Callable[[Any], None] = print,
        what: str = "step",
    ) -> None:
        if steps < 0 or start < 0:
            raise ValueError(f"profiler.steps={steps}, profiler.start={start}; give 0 or more")
        self.steps = steps
        self.start = start
        self._folder = folder
        self._device = device
        self._memory = memory
        self._say = say
        self._what = what
        self._seen = 0
        self._profile: profile | None = None
        self._range: record_function | None = None
        self._profiled: list[int] = []
        self._stopwatch: Stopwatch | None = None
        self._host_clock = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if self._profile is not None:
            self._end_range()
            self._write()
        elif self.steps and self._seen <= self.start and kind is None:
            self._say(
                f"warning: profiler.start={self.start}, but this process has come to an end after "
                f"{self._seen}; there is no trace, lower it"
            )

    def begin(self, step: int, stopwatch: Stopwatch | None = None) -> None:
        """Before a step (1 is the first); the laps of ``stopwatch`` are its stages."""
        self._seen += 1
        if not self.start < self._seen <= self.start + self.steps:
            return
        if self._profile is None:
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, profile_memory=self._memory)
            self._profile.start()
            with record_function(_CLOCK):
                self._host_clock = time.perf_counter()
        if stopwatch is not None and self._stopwatch is None:
            self._stopwatch = stopwatch
            stopwatch.laps = []
        self._profiled.append(step)
        self._range = record_function(f"{self._what} {step}")
        self._range.__enter__()

    def end(self) -> None:
        """After the step."""
        if self._range is None:
            return
        self._end_range()
        if len(self._profiled) == self.steps:
            self._write()

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """Passes ``items`` on; what is done with one of them is a step."""
        for number, item in enumerate(items, start=1):
            self.begin(number)
            yield item
            self.end()

    def _end_range(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None

    def _write(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        found, self._profile = self._profile, None
        assert found is not None
        found.stop()
        laps = []
        if self._stopwatch is not None:
            laps, self._stopwatch.laps = self._stopwatch.laps or [], None
        first, last = self._profiled[0], self._profiled[-1]
        path = self._folder / f"{self._what}_{first:08d}_to_{last:08d}.pt.trace.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        # Torch writes it itself, and knows of no stages.
        raw = path.with_suffix(".raw")
        try:
            found.export_chrome_trace(str(raw))
            trace = json.loads(raw.read_text())
        finally:
            raw.unlink(missing_ok=True)
        add_stages(trace, laps, self._host_clock)
        with atomic_write(path) as file:
            file.write(json.dumps(trace).encode())
        self._say(f"profiled {self._what} {first} to {last}; the trace is {path}")
        self._say(operation_table(found, len(self._profiled), self._device, self._memory))


def add_stages(
    trace: dict[str, Any], laps: Iterable[tuple[str, float, float]], host_clock: float
) -> None:
    """Writes laps of the host's clock into a trace, on the thread that took them.

    Args:
        trace: in Chrome's format; its times are microseconds.
        laps: name, begin and end in seconds of ``time.perf_counter``.
        host_clock: that clock when the trace's event :data:`_CLOCK` ended.
    """
    [clock] = [event for event in trace["traceEvents"] if event.get("name") == _CLOCK]
    offset = clock["ts"] + clock["dur"] - 1e6 * host_clock
    for name, begin, end in laps:
        trace["traceEvents"].append(
            {
                "ph": "X",
                "cat": "user_annotation",
                "name": name,
                "pid": clock["pid"],
                "tid": clock["tid"],
                "ts": offset + 1e6 * begin,
                "dur": 1e6 * (end - begin),
            }
        )


def operation_table(found: profile, steps: int, device: torch.device, memory: bool) -> Table:
    """The operations that take most of the device's time, or of the CPU's without a GPU."""
    where = "device" if device.type == "cuda" else "cpu"
    rows = [row for row in found.key_averages() if not _is_range(row)]
    time_of = {row.key: getattr(row, f"self_{where}_time_total") for row in rows}
    total = max(sum(time_of.values()), 1e-9)
    table = Table(title=f"Operations, mean of {steps}", title_justify="left")
    table.add_column("operation", overflow="fold")
    columns = ["calls", f"ms on {'GPU' if where == 'device' else 'CPU'}", "share"]
    for name in columns + (["MiB"] if memory else []):
        table.add_column(name, justify="right")
    rows.sort(key=lambda row: time_of[row.key], reverse=True)
    for row in rows[:ROWS]:
        spent = time_of[row.key]
        cells = [f"{row.count / steps:g}", f"{spent / 1000 / steps:.2f}", f"{spent / total:.1%}"]
        if memory:
            cells.append(f"{getattr(row, f'self_{where}_memory_usage') / 2**20 / steps:.1f}")
        table.add_row(row.key, *cells)
    return table


def _is_range(row: Any) -> bool:
    """Ranges are not operations: what they contain is counted by itself."""
    return row.is_user_annotation or row.key == _CLOCK


def build_profiler(
    settings: DictConfig | None,
    folder: Path,
    device: torch.device,
    say: Callable[[Any], None],
    what: str = "step",
) -> StepProfiler:
    """Of the group ``profiler``; ``None`` profiles nothing."""
    return StepProfiler(folder, device, **(plain(settings) or {}), say=say, what=what)
