"""A side of a comparison in a process of its own, which runs when it is told to.

So peaks of memory are of that side alone, and what one side sets for its process does not reach
another. A side that waits takes no time: the sides can take turns.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from detector.benchmark.model_sides import Ours, Side, Theirs, as_arrays, lapped, work_of
from detector.benchmark.model_workload import Workload
from detector.benchmark.resident import Growth
from detector.engine.stopwatch import Stopwatch

# Steps of which the GPU's busy share is taken.
PROFILED_STEPS = 3


class SideFailed(Exception):
    """What a side's process has said before it gave up."""


@dataclass(frozen=True)
class SideSettings:
    """What a side's process is started with.

    Attributes:
        workload: file of a :class:`detector.benchmark.model_workload.Workload`.
        trains: or detects.
        device: ``"cpu"`` or ``"cuda"``.
        threads: of the CPU, ``None`` for torch's choice.
        peer: ``None`` for ours.
        bf16: of a peer: autocast and channels_last.
        ours: settings of ours.
        warm_up: steps before anything is measured.
        steps: of a sample; on a GPU they follow each other without waiting.
    """

    workload: Path
    trains: bool
    device: str
    threads: int | None = None
    peer: str | None = None
    bf16: bool = False
    ours: tuple[str, ...] = ()
    warm_up: int = 1
    steps: int = 1


class SideProcess:
    """The measuring process's handle on a side.

    Raises:
        SideFailed: the side raised an error, which is in the message.
    """

    def __init__(self, settings: SideSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, settings), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> SideProcess:
        return self

    def __exit__(self, *_) -> None:
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def ask(self, question: str) -> Any:
        """The answer of the function of this name in :data:`ANSWERS`."""
        try:
            self._connection.send(question)
            is_good, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(10)
            raise SideFailed(f"its process ended with {self._process.exitcode}") from error
        if not is_good:
            raise SideFailed(answer)
        return answer


def _serve(connection: Any, settings: SideSettings) -> None:
    session = None
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            session = session or _Session(settings)
            connection.send((True, ANSWERS[question](session)))
        except Exception as error:  # of whatever kind: the asker has to know
            connection.send((False, f"{type(error).__name__}: {error}"))
            return


class _Session:
    def __init__(self, settings: SideSettings) -> None:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.settings = settings
        self.growth = Growth()
        self.device = torch.device(settings.device)
        self.said: list[str] = []
        workload: Workload = torch.load(settings.workload, weights_only=False)
        self.num_images = [len(batch.images) for batch in workload.batches]
        self.side: Side
        if settings.peer is None:
            device = f"runtime.device={settings.device}"
            threads = [f"runtime.num_threads={settings.threads}"] if settings.threads else []
            words = [*settings.ours[:1], device, *threads, *settings.ours[1:]]
            self.side = Ours(workload, words, settings.trains, self.said.append)
            self.said += self.side.runtime.choices
            self.precision = self.side.runtime.precision
        else:
            peer = import_module(f"detector.benchmark.{settings.peer}_peer")
            self.side = Theirs(peer, workload, self.device, settings.bf16, settings.trains)
            self.precision = "bf16" if settings.bf16 else "float32"
        del workload
        self.stopwatch = Stopwatch(self.device)
        self.number = 0

    def run(self, steps: int) -> Any:
        """Further steps; what the last one gave."""
        result = None
        for _ in range(steps):
            result = self.side.step(self.number, self.stopwatch)
            self.number += 1
        return result

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _prepare(session: _Session) -> dict[str, Any]:
    """Compiles, fills caches; ``loss`` or ``found`` of the first batch, ``precision``, the
    package's ``version`` and what was ``said``."""
    result = session.run(1)
    package = import_module(session.settings.peer or "detector")
    answer: dict[str, Any] = {
        "version": package.__version__,
        "precision": session.precision,
        "said": session.said,
    }
    if session.settings.trains:
        answer["loss"] = float(result)
    else:
        answer["found"] = as_arrays(result)
    del result
    # Each shape has its own compilation and its own graph.
    session.run(session.settings.warm_up * len(session.num_images))
    session.wait()
    if session.device.type == "cuda":
        # What is kept from now on is what steps need; graphs have it where none is allocated.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        session.run(len(session.num_images))
        session.wait()
    return answer


def _sample(session: _Session) -> dict[str, Any]:
    """``seconds`` and ``cpu_seconds`` of a step, ``images`` of it, and seconds of its ``laps``."""
    steps = session.settings.steps
    first = session.number
    session.stopwatch.restart()
    session.wait()
    began, cpu = time.perf_counter(), time.process_time()
    result = session.run(steps)
    session.wait()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    laps = session.stopwatch.read()
    del laps["step"]
    sizes = session.num_images
    images = sum(sizes[number % len(sizes)] for number in range(first, first + steps)) / steps
    answer = {
        "seconds": seconds / steps,
        "cpu_seconds": cpu / steps,
        "images": images,
        "laps": laps,
    }
    if session.settings.trains:
        answer["loss"] = float(result)
    return answer


def _stages(session: _Session) -> dict[str, float]:
    """Seconds of the stages of one detection."""
    with lapped(session.side, session.stopwatch):
        session.stopwatch.restart()
        session.run(1)
        laps = session.stopwatch.read()
    del laps["step"]
    # What is left when the last stage has ended belongs to it, or is pasting.
    has_mask_stage = session.settings.peer is None and "mask" in session.side.poolers()
    last = "mask" if has_mask_stage else "paste"
    laps[last] = laps.get(last, 0.0) + laps.pop("network")
    return laps


def _count(session: _Session) -> dict[str, Any]:
    """Peak of memory so far, and what there is to do for an image.

    On a GPU that is what torch's allocator has taken for itself in the steps that were measured, on
    a CPU what the process has grown by since its imports, weights and inputs among it.
    """
    on_gpu = session.device.type == "cuda"
    peak = torch.cuda.max_memory_reserved() if on_gpu else session.growth.peak()
    return {"peak_bytes": peak, **work_of(session.side)}


def _look(session: _Session) -> dict[str, Any]:
    """On a GPU: how often the host waits in a step, and the share of time that it computes."""
    if session.device.type != "cuda":
        return {}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            session.run(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchroniz" in str(one.message).lower() for one in caught)
    session.wait()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        session.run(PROFILED_STEPS)
        session.wait()
        seconds = time.perf_counter() - began
    events = profile.profiler.kineto_results.events()
    spans = [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.device_type() == torch.autograd.DeviceType.CUDA and not event.is_user_annotation()
    ]
    return {"host_waits": waits, "busy_share": covered(spans) / 1e9 / seconds}


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """Length of the union of ``(begin, end)`` spans."""
    total, reached = 0, None
    for begin, end in sorted(spans):
        begin = begin if reached is None else max(begin, reached)
        if end > begin:
            total += end - begin
        reached = end if reached is None else max(reached, end)
    return total


ANSWERS: dict[str, Callable[[_Session], Any]] = {
    "prepare": _prepare,
    "sample": _sample,
    "stages": _stages,
    "count": _count,
    "look": _look,
}


def medians(samples: list[dict[str, float]]) -> dict[str, float]:
    """Of each key over the samples that have it."""
    by_key: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        for key, value in sample.items():
            by_key[key].append(value)
    return {key: statistics.median(values) for key, values in by_key.items()}
