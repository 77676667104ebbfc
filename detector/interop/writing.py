"""Our models as other packages' state dicts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from detector.engine.assembly import config_changes, plain
from detector.engine.checkpoint import checkpoint_config
from detector.interop.files import StateFile
from detector.interop.fitting import convert_state
from detector.interop.formats import FORMATS
from detector.interop.recipes import Recipe, compose_config

logger = logging.getLogger(__name__)

# Settings that do not change what a trained model finds.
_OF_TRAINING = (
    *("weights", "freeze_at", "train_proposals", "num_samples", "positive_fraction", "border"),
    *("roi_sampler", "smooth_l1_beta", "box_weight", "mask_weight", "normalization", "box_loss"),
)


def write_foreign(
    content: Mapping[str, Any], to: str, allow_code: bool = False
) -> dict[str, Tensor]:
    """The state dict of a checkpoint's model under another package's names.

    It is read again and compared bit for bit. Where the model has other numbers than that package's
    of the same names and shapes, such as anchors of another size, a warning lists them: a state
    dict does not carry them.

    Args:
        content: of :func:`detector.interop.convert.load_any`.
        to: a key of :data:`detector.interop.formats.FORMATS`.
        allow_code: see :func:`detector.engine.checkpoint.checkpoint_config`.

    Raises:
        ValueError: an unknown format, or one that has no such architecture.
    """
    if to not in FORMATS:
        raise ValueError(f"to={to}: write {' or '.join(FORMATS)}, or null for a checkpoint")
    module = FORMATS[to]
    config = checkpoint_config(dict(content), allow_code)
    result = module.from_ours(content["model"], config)
    # What it was read from tells recipes apart that have the same names and shapes.
    origin = str(content.get("source", "the model")).partition(",")[0]
    state = StateFile(result, "torch", {}, f"{origin}, as {to} would have it,")
    recipe = module.recognise(state)
    if recipe is None or recipe.parts:
        kind = str(config.model.get("_target_")).rpartition(".")[2]
        raise ValueError(f"{to} has no model like this {kind}; see the list in the README")
    again = convert_state(state, recipe, module)
    for name, value in content["model"].items():
        if name not in again or not torch.equal(again[name], value):
            raise ValueError(f"{to} cannot hold {name} of this model")
    changes = setting_changes(config, recipe)
    if changes:
        logger.warning(
            "%s has other numbers than this model, so that it will find something else:\n  %s",
            recipe.name,
            "\n  ".join(changes),
        )
    return result


def setting_changes(config: DictConfig, recipe: Recipe) -> list[str]:
    """``"model.rpn.anchors.rounded False -> True"`` for each setting that the recipe has not."""
    theirs = compose_config(recipe)
    ours, theirs = (OmegaConf.create({"model": plain(each.model)}) for each in (config, theirs))
    return [
        change
        for change in config_changes(ours, theirs)
        if not any(key in _OF_TRAINING for key in change.split(" ")[0].split("."))
    ]
