"""Graphs of the training step, with a recorder that runs the recorded function again.

What only CUDA can show, that nothing in the step is fixed but what should be, is in tests/gpu.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from detector.engine import graphs
from detector.engine.distributed import Ranks
from detector.engine.graphs import (
    WARM_UP,
    GraphedStep,
    _numbers_as_tensors,
    bucket_of,
    fill,
    why_not,
    with_room,
)
from detector.engine.optimizer import set_learning_rate
from detector.engine.prefetch import tensors_of
from detector.engine.runtime import Runtime
from detector.engine.stopwatch import Stopwatch
from detector.engine.training_step import TrainingStep
from detector.ops.slots import keep_empty_slots
from tests.engine.toy_training import toy_batches, toy_step
from tests.rcnn.test_fixed_shapes import Guard

CLOCK = Stopwatch(torch.device("cpu"))


class Rerun:
    """Records a function by keeping it, with the learning rates that it found."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.log: list[str] = []

    def warm_up(self, run, makes_room=True):
        self.log.append("warm up" if makes_room else "plain")
        return run()

    def record(self, run):
        self.log.append("record")
        return Rerunning(self, run, [group["lr"] for group in self.optimizer.param_groups])


class Rerunning:
    def __init__(self, recorder: Rerun, run, rates) -> None:
        assert all(isinstance(rate, Tensor) for rate in rates)
        self.recorder, self.run, self.rates = recorder, run, rates

    def replay(self) -> None:
        self.recorder.log.append("replay")
        groups = self.recorder.optimizer.param_groups
        given = [group["lr"] for group in groups]
        assert all(isinstance(rate, float) for rate in given)
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
        self.results = self.run()
        for group, rate in zip(groups, given, strict=True):
            group["lr"] = rate


def graphed(step: TrainingStep, most: int = 4, **options) -> GraphedStep:
    return GraphedStep(step, most, Rerun(step.optimizer), **options)


@pytest.fixture(scope="module")
def batches(shapes_root: Path, tmp_path_factory):
    return toy_batches(shapes_root, tmp_path_factory.mktemp("batches"), 6)


@pytest.fixture
def build(shapes_root: Path, tmp_path: Path):
    return lambda *overrides, **options: toy_step(shapes_root, tmp_path, *overrides, **options)


def take(run, step: TrainingStep, batches, count: int) -> list[dict[str, Tensor]]:
    """``count`` steps with a learning rate that falls."""
    found = []
    for number in range(count):
        set_learning_rate(step.optimizer, lambda n: 1 / (n + 1), number)
        found.append(run([batches[number % len(batches)]], number, CLOCK))
    return found


def assert_equal_steps(expected, found, rtol: float = 1e-4) -> None:
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert list(one) == list(other)
        for name, value in one.items():
            torch.testing.assert_close(
                other[name], value, rtol=rtol, atol=1e-5, msg=f"{name} of step {number}"
            )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_replayed_steps_are_the_plain_ones(optimizer: str, build, batches) -> None:
    """Falling rates, the average's growing memory, momenta, and slots added to each batch."""
    options = (f"optimizer={optimizer}", "optimizer.lr=0.002")
    plain, step = build(*options, average=0.9), build(*options, average=0.9)
    run = graphed(step)
    expected = take(plain, plain, batches, 8)
    found = take(run, step, batches, 8)
    assert run._recorder.log == ["warm up"] * WARM_UP + ["record"] + ["replay"] * (8 - WARM_UP)
    assert_equal_steps(expected, found)
    for one, other in ((plain.model, step.model), (plain.average.model, step.average.model)):
        for name, value in one.state_dict().items():
            if optimizer == "adamw" and name.startswith("backbone") and "weight" not in name:
                continue  # before a norm a bias has rounding for a gradient, and Adam enlarges it
            torch.testing.assert_close(
                other.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name
            )


def test_what_torch_draws_is_drawn_anew_in_each_replay(build, batches) -> None:
    """Without seeds of the images, sampling draws from torch's generator."""
    given = []
    for batch in batches:
        place = with_room(batch)
        fill(place, batch)
        targets = graphs.dataclasses.replace(place.targets, seeds=None)
        given.append(graphs.dataclasses.replace(place, targets=targets))
    plain, step = build(), build()
    expected = take(plain, plain, given[:1], 7)
    assert_equal_steps(expected, take(graphed(step), step, given[:1], 7), rtol=1e-6)


def test_everything_a_graph_reads_or_writes_stays_where_it_is(build, batches) -> None:
    step = build("optimizer=adamw", average=0.9)
    run = graphed(step)
    take(run, step, batches, WARM_UP + 1)

    def places() -> list[int]:
        (bucket,) = run.buckets.values()
        tensors = [*step.model.state_dict().values(), *step.average.model.state_dict().values()]
        tensors += [t for s in step.optimizer.state.values() for t in s.values()]
        tensors += [*tensors_of(bucket.batch), *run._rates, run._average_weight]
        tensors += [step.guard._bad, step.guard._in_a_row, step.guard._frozen]
        return [tensor.data_ptr() for tensor in tensors]

    before = places()
    take(run, step, batches, 3)
    assert places() == before


def test_warming_up_once_more_changes_no_bit(build, batches) -> None:
    """As when training is resumed, or a bucket comes back."""
    found = []
    for again in (False, True):
        step = build(average=0.9)
        run = graphed(step)
        losses = take(run, step, batches, 6)
        if again:
            run.buckets.clear()
        for number in range(6, 10):
            set_learning_rate(step.optimizer, lambda n: 1 / (n + 1), number)
            losses.append(run([batches[number % len(batches)]], number, CLOCK))
        assert run._recorder.log.count("warm up") == WARM_UP * (1 + again)
        found.append((losses, step.model.state_dict(), step.average.model.state_dict()))
    (losses, *weights), (others, *other_weights) = found
    for one, other in zip([*losses, *weights], [*others, *other_weights], strict=True):
        assert all(torch.equal(other[name], value) for name, value in one.items())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_whole_recorded_step_asks_nothing(optimizer: str, build, batches) -> None:
    """Forward to average, as a GPU takes it, whose guard does not look; likewise for all images."""
    step = build(f"optimizer={optimizer}", average=0.9)
    step.guard._on_gpu = step.guard._fused = True
    run = graphed(step)
    take(run, step, batches, WARM_UP)  # momenta are there
    (bucket,) = run.buckets.values()
    calls = []
    for batch in batches[:2]:
        fill(bucket.batch, batch)
        with (
            _numbers_as_tensors(step.optimizer, run._rates),
            keep_empty_slots(),
            Guard() as guard,
        ):
            step.record(bucket.batch, run._average_weight)
        calls.append(guard.calls)
    assert calls[0] == calls[1] and sum(calls[0].values()) > 500
    (name,) = [name for name in calls[0] if "fused" in name]
    assert name.endswith("tensor_lr"), "a rate that is a number would be recorded as it is"
    assert any("_foreach_mul_.Tensor" in name for name in calls[0])


def test_a_bad_step_freezes_replays_too(build, batches, monkeypatch: pytest.MonkeyPatch) -> None:
    step = build()
    run = graphed(step)
    take(run, step, batches, WARM_UP + 1)
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    step.model.normalizer.std.mul_(0)
    run([batches[0]], 5, CLOCK)
    assert step.guard.knows_bad
    step.model.normalizer.std.add_(1)
    run([batches[0]], 6, CLOCK)
    assert step.guard.knows_bad
    for name, value in step.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_buckets_have_the_slots_of_all_their_batches(batches) -> None:
    targets = batches[0].targets
    place = with_room(batches[0])
    assert place.targets.boxes.shape == (2, 64, 4) and place.targets.labels.shape == (2, 64)
    assert place.targets.polygons.edges.shape == (2, 4096, 4)
    assert place.targets.polygons.offsets.shape == (2, 65) and place.images.shape == (
        batches[0].images.shape
    )
    assert all(not tensor.any() for tensor in tensors_of(place))
    # What a former batch has left behind goes.
    for tensor in tensors_of(place):
        tensor.fill_(1)
    fill(place, batches[0])
    num_gts = targets.valid.shape[1]
    assert torch.equal(place.targets.boxes[:, :num_gts], targets.boxes)
    assert not place.targets.valid[:, num_gts:].any() and not place.targets.boxes[:, num_gts:].any()
    assert torch.equal(place.targets.seeds, targets.seeds)
    edges, offsets = place.targets.polygons.edges, place.targets.polygons.offsets
    assert torch.equal(offsets[:, : num_gts + 1], targets.polygons.offsets)
    assert (offsets[:, num_gts:] == targets.polygons.offsets[:, -1:]).all()
    assert not edges[:, targets.polygons.edges.shape[1] :].any()
    assert bucket_of(place) == bucket_of(batches[0])


def with_shape(batch, height: int, width: int):
    return graphs.dataclasses.replace(
        batch, images=torch.zeros(2, 3, height, width, dtype=torch.uint8)
    )


def test_batches_of_different_shapes_have_different_buckets(batches) -> None:
    batch = batches[0]
    assert len({bucket_of(one) for one in batches}) == 1, "few slots are rounded up alike"
    others = [
        with_shape(batch, 64, 96),
        with_shape(batch, 96, 64),
        graphs.dataclasses.replace(batch, targets=with_slots(batch.targets, 65)),
        graphs.dataclasses.replace(
            batch, targets=graphs.dataclasses.replace(batch.targets, polygons=None)
        ),
    ]
    assert len({bucket_of(one) for one in (batch, *others)}) == 5


def with_slots(targets, count: int):
    grown = {
        name: torch.zeros(2, count, *value.shape[2:], dtype=value.dtype)
        for name in ("boxes", "labels", "valid")
        for value in [getattr(targets, name)]
    }
    return graphs.dataclasses.replace(targets, **grown)


def test_the_pool_is_bounded_and_forgets_what_was_used_longest_ago(
    build, batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = build()
    said: list[str] = []
    run = graphed(step, most=2, say=said.append)
    shapes = [batches[0], with_shape(batches[0], 64, 96), with_shape(batches[0], 96, 64)]
    keys = [bucket_of(batch) for batch in shapes]
    number = 0
    for chosen in (0, 0, 0, 0, 1, 1, 1, 1, 0, 2):
        run([shapes[chosen]], number, CLOCK)
        number += 1
        assert len(run.buckets) <= 2
    assert list(run.buckets) == [keys[0], keys[2]], "the second was used longest ago"
    log = run._recorder.log
    assert log.count("record") == 2 and log[-2:] == ["replay", "warm up"]
    run([shapes[1]], number, CLOCK)
    assert log[-1] == "warm up", "it begins again"
    assert "2 images of 64x96 with 64 gt slots" in said[1] and "2 of at most 2" in said[1]


def test_what_cannot_be_recorded_is_taken_plainly_and_why_is_said_once(build, batches) -> None:
    class Refusing(Rerun):
        def record(self, run):
            try:
                # As far as it gets, a capture changes nothing; here it would.
                raise ValueError("operation not permitted when stream is capturing")
            except ValueError:
                raise RuntimeError("capture failed") from None

    plain, step = build(average=0.9), build(average=0.9)
    said: list[str] = []
    run = GraphedStep(step, 2, Refusing(step.optimizer), said.append)
    expected = take(plain, plain, batches, 6)
    found = take(run, step, batches, 6)
    assert_equal_steps(expected, found)
    assert len(said) == 1 and "have no CUDA graph: ValueError: operation not permitted" in said[0]
    assert said[0].startswith("warning: steps of 2 images of ")
    assert not run.buckets and len(run.failed) == 1
    # With what it takes: the memory of the graphs, which would else lie idle.
    assert run._recorder.log == ["warm up"] * (WARM_UP + 1) + ["plain"] * 2
    assert all(isinstance(group["lr"], float) for group in step.optimizer.param_groups)


def test_trainings_that_cannot_have_graphs(build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU by name: the reasons come before anything is asked of it."""
    step = build()
    assert why_not(step, 1) == "it takes an NVIDIA GPU"
    monkeypatch.setattr(Runtime, "torch_device", torch.device("cuda"))
    assert "SGD is not fused" in why_not(step, 1)
    step.guard._fused = True
    assert why_not(step, 1) is None
    assert "a step is 4 batches" in why_not(step, 4)
    object.__setattr__(step.runtime, "precision", "fp16")
    assert "fp16" in why_not(step, 1)
    object.__setattr__(step.runtime, "precision", "bf16")
    step.parallel.ranks = Ranks()
    step.parallel.ranks.size = 2
    assert "several ranks" in why_not(step, 1)


def test_slots_are_rounded_up_to_few_numbers() -> None:
    assert {graphs._roomy(2**power, graphs.GT_SLOTS) for power in range(3, 9)} == {64, 256}
