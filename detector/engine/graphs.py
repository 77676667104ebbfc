"""The training step as CUDA graphs: recorded once for each bucket of shapes, then replayed.

A step is thousands of short kernels, which the host launches more slowly than an H100 computes
them. A graph is one launch. What it computes is fixed when it is recorded, down to addresses: so
batches are copied into tensors that stay, learning rates and the share of the weights' average are
tensors, and random numbers come from the images' seeds or from torch's generator, whose seed a
replay reads anew.
"""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from detector.engine.stopwatch import Stopwatch
from detector.engine.training_step import TrainingStep
from detector.structures import Batch, Polygons, TensorStruct

# Steps of a bucket before it is recorded: kernels are compiled and chosen, memory is laid out.
WARM_UP = 3

# Slots are rounded up to these numbers times powers of four, so that few buckets are left of the
# powers of two that batches come in. An empty slot costs a GPU next to nothing.
GT_SLOTS, EDGE_SLOTS, MAX_EDGES = 64, 4096, 1024

Run = Callable[[], dict[str, Tensor]]


class Recording(Protocol):
    """What a :class:`Recorder` has recorded.

    Attributes:
        results: what the recorded function gave; replaying fills the same tensors.
    """

    results: dict[str, Tensor]

    def replay(self) -> None: ...


class Recorder(Protocol):
    """What runs and records steps: :class:`CudaRecorder`, or one of the tests that re-runs them."""

    def warm_up(self, run: Run, makes_room: bool = True) -> dict[str, Tensor]: ...

    def record(self, run: Run) -> Recording: ...


class CudaRecorder:
    """Records CUDA graphs, which share their memory: only one of them runs at a time.

    Warming up happens in that memory too, on the stream that records and, backward too, in the
    thread that records, so that workspaces and chosen kernels are there when they are recorded and
    nothing takes memory twice.

    Args:
        device: of the step, with its number.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = _Pool(torch.cuda.graph_pool_handle())
        # A pool ends with its last graph, and cannot begin again while gradients lie in it: this
        # graph, which is never replayed, keeps it.
        self._keeper = self.record(lambda: {"nothing": torch.zeros((), device=device)})

    def warm_up(self, run: Run, makes_room: bool = True) -> dict[str, Tensor]:
        """Runs, and gives what ``run`` gave.

        Args:
            run: is run.
            makes_room: take back first what is kept outside of the pool, since that is not done
                while a pool is in use. The host waits for it.
        """
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        if makes_room:
            torch.cuda.empty_cache()
        with (
            torch.cuda.stream(self._stream),
            torch.cuda.use_mem_pool(self._pool, self._device),
            torch.autograd.set_multithreading_enabled(False),
        ):
            results = run()
        outside.wait_stream(self._stream)
        # Graphs that were recorded before write where the pool was free then: here.
        return {name: value.clone() for name, value in results.items()}

    def record(self, run: Run) -> Recording:
        """Records; what ``run`` gives has values only after a replay."""
        outside = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                # Other threads, which pin batches and write checkpoints, may go on with that.
                torch.cuda.graph(
                    graph,
                    pool=self._pool.id,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ),
                torch.autograd.set_multithreading_enabled(False),
            ):
                results = run()
        except BaseException:
            self._leave(graph, outside)
            raise
        return _CudaRecording(graph, results)

    def _leave(self, graph: torch.cuda.CUDAGraph, outside: torch.cuda.Stream) -> None:
        """After a recording that broke, of which torch 2.11 leaves stream and pool in use."""
        torch.cuda.set_stream(outside)
        graph.reset()
        with suppress(RuntimeError):  # it has been left
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool.id)


@dataclass(frozen=True)
class _Pool:
    """A pool of graphs for ``use_mem_pool``, which asks for nothing else."""

    id: tuple[int, int]


@dataclass
class _CudaRecording:
    graph: torch.cuda.CUDAGraph
    results: dict[str, Tensor]

    def replay(self) -> None:
        self.graph.replay()


@dataclass
class _Bucket:
    batch: Batch  # what the graph reads
    steps: int = 0
    recording: Recording | None = None
    results: Tensor | None = None
    gradients: list[Tensor | None] = field(default_factory=list)


class GraphedStep:
    """A training step that is replayed from CUDA graphs, and taken plainly where it cannot be.

    The first steps of a bucket, those with padded images and slots of the same shapes, are taken
    plainly and warm up what a graph needs; then it is recorded. These are steps of the training
    like all others, with the kernels and the numbers that are recorded: a training that is resumed,
    and warms up once more, has the same bits. When there are more buckets than graphs, the one that
    was not used for the longest time is forgotten, and warms up again when it comes back.

    Args:
        take_step: the plain step.
        most: graphs at a time.
        recorder: what records them; by default CUDA.
        say: is given a sentence for each graph, and for what has none the reason.
    """

    def __init__(
        self,
        take_step: TrainingStep,
        most: int,
        recorder: Recorder | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.take_step = take_step
        self.say = say
        self.buckets: OrderedDict[tuple, _Bucket] = OrderedDict()
        self.failed: dict[tuple, str] = {}
        self._most = most
        device = take_step.runtime.torch_device
        self._recorder = recorder or CudaRecorder(device)
        groups = take_step.optimizer.param_groups
        self._parameters = [p for group in groups for p in group["params"]]
        self._rates = [torch.zeros((), device=device) for _ in groups]
        self._average_weight = torch.zeros((), device=device)

    def __call__(
        self, batches: Sequence[Batch], step: int, stopwatch: Stopwatch
    ) -> dict[str, Tensor]:
        """See :meth:`detector.engine.training_step.TrainingStep.__call__`, for a single batch."""
        (batch,) = map(self.take_step.runtime.move, batches)
        key = bucket_of(batch)
        self._set_numbers(step)
        if key in self.failed:  # in the memory that is there: another pool would take it twice
            return self._recorder.warm_up(
                lambda: self._take_plainly(batch, stopwatch), makes_room=False
            )
        bucket = self._bucket(key, batch)
        fill(bucket.batch, batch)
        stopwatch.lap("data")
        bucket.steps += 1
        if bucket.recording is None and bucket.steps > WARM_UP:
            self._record(key, bucket)
        if bucket.recording is None:
            return self._recorder.warm_up(lambda: self._take_plainly(bucket.batch, stopwatch))
        bucket.recording.replay()
        for parameter, gradient in zip(self._parameters, bucket.gradients, strict=True):
            parameter.grad = gradient  # for those who look at them: other graphs have others
        # Another graph may use the memory of the results.
        values = bucket.results.clone().unbind()
        stopwatch.lap("graph")
        return dict(zip(bucket.recording.results, values, strict=True))

    def _bucket(self, key: tuple, batch: Batch) -> _Bucket:
        if key not in self.buckets:
            while len(self.buckets) >= self._most:
                self.buckets.popitem(last=False)
            self.buckets[key] = _Bucket(with_room(batch))
        self.buckets.move_to_end(key)
        return self.buckets[key]

    def _take_plainly(self, batch: Batch, stopwatch: Stopwatch) -> dict[str, Tensor]:
        with _numbers_as_tensors(self.take_step.optimizer, self._rates):
            return self.take_step.record(batch, self._average_weight, stopwatch)

    def _record(self, key: tuple, bucket: _Bucket) -> None:
        """Records the bucket's graph, or notes why that cannot be."""
        began = time.perf_counter()
        optimizer = self.take_step.optimizer
        optimizer.zero_grad(set_to_none=True)  # the graph has gradients of its own

        def run() -> dict[str, Tensor]:
            found = self.take_step.record(bucket.batch, self._average_weight)
            bucket.results = torch.stack([value.float() for value in found.values()])
            bucket.gradients = [parameter.grad for parameter in self._parameters]
            return found

        try:
            with _numbers_as_tensors(optimizer, self._rates, capturable=True):
                bucket.recording = self._recorder.record(run)
        except Exception as error:  # whatever a step may do that a graph may not
            if isinstance(error, torch.OutOfMemoryError):
                why = "memory ran out while its graph was recorded"
            else:
                why = _first_reason(error)
            optimizer.zero_grad(set_to_none=True)
            del self.buckets[key]
            self.failed[key] = why
            self.say(f"warning: steps of {describe(bucket.batch)} have no CUDA graph: {why}")
            return
        recorded = sum(other.recording is not None for other in self.buckets.values())
        self.say(
            f"recorded steps of {describe(bucket.batch)} as a CUDA graph, {recorded} of at most "
            f"{self._most}, in {time.perf_counter() - began:.1f} s"
        )

    def _set_numbers(self, step: int) -> None:
        """What changes from step to step and is no part of the batch."""
        take_step = self.take_step
        take_step.seed_step(step)
        for rate, group in zip(self._rates, take_step.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        if take_step.average:
            self._average_weight.fill_(take_step.average.weight(step + 1))


def why_not(take_step: TrainingStep, accumulate: int) -> str | None:
    """Why the steps of a training cannot be graphs, if they cannot."""
    runtime = take_step.runtime
    if runtime.torch_device.type != "cuda":
        return "it takes an NVIDIA GPU"
    if accumulate > 1:
        return f"a step is {accumulate} batches (training.accumulate)"
    if take_step.parallel.ranks.size > 1:
        return "several ranks exchange their gradients"
    if runtime.precision == "fp16":
        return "the loss scale of fp16 belongs to the host; bf16 needs none"
    if not take_step.guard.is_fused:
        name = type(take_step.optimizer).__name__
        return f"{name} is not fused and asks the GPU in each step; set optimizer.fused=true"
    return None


def bucket_of(batch: Batch) -> tuple:
    """What two batches have in common that one graph serves."""
    key: list[object] = [batch.images.shape]
    if (targets := batch.targets) is not None:
        key += [_roomy(targets.valid.shape[1], GT_SLOTS), targets.seeds is None]
        if targets.keypoints is not None:
            key.append(("keypoints", targets.keypoints.shape[2]))
        if (polygons := targets.polygons) is not None:
            slots = _roomy(polygons.edges.shape[1], EDGE_SLOTS)
            key.append(("polygons", slots, _roomy(polygons.max_edges, MAX_EDGES)))
    if batch.proposals is not None:
        key.append(("proposals", batch.proposals.valid.shape[1]))
    return tuple(key)


def with_room(batch: Batch) -> Batch:
    """Zeros of the batch's bucket, with as many slots as any of its batches needs."""
    targets = batch.targets
    if targets is not None:
        changes: dict[str, Any] = {
            name: _zeros(value, _roomy(value.shape[1], GT_SLOTS))
            for name in ("boxes", "labels", "valid", "keypoints")
            if (value := getattr(targets, name)) is not None
        }
        if targets.seeds is not None:
            changes["seeds"] = torch.zeros_like(targets.seeds)
        if (polygons := targets.polygons) is not None:
            changes["polygons"] = Polygons(
                edges=_zeros(polygons.edges, _roomy(polygons.edges.shape[1], EDGE_SLOTS)),
                offsets=_zeros(polygons.offsets, _roomy(targets.valid.shape[1], GT_SLOTS) + 1),
                max_edges=_roomy(polygons.max_edges, MAX_EDGES),
            )
        targets = dataclasses.replace(targets, **changes)
    return dataclasses.replace(batch._map(torch.zeros_like), targets=targets)


def fill(place: Batch, batch: Batch) -> None:
    """Copies a batch into :func:`with_room` of one of its bucket; the slots after it are empty."""
    for name in ("images", "image_sizes"):
        getattr(place, name).copy_(getattr(batch, name), non_blocking=True)
    if batch.proposals is not None:
        _copy(place.proposals, batch.proposals)
    if batch.targets is not None:
        _copy(place.targets, batch.targets)


def describe(batch: Batch) -> str:
    """``"16 images of 800x1344 with 64 gt slots"``."""
    count, _, height, width = batch.images.shape
    slots = "" if batch.targets is None else f" with {batch.targets.valid.shape[1]} gt slots"
    return f"{count} images of {height}x{width}{slots}"


def _copy(place: TensorStruct, given: TensorStruct) -> None:
    for name, value in _fields(given):
        target = getattr(place, name)
        if isinstance(value, TensorStruct):
            _copy(target, value)
        elif isinstance(value, Tensor):
            filled = value.shape[1] if value.dim() > 1 else len(value)
            if value.shape == target.shape:
                target.copy_(value, non_blocking=True)
                continue
            target[:, :filled].copy_(value, non_blocking=True)
            if name == "offsets":  # slots without edges begin and end where the last one ends
                target[:, filled:].copy_(value[:, -1:])
            else:
                target[:, filled:].zero_()


@contextmanager
def _numbers_as_tensors(
    optimizer: torch.optim.Optimizer, rates: list[Tensor], capturable: bool = False
) -> Iterator[None]:
    """Learning rates that a graph reads when it is replayed; outside they are numbers.

    What is ``capturable`` an optimiser wants to be told, and not told elsewhere; a fused one, whose
    count of steps is on the device in any case, computes the same.
    """
    former = [dict(group) for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
            if capturable and "capturable" in group:
                group["capturable"] = True
        yield
    finally:
        for group, values in zip(optimizer.param_groups, former, strict=True):
            group.update(values)


def _first_reason(error: BaseException) -> str:
    """A capture that was broken raises again when it ends: what broke it says more."""
    error = error.__context__ or error
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _fields(structure: Any) -> Iterator[tuple[str, Any]]:
    for part in dataclasses.fields(structure):
        yield part.name, getattr(structure, part.name)


def _zeros(like: Tensor, slots: int) -> Tensor:
    return like.new_zeros((like.shape[0], slots, *like.shape[2:]))


def _roomy(count: int, least: int) -> int:
    while least < count:
        least *= 4
    return least
