"""Parameter groups, and the optimiser made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from detector.engine.learning_rates import lr_factors
from detector.engine.schedule import Schedule

NORM_LAYERS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    norm_weight_decay: float | None = 0.0,
    bias_weight_decay: float | None = None,
    bias_lr_factor: float = 1.0,
    lr_multipliers: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Splits the trainable parameters into weights, norms and biases, of each learning rate.

    Args:
        model: its parameters with ``requires_grad`` are taken, each once.
        lr: base learning rate.
        weight_decay: decay of the weights of convolutions and linear layers.
        norm_weight_decay: decay of scales and shifts of normalisation layers; ``None`` is
            ``weight_decay``. Decaying them pulls features towards zero and gains nothing.
        bias_weight_decay: decay of the other biases; ``None`` is ``weight_decay``.
        bias_lr_factor: learning rate of those biases relative to ``lr`` (2 in the Caffe recipes).
        lr_multipliers: of parts by their paths, see
            :func:`detector.engine.learning_rates.lr_factors`.
        layer_decay: see :func:`detector.engine.learning_rates.layer_factors`.

    Returns:
        The non-empty groups, each with ``params``, ``name``, ``lr``, ``base_lr``, ``weight_decay``.
        The fastest come first.

    Raises:
        ValueError: nothing is trainable, or a multiplier or decay that cannot be.
    """
    factors = lr_factors(model, lr_multipliers, layer_decay)
    rates = sorted(set(factors.values()), reverse=True)
    kinds = ("weights", "norms", "biases")
    members: dict[tuple[float, str], list[nn.Parameter]] = {
        (rate, kind): [] for rate in rates for kind in kinds
    }
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            if isinstance(module, NORM_LAYERS):
                kind = "norms"
            else:
                kind = "biases" if name == "bias" else "weights"
            members[factors[parameter], kind].append(parameter)
    if not seen:
        raise ValueError("the model has no trainable parameter; unfreeze a part of it")

    decays = {"weights": weight_decay, "norms": norm_weight_decay, "biases": bias_weight_decay}
    groups = []
    for (factor, kind), parameters in members.items():
        if parameters:
            group_lr = lr * factor * (bias_lr_factor if kind == "biases" else 1.0)
            decay = weight_decay if decays[kind] is None else decays[kind]
            groups.append(
                {
                    "params": parameters,
                    "name": kind if factor == 1.0 else f"{kind} x{factor:g}",
                    "lr": group_lr,
                    "base_lr": group_lr,
                    "weight_decay": decay,
                }
            )
    return groups


def build_optimizer(
    model: nn.Module,
    algorithm: type[torch.optim.Optimizer],
    lr: float,
    weight_decay: float,
    norm_weight_decay: float | None = 0.0,
    bias_weight_decay: float | None = None,
    bias_lr_factor: float = 1.0,
    lr_multipliers: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
    reference_batch_size: int | None = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """Any optimiser of ``torch.optim`` over :func:`parameter_groups`.

    Args:
        model, lr, weight_decay, norm_weight_decay, bias_weight_decay, bias_lr_factor,
            lr_multipliers, layer_decay: see there.
        algorithm: the optimiser's class.
        reference_batch_size: images in a step that ``lr`` is stated for; training has scaled ``lr``
            by it already, see :mod:`detector.engine.batch_scaling`.
        options: its further arguments (``momentum``, ``betas``, ...).

    Raises:
        ValueError: as there, or an option that ``algorithm`` does not know.
    """
    groups = parameter_groups(
        model,
        lr,
        weight_decay,
        norm_weight_decay,
        bias_weight_decay,
        bias_lr_factor,
        lr_multipliers,
        layer_decay,
    )
    try:
        optimizer = algorithm(groups, lr=lr, weight_decay=weight_decay, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer: {algorithm.__name__} refused its options: {error}") from error
    _begin_momenta(optimizer)
    return optimizer


def _begin_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Gives fused SGD momenta of zero.

    It would make them in its first step, of memory as it is found; if that step is then skipped,
    because a gradient is not finite, they stay so. From zero the first step is the same.
    """
    for group in optimizer.param_groups:
        sgd = isinstance(optimizer, torch.optim.SGD) and group["fused"]
        if sgd and group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def check_gradient_clip(limit: float | None) -> None:
    """Gradients can be clipped to a positive norm: a negative one would turn them round.

    Raises:
        ValueError: it is none.
    """
    if limit is not None and not (isinstance(limit, int | float) and limit > 0):
        raise ValueError(f"training.gradient_clip={limit}; it must be a positive number, or null")


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """``"SGD fused"``: all parameters in one pass, which on a CPU takes half the time or less."""
    fused = "fused" if optimizer.defaults.get("fused") else "not fused (optimizer.fused)"
    return f"{type(optimizer).__name__} {fused}"


def set_learning_rate(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> float:
    """Sets every group's rate for the step after ``step`` finished ones; returns the multiplier."""
    multiplier = schedule(step)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * multiplier
    return multiplier


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """Loads momenta and counts of a checkpoint; rates and decays stay as configured now.

    Args:
        optimizer: over the same parameters in the same groups.
        state: its former ``state_dict``.
        path: the checkpoint, for the message.

    Raises:
        ValueError: the state belongs to other parameters or to another algorithm.
    """
    configured = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    former = [set(group) for group in state["param_groups"]]
    try:
        if former != [set(group) for group in optimizer.state_dict()["param_groups"]]:
            raise ValueError("another algorithm")
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise ValueError(
            f"{path}: its optimiser state does not fit the configured {type(optimizer).__name__} "
            f"({error}). Resume with the optimizer and model settings of the first run"
        ) from error
    for group, options in zip(optimizer.param_groups, configured, strict=True):
        group.update(options)
    _lay_out_alike(optimizer)


def _lay_out_alike(optimizer: torch.optim.Optimizer) -> None:
    """Gives momenta their parameter's order in memory, which that of a checkpoint need not be.

    Fused optimisers go through both from first to last number, and would pair other ones after
    training has changed between NCHW and NHWC.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
                continue
            if value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
