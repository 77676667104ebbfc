"""Settings in which the model at hand differs from the one that a checkpoint was trained as."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# What matters for training or the choice of detections only; trained weights do not depend on it.
IGNORED = (
    *("*_target_", "*num_classes", "*num_keypoints", "*.weights", "*.freeze_at", "*.norm"),
    *("roi_sampler.*", "*.detections.*", "*_proposals.*", "*.num_samples", "*.max_batch"),
    *("*.positive_*", "*.negative_*", "*.background_iou", "*.later_ious"),
    *("*.smooth_l1_beta", "*.box_loss", "*.inside_weights", "*.box_weight", "*.mask_weight"),
    *("*.keypoint_weight", "*.masks"),
)


def model_differences(config: str, now: DictConfig, parts: Collection[str]) -> list[str]:
    """Settings under which the weights mean something else, though they may fit.

    Args:
        config: YAML of a checkpoint's whole configuration.
        now: the whole configuration at hand.
        parts: names of the model's parts that are compared, besides the normalisation of pixels.

    Returns:
        Such as ``model.normalizer.std=[1.0,1.0,1.0] (here [58.395,57.12,57.375])``: what to set
        for the checkpoint's. Settings that only one of them has are left out.
    """
    try:
        former, own = (
            OmegaConf.to_container(whole.model, resolve=True)
            for whole in (OmegaConf.create(config), now)
        )
    except (OmegaConfBaseException, AttributeError):  # made by hand, or by another version
        return []
    old, new = dict(_settings(former)), dict(_settings(own))
    written = dict(_settings(OmegaConf.to_container(now.model, resolve=False)))
    return [
        f"model.{key}={_shown(old[key])} (here {_shown(value)})"
        for key, value in new.items()
        if key in old
        and old[key] != value
        and key.partition(".")[0] in (*parts, "normalizer")
        and not any(fnmatch(key, pattern) for pattern in IGNORED)
        and not str(written.get(key)).startswith("${model.")  # it follows another of these
    ]


def _settings(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _settings(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value).replace(" ", "")
