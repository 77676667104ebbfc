"""Batches on their way to the device. Streams and events are fakes: their order is the subject."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from detector.engine.prefetch import prefetched, tensors_of
from detector.engine.runtime import Runtime
from detector.structures import Batch, Targets


def make_batch(number: int) -> Batch:
    boxes = torch.zeros(1, 2, 4)
    targets = Targets(boxes, boxes[..., 0].long(), boxes[..., 0] > 0, seeds=torch.tensor([number]))
    size = torch.tensor([[32, 32]])
    return Batch(torch.zeros(1, 3, 32, 32), size, size, torch.tensor([number]), targets)


class Counted:
    """Batches without end, and how many were taken."""

    taken = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.taken += 1
            yield make_batch(self.taken)


def test_on_a_cpu_batches_pass_as_they_are() -> None:
    batches = [make_batch(number) for number in range(3)]
    assert all(a is b for a, b in zip(prefetched(batches, Runtime("cpu")), batches, strict=True))


def test_all_tensors_are_found() -> None:
    batch = make_batch(5)
    assert len(list(tensors_of(batch))) == 8 and any(
        t is batch.targets.seeds for t in tensors_of(batch)
    )


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the GPU that torch now believes in."""
    happened: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name, self.events = name, 0

        def wait_stream(self, other: "Stream") -> None:
            happened.append(f"{self.name} waits for {other.name}")

        def record_event(self) -> "Event":
            self.events += 1
            return Event(self.events)

    class Event:
        def __init__(self, number: int) -> None:
            self.number = number

        def synchronize(self) -> None:
            happened.append(f"host waits for step {self.number}")

    @contextmanager
    def using(stream: Stream) -> Iterator[None]:
        happened.append(f"on {stream.name}")
        yield
        happened.append("off")

    step = Stream("step")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copy"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: step)
    monkeypatch.setattr(torch.cuda, "stream", using)
    monkeypatch.setattr(Runtime, "torch_device", torch.device("cuda"))
    monkeypatch.setattr(
        Runtime,
        "move",
        lambda self, batch: happened.append(f"copy {int(batch.image_ids)}") or batch,
    )
    return happened


def test_copies_have_their_stream_and_the_host_is_two_steps_ahead(log: list[str]) -> None:
    source = Counted()
    batches = prefetched(source, Runtime("cpu"))
    for number in (1, 2):
        next(batches)
        assert log == ["on copy", f"copy {number}", "off", "step waits for copy"]
        assert source.taken == number, "a batch that was not asked for stays with the loader"
        log.clear()
    for number in (3, 4):
        next(batches)
        assert log[0] == f"host waits for step {number - 2}" and log[2] == f"copy {number}"
        log.clear()


def test_what_the_host_asks_for_stays_on_the_host() -> None:
    """The meta device stands for a GPU: it has no numbers, and the ids are still there."""
    runtime = Runtime("cpu", channels_last=True)
    object.__setattr__(runtime, "device", "meta")
    batch = make_batch(7)
    moved = runtime.move(batch)
    assert moved.image_ids.tolist() == [7] and moved.original_sizes.device.type == "cpu"
    on_device = [moved.images, moved.image_sizes, *tensors_of(moved.targets)]
    assert all(tensor.is_meta for tensor in on_device)
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    assert moved.images.dtype == batch.images.dtype
