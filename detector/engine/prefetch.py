"""Batches copied to the GPU while it still computes the step before."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from detector.engine.runtime import Runtime
from detector.structures import Batch, TensorStruct

STEPS_AHEAD = 2


def prefetched(batches: Iterable[Batch], runtime: Runtime) -> Iterator[Batch]:
    """The batches on the GPU; on a CPU as they are.

    A batch is taken and its copy begun when it is asked for, on a stream of its own; the stream of
    the step waits for the copy, the host does not. Since the host is ahead of the GPU, the copy
    runs beside the step before. Nothing is taken before it is asked for, so that a loader's
    position is that of the steps taken.

    The host may be two steps ahead; after that it waits, since every batch underway takes memory.
    The copies overlap only from pinned memory.

    Args:
        batches: on the host, pinned.
        runtime: where to.
    """
    if runtime.torch_device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(runtime.torch_device)
    finished: deque[torch.cuda.Event] = deque()
    for batch in batches:
        if len(finished) >= STEPS_AHEAD:
            finished.popleft().synchronize()
        with torch.cuda.stream(stream):
            moved = runtime.move(batch)
        step_stream = torch.cuda.current_stream(runtime.torch_device)
        step_stream.wait_stream(stream)
        for tensor in tensors_of(moved):
            if tensor.is_cuda:
                # Its memory came from the copying stream, which must not take it back too early.
                tensor.record_stream(step_stream)
        yield moved
        finished.append(step_stream.record_event())


def tensors_of(structure: TensorStruct) -> Iterator[Tensor]:
    """Every tensor in a structure and the structures in it, in the order of the fields."""
    for field in dataclasses.fields(structure):
        value: Any = getattr(structure, field.name)
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, TensorStruct):
            yield from tensors_of(value)
