"""A training small enough for a test: the real parts, with few channels and few boxes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

CONFIGS = Path(__file__).parents[1] / "configs"

TINY = [
    "model.backbone.out_channels=16",
    "model.rpn.train_proposals.pre_nms_top_n=50",
    "model.rpn.train_proposals.post_nms_top_n=20",
    "model.rpn.test_proposals.pre_nms_top_n=50",
    "model.rpn.test_proposals.post_nms_top_n=20",
    "model.roi_sampler.num_samples=16",
    "model.box_branch.head.width=32",
    "model.box_branch.detections.max_detections=5",
    "training.ema_decay=0.9",
    "evaluation.max_detections=[1,2,5]",
    "data.batch_size=2",
    "data.val_batch_size=2",
    "data.num_workers=0",
    "training.max_steps=6",
    "logging.every=2",
    "logging.pictures=1",
    "runtime.device=cpu",
]
# The groups stand here, so that tests do not depend on how the default recipe is tuned.
TINY_SHAPES = {
    "model": "mask_rcnn_fpn",
    "backbone": "resnet18_fpn",
    "data": "shapes",
    "augment": "small",
    "optimizer": "sgd",
    "schedule": "cosine",
    "runtime": "default",
    "model.backbone.norm": "bn",
    "model.backbone.freeze_at": 0,
    "model.rpn.anchors.sizes": "[[8],[16],[32],[64],[128]]",
    "runtime.precision": "float32",
    "data.prepare.num_train": 12,
    "data.prepare.num_val": 4,
    "training.gradient_clip": 10,
}
TINY_MASKS = ["model.mask_branch.head.num_convs=1", "model.mask_branch.head.width=8"]


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, overrides)


@pytest.fixture(scope="session")
def compose_tool() -> Callable[..., DictConfig]:
    """``compose_tool("evaluate", "key=value", ...)`` gives a tool's configuration."""
    return lambda name, *overrides: compose_config(name, ["runtime.device=cpu", *overrides])


@pytest.fixture(scope="session")
def compose_recipe(compose_tool) -> Callable[[str], DictConfig]:
    """``compose_recipe(name)`` gives the training configuration of a recipe, a copy of its own.

    Composing takes longer than most of what tests do with the result.
    """
    composed = functools.cache(lambda name: compose_tool("train", f"experiment={name}"))
    return lambda name: composed(name).copy()


@pytest.fixture(scope="session")
def compose_tiny(shapes_root: Path) -> Callable[..., DictConfig]:
    """``compose_tiny("key=value", ...)`` gives the training configuration, on shapes by default."""

    def compose_with(*overrides: str) -> DictConfig:
        chosen = {override.split("=")[0] for override in overrides}
        masks = [] if "model=faster_rcnn_fpn" in overrides else TINY_MASKS
        words = [*TINY, *masks]
        if "experiment" not in chosen:
            words += [f"{key}={value}" for key, value in TINY_SHAPES.items() if key not in chosen]
            words.append(f"data.root={shapes_root}")
        return compose_config("train", [*words, *overrides])

    return compose_with


@pytest.fixture(scope="session")
def trained(compose_tiny: Callable[..., DictConfig], tmp_path_factory) -> Path:
    """The run directory of a finished tiny training with an average of the weights; read only."""
    from detector.commands.train import train

    run_dir = tmp_path_factory.mktemp("runs") / "trained"
    train(compose_tiny(f"run_dir={run_dir}", "evaluation.every=3", "checkpoint.every=2"))
    return run_dir
