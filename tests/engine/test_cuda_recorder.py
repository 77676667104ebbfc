"""What the recorder asks of CUDA, by fakes: their order is the subject.

That CUDA does what is asked for is in tests/gpu.
"""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from detector.engine.graphs import CudaRecorder

GPU = torch.device("cuda", 0)


class Stream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, on fakes that behave as torch 2.11: a broken capture is not left."""
    log: list[str] = []
    outside = Stream("outside", log)

    class Graph:
        def replay(self) -> None:
            log.append("replay")

        def reset(self) -> None:
            log.append("reset")

    @contextmanager
    def capturing(graph, *, pool, stream, capture_error_mode):
        assert isinstance(graph, Graph) and capture_error_mode == "thread_local"
        log.append(f"capture on {stream.name} into {pool}")
        yield
        log.append("captured")

    @contextmanager
    def using(stream):
        log.append(f"on {stream.name}")
        yield
        log.append("off")

    @contextmanager
    def allocating(pool, device):
        assert device.index is not None, "torch refuses a GPU without its number"
        log.append(f"in {pool.id}")
        yield
        log.append("out")

    def end(device: int, pool: str) -> None:
        log.append(f"end {pool} on {device}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: outside)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda s: log.append(f"back on {s.name}"))
    monkeypatch.setattr(torch.cuda, "stream", using)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "the pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: log.append("empty"))
    monkeypatch.setattr(torch.cuda, "use_mem_pool", allocating)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch, "zeros", lambda size, device: torch.ones(size))  # of the keeper
    return log


@pytest.fixture
def recorder(log: list[str]) -> CudaRecorder:
    made = CudaRecorder(GPU)
    assert log == ["capture on side into the pool", "captured"], "what keeps the pool"
    log.clear()
    return made


def test_warming_up_is_on_the_stream_and_in_the_memory_of_graphs(log, recorder) -> None:
    given = {"loss": torch.ones(())}

    def run() -> dict[str, Tensor]:
        # Backward runs in the same thread: in another one it would allocate elsewhere.
        log.append("run" if not torch._C._is_multithreading_enabled() else "run in threads")
        return given

    found = recorder.warm_up(run)
    inside = ["on side", "in the pool", "run", "out", "off", "outside waits for side"]
    assert log == ["side waits for outside", "empty", *inside]
    # Older graphs write where these lie; what is handed out lies elsewhere.
    given["loss"].fill_(7)
    assert found["loss"] == 1
    log.clear()
    recorder.warm_up(run, makes_room=False)
    assert log == ["side waits for outside", *inside]


def test_a_recording_is_replayed(log, recorder) -> None:
    def run() -> dict[str, Tensor]:
        log.append("run" if not torch._C._is_multithreading_enabled() else "run in threads")
        return {"loss": torch.ones(())}

    recording = recorder.record(run)
    assert log == ["capture on side into the pool", "run", "captured"]
    recording.replay()
    assert log[-1] == "replay" and recording.results["loss"] == 1


def test_a_recording_that_breaks_leaves_stream_and_pool(log, recorder) -> None:
    def broken() -> dict[str, Tensor]:
        raise ValueError("operation not permitted when stream is capturing")

    with pytest.raises(ValueError, match="not permitted"):
        recorder.record(broken)
    expected = ["capture on side into the pool", "back on outside", "reset"]
    assert log == [*expected, "end the pool on 0"]


def test_what_has_been_left_is_not_left_again(log, recorder, monkeypatch) -> None:
    """Newer versions do it themselves, and refuse a second time."""

    def refused(device: int, pool: str) -> None:
        raise RuntimeError("not currently recording to it")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", refused, raising=False)
    with pytest.raises(ZeroDivisionError):
        recorder.record(lambda: {"loss": torch.ones(()) / (1 // 0)})
    assert log[-1] == "reset"
