from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_compose_resolve_and_say_what_they_are(name: str, compose_tool) -> None:
    cfg = compose_tool("train", f"experiment={name}")
    OmegaConf.resolve(cfg)
    assert cfg.name == name
    instantiate(cfg.schedule)
    header = (CONFIGS / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]
    assert ("command" in header and f"experiment={name}" in header) or name == "shapes"
    assert "AP" in header and "time" in header


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_model_of_every_experiment_builds(name: str, compose_tool) -> None:
    """Parts that do not fit refuse each other when they are put together."""
    cfg = compose_tool("train", f"experiment={name}", "num_classes=5")
    cfg.model.backbone.weights = None
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["faster_rcnn_r50_fpn_1x", "mask_rcnn_r50_fpn_1x"])
def test_the_1x_recipes_are_the_published_ones(name: str, compose_tool) -> None:
    cfg = compose_tool("train", f"experiment={name}")
    schedule = instantiate(cfg.schedule)
    assert cfg.training.max_steps == 90000 and cfg.data.batch_size == 16
    rates = [cfg.optimizer.lr * schedule(step) for step in (0, 1000, 60000, 80000)]
    assert rates == pytest.approx([2e-5, 0.02, 0.002, 0.0002])
    assert (cfg.optimizer.momentum, cfg.optimizer.weight_decay) == (0.9, 1e-4)
    assert cfg.model.backbone.freeze_at == 2 and cfg.model.backbone.norm == "frozen_bn"
