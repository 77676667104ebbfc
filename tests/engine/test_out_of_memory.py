"""Memory that runs out in a training, an evaluation and a prediction: what is said of it."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from detector.commands.evaluate import evaluate
from detector.commands.train import train
from detector.engine.checkpoint import load_checkpoint
from detector.engine.out_of_memory import OutOfMemory, explained_detection, memory_explained
from detector.engine.runtime import Runtime
from detector.predictor import load
from detector.rcnn import FasterRCNN
from detector.structures import Batch
from tests.engine.toy_training import toy_config

GPU = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ..."
)
HOST = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"
)
ARGUMENTS = ["tools/train.py", "experiment=shapes", "data.batch_size=4", "run_dir=elsewhere"]


def fail_in_call(monkeypatch, method: str, call: int, error: Exception) -> None:
    """The ``call``-th call of a model's method (1 is the first) raises ``error``."""
    original, calls = getattr(FasterRCNN, method), []

    def counted(self, *arguments):
        calls.append(None)
        if len(calls) == call:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(FasterRCNN, method, counted)


def without_batch_norm(*arguments) -> DictConfig:
    """The toy training: batch norm would see the parts of a step one by one."""
    cfg = toy_config(*arguments)
    cfg.model.backbone.norm = "gn"
    return cfg


@pytest.mark.parametrize("error", [GPU, HOST], ids=["gpu", "cpu"])
def test_in_training_the_step_the_batch_and_the_way_on_are_named(
    error: Exception, shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    four = ("data.batch_size=4", "checkpoint.every=2")
    run, whole = tmp_path / "run", tmp_path / "whole"
    with monkeypatch.context() as patch, pytest.raises(OutOfMemory) as raised:
        patch.setattr(sys, "argv", [*ARGUMENTS, "training.accumulate=1"])
        fail_in_call(patch, "forward", 5, error)
        train(without_batch_norm(shapes_root, run, *four))
    said = str(raised.value)
    assert said.startswith("out of memory in training, step 5, with 4 images padded to ")
    assert re.search(
        r"8 gt slots \([1-8] filled at most\), image ids \[\d+, \d+, \d+, \d+\]\.", said
    )
    assert re.search(r"Peak \d+\.\d\d GiB, of \d+\.\d\d that this process may have on cpu", said)
    assert raised.value.__cause__.__cause__ is error
    first, second, *others = said.partition("Lower, in this order:\n")[2].splitlines()
    assert "data.batch_size=2 training.accumulate=2" in first and "precision=bf16" in second
    assert any("augment.train and data.buckets" in line for line in others)
    assert load_checkpoint(run)["step"] == 4
    assert f"{run / 'checkpoints' / 'last.pt'} stays" in said
    command = shlex.split(said.splitlines()[-1])
    assert command[-5:] == [
        "experiment=shapes",
        *("data.batch_size=2", "training.accumulate=2"),
        *(f"run_dir={run}", "resume=auto"),
    ]
    # That command trains on, with the same images in each step.
    train(without_batch_norm(shapes_root, run, *four[1:], *command[-4:-2], "resume=auto"))
    train(without_batch_norm(shapes_root, whole, *four))
    one, other = load_checkpoint(run), load_checkpoint(whole)
    assert one["step"] == other["step"] == 6 and one["loader"]["epoch"] == other["loader"]["epoch"]
    for name, value in one["model"].items():
        torch.testing.assert_close(value, other["model"][name], rtol=1e-4, atol=1e-5, msg=name)


def test_in_the_evaluation_of_a_training(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in_call(monkeypatch, "detect", 2, GPU)
    with pytest.raises(OutOfMemory) as raised:
        train(toy_config(shapes_root, tmp_path, "training.max_steps=2"))
    said = str(raised.value)
    assert "out of memory in evaluation, batch 2, with 2 images padded to 128x128" in said
    assert "data.val_batch_size=1 (now 2)" in said and "last.pt stays" in said
    assert said.endswith(f"data.val_batch_size=1 run_dir={tmp_path} resume=auto")
    assert load_checkpoint(tmp_path)["step"] == 2


def test_in_evaluating_and_predicting(
    trained: Path, compose_tool, shapes_root: Path, tmp_path: Path, monkeypatch
) -> None:
    fail_in_call(monkeypatch, "detect", 1, GPU)
    config = compose_tool("evaluate", f"checkpoint={trained}", f"output={tmp_path}")
    with pytest.raises(OutOfMemory, match=r"in evaluation, batch 1, with 2 images .*image ids \["):
        evaluate(config)
    fail_in_call(monkeypatch, "detect", 1, HOST)
    with pytest.raises(OutOfMemory, match=r"(?s)in detection, with 1 image .*augment\.val") as said:
        load(trained, "cpu").predict(np.zeros((64, 96, 3), np.uint8))
    assert "val_batch_size" not in str(said.value)


def test_elsewhere_and_in_a_data_worker(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self, *arguments):
        raise RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly; killed by signal")

    def refused(self, *arguments):
        raise MemoryError

    for name, fail, expected in (
        ("killed", killed, "data.num_workers=2"),
        ("refused", refused, "data.batch_size=1 training.accumulate=2"),
    ):
        with monkeypatch.context() as patch, pytest.raises(OutOfMemory) as raised:
            patch.setattr("detector.data.collate.Collate.__call__", fail)
            cfg = toy_config(shapes_root, tmp_path / name)
            cfg.data.num_workers = 4 if name == "killed" else 0
            patch.setattr("detector.data.loader._loader_options", lambda *options: {})
            train(cfg)
        assert "No checkpoint has been written yet; begin again" in str(raised.value)
        assert expected in str(raised.value).splitlines()[-1]


def test_other_errors_pass_as_they_are() -> None:
    runtime = Runtime("cpu")
    with (
        pytest.raises(RuntimeError, match="shapes") as raised,
        memory_explained("", [], runtime, []),
    ):
        raise RuntimeError("shapes")
    assert not isinstance(raised.value, MemoryError)


@pytest.mark.parametrize("graphs", [0, 8])
def test_graphs_are_named_where_they_keep_memory(graphs: int) -> None:
    """In an evaluation, whose memory comes on top of theirs."""
    images = torch.zeros(1, 3, 32, 32)
    batch = Batch(images, torch.tensor([[32, 32]]), torch.tensor([[32, 32]]), torch.tensor([1]))
    with (
        pytest.raises(OutOfMemory) as raised,
        explained_detection("evaluating", batch, Runtime("cpu", graphs=graphs)),
    ):
        raise MemoryError
    assert ("runtime.graphs=0" in str(raised.value)) == bool(graphs)
