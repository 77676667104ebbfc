"""Times and peaks of memory, taken so that two sides can be compared."""

from __future__ import annotations

import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping

import torch

Side = Callable[[], object]

# A sample is as many calls as fill this time: below, clocks and launches show more than the op.
SAMPLE_SECONDS = 0.02
MAX_CALLS = 1000


def median_seconds(
    sides: Mapping[str, Side], device: torch.device, repeats: int
) -> dict[str, float]:
    """Median seconds of one call of each side.

    The sides take turns, so that a machine that slows down slows all of them. On a GPU the time is
    that between two events on the stream; the CPU runs ahead, as in training.
    """
    clock = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    calls = {}
    for name, side in sides.items():
        side()  # compiles, fills caches
        once = clock(side, 1)
        calls[name] = max(1, min(MAX_CALLS, int(SAMPLE_SECONDS / max(once, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            samples[name].append(clock(side, calls[name]) / calls[name])
    return {name: statistics.median(taken) for name, taken in samples.items()}


def _cpu_seconds(side: Side, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        side()
    return time.perf_counter() - start


def _cuda_seconds(side: Side, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        side()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def peak_bytes(side: Side, device: torch.device) -> int:
    """Most memory that one call holds at any time, its results included, its inputs not.

    On the CPU that is what tensors take plus what Python and numpy take, the peak of each;
    what a C library allocates for itself is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return _tensor_peak(side) + _array_peak(side)


def _tensor_peak(side: Side) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = side()
    del result
    # Every allocation, those inside an operator too; the public summaries give sums by operator.
    events = profile.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak


def _array_peak(side: Side) -> int:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        result = side()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del result
    return peak - before


def copy_bandwidth(device: torch.device, repeats: int) -> float:
    """Bytes per second that a plain copy reads and writes: the most a kernel can hope for."""
    num_bytes = 2**30 if device.type == "cuda" else 2**27
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds({"copy": lambda: target.copy_(source)}, device, repeats)["copy"]
    return 2 * num_bytes / seconds


def matrix_peak(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Operations per second of a large product of matrices, two for each multiply-add.

    The fastest of some: what a machine can do does not depend on what else it does.
    """
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    clock = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    return 2 * side**3 / min(clock(lambda: a @ b, 1) for _ in range(repeats + 1))
