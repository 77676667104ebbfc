"""What a runtime asks for is done to the step, or it is said why not."""

from pathlib import Path

import pytest
import torch

from detector.engine.acceleration import accelerated, build_step
from detector.engine.stopwatch import Stopwatch
from tests.engine.toy_training import MASKS, toy_batches, toy_config, toy_step

CLOCK = Stopwatch(torch.device("cpu"))


@pytest.fixture
def build(shapes_root: Path, tmp_path: Path):
    return lambda *overrides: toy_step(shapes_root, tmp_path, *overrides)


def test_a_runtime_that_asks_for_what_is_not_there_is_told(build) -> None:
    step = build("runtime.graphs=8")
    said: list[str] = []
    assert accelerated(step, 1, said.append) is step
    assert said == ["warning: runtime.graphs=8 has no effect: it takes an NVIDIA GPU"]


def test_determinism_turns_compilation_off(build) -> None:
    step = build("runtime.compile=true")
    said: list[str] = []
    torch.use_deterministic_algorithms(True)
    try:
        accelerated(step, 1, said.append)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(said) == 1 and said[0].startswith("not compiled: deterministic=true")
    assert step.model.backbone._compiled_call_impl is None


def test_a_step_from_its_configuration(shapes_root: Path, tmp_path: Path) -> None:
    batches = toy_batches(shapes_root, tmp_path / "batches", 1)
    cfg = toy_config(shapes_root, tmp_path, *MASKS, "training.ema_decay=0.5")
    cfg.num_classes = 5
    runtime, model, step = build_step(cfg)
    before = model.backbone.layers[0].weight.clone()
    losses = step(batches[:1], 0, CLOCK)
    assert runtime.device == "cpu" and torch.isfinite(losses["loss"])
    assert not torch.equal(model.backbone.layers[0].weight, before)
