"""How much slower or faster each parameter learns than the base learning rate."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import nn

from detector.backbones.freezing import FreezableTrunk
from detector.engine.weights.part_paths import find_part, longest_prefix

_log = logging.getLogger(__name__)


def lr_factors(
    model: nn.Module,
    lr_multipliers: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
) -> dict[nn.Parameter, float]:
    """The factor of every trainable parameter: that of its part times that of its layer.

    Args:
        model: a detector.
        lr_multipliers: factors by dotted path of a part. The longest path that a parameter lies
            below decides alone; 1 where there is none.
        layer_decay: see :func:`layer_factors`; ``None`` is 1.

    Raises:
        ValueError: a path that the model does not have, or a factor that is not positive.
    """
    multipliers = dict(lr_multipliers or {})
    for path, factor in multipliers.items():
        setting = f"optimizer.lr_multipliers: {path}: {factor}"
        find_part(model, path, setting)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 0:
            raise ValueError(f"{setting}; it must be a positive number. freeze=[{path}] keeps it")
    by_layer = layer_factors(model, layer_decay) if layer_decay is not None else {}
    factors, deciding = {}, set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            path = longest_prefix(name, multipliers)
            deciding.add(path)
            factors[parameter] = multipliers.get(path, 1.0) * by_layer.get(parameter, 1.0)
    for path in multipliers.keys() - deciding:
        _log.warning(
            "warning: optimizer.lr_multipliers: %s: %s has no effect: nothing below it learns, or "
            "longer paths decide for all of it",
            *(path, multipliers[path]),
        )
    return factors


def layer_factors(model: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Factors of the parameters of a trunk, which fall from its last stage to its stem.

    Of n stages, the stem counted, stage i (from 0) learns ``decay ** (n - i)`` times as fast as
    what comes after the trunk, such as FPN, RPN and heads: the rule of BEiT (Bao et al., 2021,
    appendix) and ViTDet (Li et al., 2022, appendix A), with stages for layers.

    Args:
        model: has a :class:`detector.backbones.freezing.FreezableTrunk` inside, whose stages these
            are.
        decay: above 0, and at most 1, which changes nothing.

    Raises:
        ValueError: another ``decay``, or no such trunk.
    """
    setting = f"optimizer.layer_decay={decay}"
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 < decay <= 1:
        raise ValueError(f"{setting}; it must lie above 0 and not above 1, or be null")
    trunks = [module for module in model.modules() if isinstance(module, FreezableTrunk)]
    if not trunks:
        raise ValueError(
            f"{setting} needs a trunk that says what its stages are; let yours inherit "
            "detector.backbones.freezing.FreezableTrunk, or use optimizer.lr_multipliers"
        )
    factors = {}
    for trunk in trunks:
        stages = trunk.stages
        # What a module around the stages owns, such as an embedding of positions, precedes them.
        inside = {module for stage in stages for part in stage for module in part.modules()}
        for module in trunk.modules():
            if any(part in inside for part in module.modules()):
                for parameter in module.parameters(recurse=False):
                    factors[parameter] = decay ** len(stages)
        for index, stage in enumerate(stages):
            for part in stage:
                for parameter in part.parameters():
                    factors[parameter] = decay ** (len(stages) - index)
    if not any(parameter.requires_grad for parameter in factors):
        _log.warning("warning: %s has no effect: nothing of the trunk learns", setting)
    return factors
