"""A model over a dataset, without gradients."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from detector.engine.distributed import Ranks
from detector.engine.out_of_memory import explained_detection
from detector.engine.runtime import Runtime
from detector.structures import Batch, Detections, Proposals

if TYPE_CHECKING:
    from detector.engine.validation_loss import ValidationLoss
    from detector.evaluation.coco import CocoEvaluator, Evaluation


def detect(model: nn.Module, batch: Batch, runtime: Runtime, what: str = "detection") -> Detections:
    """The detections of a batch, on the model's device, in evaluation mode.

    The model's training mode is restored afterwards.

    Raises:
        OutOfMemory: in ``what``.
    """
    was_training = model.training
    model.eval()
    try:
        with explained_detection(what, batch, runtime), torch.inference_mode(), runtime.autocast():
            moved = runtime.move(batch)
            return model.detect(moved.images, moved.image_sizes, *given_proposals(moved))
    finally:
        model.train(was_training)


def given_proposals(batch: Batch) -> tuple[Proposals, ...]:
    """The last argument of a Fast R-CNN: the batch's proposals, nothing where it has none."""
    return () if batch.proposals is None else (batch.proposals,)


def evaluate_model(
    model: nn.Module,
    batches: Iterable[Batch],
    evaluator: CocoEvaluator,
    runtime: Runtime,
    should_stop: Callable[[], bool] = lambda: False,
    losses: ValidationLoss | None = None,
    ranks: Ranks | None = None,
    partly: bool = False,
) -> Evaluation | None:
    """Detects on every batch and compares with the ground truth.

    Args:
        model: gives ``detect``.
        batches: every image of the evaluator's dataset, once; with several ranks each has some.
        evaluator: is reset first.
        runtime: how to run the model.
        should_stop: asked after each batch; must say the same on all ranks.
        losses: where given, is reset first and becomes the metrics' ``"val"``.
        ranks: that evaluate together.
        partly: whether images may be missing, which count as if nothing was found.

    Returns:
        The evaluation, or ``None`` when ``should_stop`` said so. On other ranks than the first it
        has the metrics, and no detections.
    """
    ranks = ranks or Ranks()
    evaluator.reset()
    if losses is not None:
        losses.reset()
    remaining = iter(batches)
    for number in itertools.count(1):
        batch = next(remaining, None)
        if not ranks.highest(batch is not None):  # some have a batch less than others
            break
        if batch is not None:
            what = f"evaluation, batch {number}"
            evaluator.update(batch, detect(model, batch, runtime, what))
            if losses is not None:
                with explained_detection(what, batch, runtime):
                    losses.update(model, batch)
        if should_stop():
            return None
    if ranks.size == 1:
        return _summary(evaluator, losses, partly)
    states = ranks.gather((evaluator.state(), losses.state() if losses is not None else None))
    if states is None:
        return ranks.exchange(None)[0]
    for seen, lost in states[1:]:
        evaluator.merge(seen)
        if losses is not None:
            losses.merge(lost)
    found = _summary(evaluator, losses, partly)
    nothing = found.results.select(np.zeros(len(found.results), dtype=bool))
    ranks.exchange(dataclasses.replace(found, results=nothing, errors={}))
    return found


def _summary(evaluator: CocoEvaluator, losses: ValidationLoss | None, partly: bool) -> Evaluation:
    if partly:
        evaluator.fill_up()
    found = evaluator.summarize()
    if losses is not None:
        found.metrics["val"] = losses.result()
    return found
