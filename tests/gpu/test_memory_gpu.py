"""What only a GPU can show of its memory and of a trace.

``pytest -m gpu`` runs these; without a GPU they are skipped. The search for a batch, and what is
said when memory runs out, are tested without one in tests/engine.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from detector.commands.train import train
from detector.engine.checkpoint import checkpoint_config, load_checkpoint
from detector.engine.device_memory import GpuMemory, is_out_of_memory
from detector.engine.out_of_memory import OutOfMemory
from detector.rcnn import FasterRCNN
from tests.engine.toy_training import toy_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU"),
]

MIB = 2**20
ON_GPU = ("runtime.device=cuda", "training.max_steps=2")


def test_the_peak_is_what_was_allocated_and_is_given_back() -> None:
    memory = GpuMemory(torch.device("cuda", torch.cuda.current_device()))
    memory.begin()
    before = memory.used()
    values = torch.zeros(512 * MIB, dtype=torch.uint8, device="cuda")
    assert 512 * MIB <= memory.peak() - before < 640 * MIB
    del values
    memory.begin()
    assert memory.used() <= before
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(int(2 * memory.available()), dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(raised.value)


def heavy(monkeypatch: pytest.MonkeyPatch, each: int) -> None:
    """A model whose activations take so many bytes an image."""
    forward = FasterRCNN.forward

    def with_activations(self, images, *arguments):
        activations = torch.ones(len(images), each // 4, device=images.device)
        losses = forward(self, images, *arguments)
        return {**losses, "loss_box": losses["loss_box"] + 0 * activations.sum()}

    monkeypatch.setattr(FasterRCNN, "forward", with_activations)


def test_a_budget_decides(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heavy(monkeypatch, 1024 * MIB)
    limit = "training.memory_limit=3.9GiB"
    train(toy_config(shapes_root, tmp_path, *ON_GPU, "data.batch_size=auto", limit))
    found = checkpoint_config(load_checkpoint(tmp_path), allow_code=True).data.batch_size
    assert found == 3


def test_a_batch_that_does_not_fit_is_named(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, total = torch.cuda.mem_get_info()
    heavy(monkeypatch, int(0.6 * total))
    with pytest.raises(OutOfMemory, match=r"training, step 1, with 2 images .* on cuda") as raised:
        train(toy_config(shapes_root, tmp_path, *ON_GPU))
    assert "data.batch_size=1 training.accumulate=2" in str(raised.value)


def test_a_trace_has_the_kernels(shapes_root: Path, tmp_path: Path) -> None:
    train(toy_config(shapes_root, tmp_path, *ON_GPU, "profiler.steps=1", "profiler.start=1"))
    [path] = (tmp_path / "profile").iterdir()
    events = json.loads(path.read_text())["traceEvents"]
    assert any(event.get("cat") == "kernel" for event in events)
    assert {"step 2", "forward", "backward", "update"} <= {event.get("name") for event in events}
