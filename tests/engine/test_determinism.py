import random
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.commands.train import train
from detector.engine.checkpoint import load_checkpoint
from tests.engine.toy_training import toy_config


@pytest.fixture(scope="module")
def first_weights(shapes_root: Path, tmp_path_factory) -> dict[str, torch.Tensor]:
    run_dir = tmp_path_factory.mktemp("deterministic") / "run"
    try:
        train(
            toy_config(shapes_root, run_dir, "deterministic=true", "seed=3", "data.num_workers=1")
        )
    finally:
        torch.use_deterministic_algorithms(False)
    return load_checkpoint(run_dir)["model"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_deterministic_training_repeats_itself(
    num_workers: int, shapes_root: Path, tmp_path: Path, first_weights: dict
) -> None:
    """Whatever ran before in this process, and however many prepare the batches."""
    random.seed(num_workers)
    np.random.seed(num_workers)
    torch.manual_seed(num_workers)
    overrides = ("deterministic=true", "seed=3", f"data.num_workers={num_workers}")
    try:
        train(toy_config(shapes_root, tmp_path, *overrides))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    found = load_checkpoint(tmp_path)["model"]
    assert all(torch.equal(found[name], value) for name, value in first_weights.items())
