"""Configurations composed from the groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def compose_config() -> Callable[..., DictConfig]:
    """``compose_config("+model=...", "key=value", ...)`` of three classes."""

    def compose(*overrides: str) -> DictConfig:
        with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
            return hydra.compose(overrides=[*overrides, "+num_classes=3"])

    return compose
