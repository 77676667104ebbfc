"""The settings by which trainings are told apart, and what came of them: a row of a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from detector.engine.assembly import plain

# What people change first; what the command line gives besides comes after it.
ALWAYS = (
    "name",
    "optimizer.lr",
    "optimizer.weight_decay",
    "training.max_steps",
    "data.batch_size",
    "training.accumulate",
    "training.gradient_clip",
    "training.ema_decay",
    "runtime.precision",
    "init.checkpoint",
    "seed",
)
GROUPS = ("model", "backbone", "data", "augment", "optimizer", "schedule", "training")
# They say where and how, not what is trained.
FREE = (
    *("run_dir", "resume", "checkpoint", "logging", "evaluation", "distributed", "hydra"),
    *("data.root", "data.num_workers", "data.val_batch_size", "runtime.device"),
)
FINAL = ("AP", "AP50", "AR1000")


def hyperparameters(cfg: DictConfig) -> dict[str, float | str]:
    """What a training was made of: chosen groups, the usual numbers, and what was asked for.

    Args:
        cfg: of the training, composed by Hydra. Groups, and keys of the command line, are told
            where a command line is there.

    Returns:
        By key of the configuration; numbers as numbers, all else as text. A key that has no value
        is ``"null"``, so that all trainings have it.
    """
    found: dict[str, Any] = {}
    asked: list[str] = []
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        choices = hydra.runtime.choices
        found = {group: choices.get(group) for group in GROUPS}
        for word in hydra.overrides.task:
            key = word.lstrip("+~").partition("=")[0]
            if key in choices:  # a group, such as experiment/ablation/row@_global_
                found[key.partition("@")[0].rpartition("/")[2]] = choices[key]
            else:
                asked.append(key)
    for key in (*ALWAYS, *asked):
        if key not in found and not {key, key.partition(".")[0]} & {*FREE}:
            found[key] = plain(OmegaConf.select(cfg, key))
    return {key: _number_or_text(value) for key, value in found.items()}


def final_metrics(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """``{"box AP": ..., "box AP50": ..., "mask AP": ...}`` of an evaluation, what is defined."""
    return {
        f"{kind} {key}": float(numbers[key])
        for kind, numbers in metrics.items()
        for key in FINAL
        if kind != "per_class" and numbers.get(key, -1) >= 0
    }


def _number_or_text(value: Any) -> float | str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return value if isinstance(value, str) else json.dumps(value)
