"""Learning rate and schedule of a recipe that is stated for another batch than is trained with.

Goyal et al., Accurate, Large Minibatch SGD (2017), section 2.1: with k times the images in a step,
the rate is k times as large, and the same number of images takes a k-th of the steps.
"""

from __future__ import annotations

from omegaconf import DictConfig, ListConfig, OmegaConf

STEPS = (
    "training.max_steps",
    "schedule.milestones",
    "schedule.warmup_steps",
    "schedule.total_steps",
    "evaluation.every",
)


def scale_to_batch(cfg: DictConfig) -> str | None:
    """Changes the settings if ``optimizer.reference_batch_size`` is not the batch trained with.

    Afterwards it is: the settings then say what is done, and scaling them again changes nothing.
    What is stated in epochs stays, as do settings that follow others.

    Args:
        cfg: of a training.

    Returns:
        A sentence with the old and new values; ``None`` if nothing is to be scaled, or the batch
        is still to be found.

    Raises:
        ValueError: the reference or the batch is no number of images.
    """
    to_be_found = is_auto(cfg.data.batch_size)
    reference = cfg.optimizer.get("reference_batch_size")
    if reference is None:
        return None
    if not isinstance(reference, int) or isinstance(reference, bool) or reference < 1:
        raise ValueError(
            f"optimizer.reference_batch_size={reference}: give the images in a step that "
            "optimizer.lr is meant for, or null for a rate that is taken as it is"
        )
    if to_be_found:
        return None
    images = cfg.data.batch_size * cfg.training.accumulate
    factor = images / reference
    if factor == 1:
        return None
    said = [_set(cfg, "optimizer.lr", cfg.optimizer.lr * factor)]
    for key in STEPS:
        value = _own_value(cfg, key)
        if isinstance(value, ListConfig):
            said.append(_set(cfg, key, [_steps(step, factor) for step in value]))
        elif value:
            said.append(_set(cfg, key, _steps(value, factor)))
    OmegaConf.update(cfg, "optimizer.reference_batch_size", images)
    return f"scaled from {reference} images in a step to {images}: {', '.join(said)}"


def is_auto(batch_size: int | str) -> bool:
    """Whether it is to be found.

    Raises:
        ValueError: it is neither ``auto`` nor a whole number.
    """
    if batch_size == "auto":
        return True
    if not isinstance(batch_size, int) or isinstance(batch_size, bool):
        raise ValueError(
            f"data.batch_size={batch_size}: give the images of a batch, or auto for as many as "
            "fit into memory"
        )
    return False


def _own_value(cfg: DictConfig, key: str) -> int | ListConfig | None:
    """``None`` where it is not there or follows another setting."""
    group, _, name = key.partition(".")
    if name not in cfg[group] or OmegaConf.is_interpolation(cfg[group], name):
        return None
    return cfg[group][name]


def _steps(steps: int, factor: float) -> int:
    return max(1, round(steps / factor))


def _set(cfg: DictConfig, key: str, value: float | list[int]) -> str:
    former = OmegaConf.select(cfg, key)
    OmegaConf.update(cfg, key, value)
    old, new = (f"{v:.6g}" if isinstance(v, float) else str(v) for v in (former, value))
    return f"{key} {old} -> {new}"
