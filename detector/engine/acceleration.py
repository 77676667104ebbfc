"""A training step as fast as the runtime asks for: compiled parts, and CUDA graphs of the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from detector.engine import assembly
from detector.engine.compiled import compile_parts
from detector.engine.graphs import GraphedStep, why_not
from detector.engine.optimizer import set_learning_rate
from detector.engine.randomness import seed_everything
from detector.engine.runtime import Runtime
from detector.engine.step_guard import StepGuard
from detector.engine.stopwatch import Stopwatch
from detector.engine.training_step import TrainingStep
from detector.engine.weight_average import WeightAverage
from detector.structures import Batch


class Step(Protocol):
    """What a training calls for each of its steps, see :class:`TrainingStep`."""

    def __call__(
        self, batches: Sequence[Batch], step: int, stopwatch: Stopwatch
    ) -> dict[str, Tensor]: ...


def accelerated(
    take_step: TrainingStep, accumulate: int = 1, say: Callable[[str], None] = print
) -> Step:
    """The same step, with what its runtime asks for.

    ``deterministic=true`` turns compilation off: which of several kernels it takes may depend on
    how long they took. Graphs stay, since they hold the very kernels of the plain step.

    Args:
        take_step: whose model is compiled in place.
        accumulate: batches of a step.
        say: is given a sentence on what is done, or why it is not.
    """
    runtime = take_step.runtime
    if runtime.compile and torch.are_deterministic_algorithms_enabled():
        say("not compiled: deterministic=true, and which kernels are taken could depend on timing")
    elif runtime.compile:
        parts = compile_parts(take_step.model)
        say(f"compiling {', '.join(parts)} in the first step of each shape, which takes a while")
    if not runtime.graphs:
        return take_step
    why = why_not(take_step, accumulate)
    if why is None:
        try:
            return GraphedStep(take_step, runtime.graphs, say=say)
        except RuntimeError as error:  # a driver that records nothing
            why = str(error).splitlines()[0]
    say(f"warning: runtime.graphs={runtime.graphs} has no effect: {why}")
    return take_step


def build_step(
    cfg: DictConfig, say: Callable[[str], None] = print
) -> tuple[Runtime, nn.Module, Step]:
    """Runtime, model and step of a training, ready for batches, from its configuration alone.

    For those who measure: there is no data, and the learning rate stays at its base.

    Args:
        cfg: composed from ``configs/train.yaml``, with ``num_classes``.
        say: see :func:`accelerated`.

    Returns:
        ``step(batches, number, stopwatch)`` takes a step of ``model``.
    """
    runtime = assembly.build(cfg.runtime)
    runtime.apply()
    seed_everything(cfg.seed)
    model = runtime.place(assembly.build(cfg.model))
    model.train()
    optimizer = assembly.build(cfg.optimizer)(model)
    set_learning_rate(optimizer, lambda step: 1.0, 0)
    decay = cfg.training.ema_decay
    take_step = TrainingStep(
        model,
        optimizer,
        runtime,
        StepGuard(model, optimizer, scaler=runtime.loss_scaler()),
        cfg.seed,
        cfg.training.gradient_clip,
        average=WeightAverage(model, decay) if decay is not None else None,
    )
    return runtime, model, accelerated(take_step, cfg.training.accumulate, say)
