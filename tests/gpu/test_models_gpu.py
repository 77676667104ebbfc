"""Whole detectors on a GPU, ours beside torchvision's: the benchmark's own claims, on small images.

What is asserted does not depend on how fast the card is.
"""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from detector.benchmark.model_rows import measure_models
from detector.config_files import find_configs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("what", ["train", "infer"])
def test_sides_agree_and_a_training_step_never_waits(what):
    cfg = OmegaConf.load(find_configs() / "benchmark.yaml")
    cfg.merge_with({"what": what, "repeats": 1, "shapes": [[2, 256, 320], [2, 320, 256]]})
    report = measure_models(cfg, torch.device("cuda"), Console(width=200))
    sides = report["comparisons"]["torchvision"]["sides"]
    assert len(sides) >= 4
    for name, side in sides.items():
        assert 0 < side["busy_share"] <= 1, name
        if what == "train" and name.startswith("ours"):
            assert side["host_waits"] == 0, name
