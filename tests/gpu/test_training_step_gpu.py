"""The training step on a GPU: graphs against plain steps, and what a step asks the GPU.

``pytest -m gpu`` runs these; without a GPU they are skipped. What needs none of it, the choice of
buckets and what is said, is in tests/engine/test_graphs.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detector.engine.acceleration import accelerated
from detector.engine.graphs import WARM_UP, GraphedStep, bucket_of, fill, with_room
from detector.engine.optimizer import set_learning_rate
from detector.engine.prefetch import prefetched, tensors_of
from detector.engine.randomness import set_deterministic
from detector.engine.stopwatch import Stopwatch
from detector.structures import Batch
from tests.engine.toy_training import toy_batches, toy_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU"),
    # Slower paths wait for the GPU and cannot be recorded: a test must not pass by them.
    pytest.mark.filterwarnings("error:The CUDA kernels:RuntimeWarning"),
    pytest.mark.filterwarnings("error:.* could not be compiled:RuntimeWarning"),
]

ON_GPU = ("runtime.device=cuda", "runtime.channels_last=true", "optimizer.lr=0.002")
FAST = ("runtime.precision=bf16", "runtime.compile=true", "runtime.graphs=4", "runtime.tf32=true")


@pytest.fixture(scope="module")
def batches(shapes_root: Path, tmp_path_factory) -> list[Batch]:
    """Pinned, and with the slots of their bucket, so that plain steps have the same shapes."""
    given = toy_batches(shapes_root, tmp_path_factory.mktemp("batches"), 6)
    places = [with_room(batch) for batch in given]
    for place, batch in zip(places, given, strict=True):
        fill(place, batch)
    return [place.pin_memory() for place in places]


@pytest.fixture
def build(shapes_root: Path, tmp_path: Path):
    return lambda *overrides, **options: toy_step(
        shapes_root, tmp_path, *ON_GPU, *overrides, **options
    )


@pytest.fixture
def deterministic() -> Iterator[None]:
    set_deterministic(True)
    yield
    set_deterministic(False)


@contextmanager
def without_questions() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def take(run, step, batches: list[Batch], steps: range) -> list[dict[str, Tensor]]:
    clock = Stopwatch(torch.device("cuda"))
    given = (batches[number % len(batches)] for number in steps)
    found = []
    for number, batch in zip(steps, prefetched(given, step.runtime), strict=False):
        set_learning_rate(step.optimizer, lambda n: 1 / (n + 1), number)
        clock.start()
        found.append(run([batch], number, clock))
    return found


def cropped(batch: Batch, height: int, width: int) -> Batch:
    """Of another bucket."""
    images = batch.images[..., :height, :width].contiguous().pin_memory()
    return dataclasses.replace(batch, images=images)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_replayed_steps_are_the_plain_ones(optimizer: str, build, batches, deterministic) -> None:
    """30 steps: falling rates, an average of the weights, clipping; both repeat their bits."""
    plain = build(f"optimizer={optimizer}", "optimizer.lr=0.0005", average=0.9)
    step = build(f"optimizer={optimizer}", "optimizer.lr=0.0005", average=0.9)
    said: list[str] = []
    run = GraphedStep(step, 2, say=said.append)
    expected = take(plain, plain, batches, range(30))
    found = take(run, step, batches, range(30))
    assert not run.failed, run.failed
    assert len(said) == 1 and "as a CUDA graph, 1 of at most 2" in said[0]
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert list(one) == list(other)
        for name, value in one.items():
            # Rates are float32 in a graph and float64 outside.
            torch.testing.assert_close(
                other[name], value, rtol=1e-3, atol=1e-4, msg=f"{name} of step {number}"
            )
    first = {name: value.clone() for name, value in step.average.model.state_dict().items()}
    for name, value in plain.average.model.state_dict().items():
        if "weight" in name:
            torch.testing.assert_close(first[name], value, rtol=1e-2, atol=1e-3, msg=name)


def test_two_graphed_trainings_have_the_same_bits(build, batches, deterministic) -> None:
    results = []
    for _ in range(2):
        step = build()
        found = take(GraphedStep(step, 2), step, batches, range(12))
        results.append((found, step.model.state_dict()))
    (first, weights), (second, again) = results
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(other[name], value) for name, value in one.items())
    assert all(torch.equal(again[name], value) for name, value in weights.items())


def test_warming_up_once_more_changes_no_bit(build, batches, deterministic) -> None:
    """As when training is resumed, or a bucket comes back."""
    results = []
    for again in (False, True):
        step = build(average=0.9)
        run = GraphedStep(step, 2)
        found = take(run, step, batches, range(6))
        if again:
            run.buckets.clear()
        found += take(run, step, batches, range(6, 12))
        results.append([*found, step.model.state_dict(), step.average.model.state_dict()])
    for one, other in zip(*results, strict=True):
        assert all(torch.equal(other[name], value) for name, value in one.items())


def test_compiled_and_graphed_losses_follow_the_plain_ones(build, batches) -> None:
    """300 steps in bf16: as far apart as two plain trainings that draw other samples."""
    plain, other = build("runtime.precision=bf16"), build("runtime.precision=bf16")
    other.seed = 1
    fast = build(*FAST)
    run = accelerated(fast, say=lambda text: None)
    curves = [
        torch.stack([found["loss"] for found in take(function, step, batches, range(300))])
        for function, step in ((plain, plain), (other, other), (run, fast))
    ]
    assert not run.failed, run.failed
    expected, noise, found = (curve[100:].mean().item() for curve in curves)
    assert abs(found - expected) <= max(3 * abs(noise - expected), 0.02 * expected)


@pytest.mark.parametrize("settings", [(), FAST], ids=["plain", "compiled and graphed"])
def test_a_step_asks_the_gpu_nothing(settings, build, batches) -> None:
    step = build(*settings, average=0.9)
    run = accelerated(step, say=lambda text: None)
    take(run, step, batches, range(WARM_UP + 2))
    with without_questions():
        take(run, step, batches, range(WARM_UP + 2, WARM_UP + 8))


def test_a_bad_step_changes_nothing_and_is_seen_when_read(build, batches) -> None:
    step = build(average=0.9)
    run = GraphedStep(step, 2)
    take(run, step, batches, range(WARM_UP + 2))
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    step.model.normalizer.std.zero_()
    assert not torch.isfinite(take(run, step, batches, range(5, 6))[0]["gradient_norm"])
    assert all(torch.equal(step.model.state_dict()[n], value) for n, value in before.items())


def test_losses_of_a_warm_up_outlive_replays_of_older_graphs(build, batches) -> None:
    """Training reads them many steps later, and both have the same memory."""
    step = build()
    run = GraphedStep(step, 2)
    take(run, step, batches, range(WARM_UP + 2))
    other = cropped(batches[0], 64, 96)
    (found,) = take(run, step, [other], range(1))
    before = {name: value.clone() for name, value in found.items()}
    take(run, step, batches, range(3))
    assert run.buckets[bucket_of(other)].recording is None and not run.failed, run.failed
    for name, value in before.items():
        assert torch.equal(found[name], value), name


def test_a_broken_recording_says_why_and_training_goes_on(build, batches) -> None:
    """Of one bucket; the next one is recorded all the same."""
    step = build()
    record = step.record

    def asking(batch: Batch, weight: Tensor, *stopwatch: Stopwatch) -> dict[str, Tensor]:
        found = record(batch, weight, *stopwatch)
        found["loss"].item()
        return found

    said: list[str] = []
    run = GraphedStep(step, 2, say=said.append)
    outside = torch.cuda.current_stream()
    step.record = asking
    take(run, step, batches, range(WARM_UP + 2))
    assert len(run.failed) == 1 and "have no CUDA graph: " in said[0]
    assert torch.cuda.current_stream() == outside
    step.record = record
    found = take(run, step, [cropped(batches[0], 64, 96)], range(WARM_UP + 2))
    assert "as a CUDA graph" in said[1] and len(run.failed) == 1, said
    found += take(run, step, batches, range(2))
    assert all(torch.isfinite(losses["loss"]) for losses in found)


def test_the_pool_is_bounded_and_memory_does_not_grow(build, batches) -> None:
    step = build()
    run = GraphedStep(step, 2)
    some = [cropped(batches[0], *shape) for shape in ((96, 96), (64, 96), (96, 64))]
    reserved = []
    for turn in range(4):
        for batch in some:
            take(run, step, [batch], range(WARM_UP + 2))
            assert len(run.buckets) <= 2 and not run.failed, run.failed
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        if turn:
            reserved.append(torch.cuda.memory_reserved())
    assert max(reserved) <= 1.1 * reserved[0]


def test_prefetched_batches_are_whole(build, batches) -> None:
    """While the GPU is busy and memory is used again at once."""
    runtime = build().runtime
    busy = torch.ones(4096, 4096, device="cuda")
    found = []
    for batch in prefetched(batches * 5, runtime):
        busy = busy @ busy / 4096
        found.append([tensor.float().sum() for tensor in tensors_of(batch) if tensor.is_cuda])
    torch.cuda.synchronize()
    for sums, batch in zip(found, batches * 5, strict=True):
        given = [batch.images, batch.image_sizes, *tensors_of(batch.targets)]
        for value, tensor in zip(sums, given, strict=True):
            torch.testing.assert_close(value.cpu(), tensor.float().sum(), rtol=1e-4, atol=1e-2)
