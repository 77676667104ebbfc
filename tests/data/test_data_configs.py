"""Configs of datasets say what their constructors take."""

from __future__ import annotations

import inspect

import pytest
import yaml
from hydra.utils import get_class

from detector.config_files import find_configs

NAMES = ("concat", "csv", "labelme", "lvis", "via", "voc", "voc07", "yolo")


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_the_constructors_and_complete(name):
    config = yaml.safe_load((find_configs() / "data" / f"{name}.yaml").read_text())
    for split in ("train", "val"):
        node = dict(config[split])
        parameters = set(inspect.signature(get_class(node.pop("_target_"))).parameters)
        assert set(node) <= parameters
        # Whatever is not there cannot be set on the command line.
        assert parameters - set(node) <= {"keep_empty"}
        for key in ("sampler", "repeat_threshold", "on_error", "batch_size", "prepare", "root"):
            assert key in config
