"""Batch statistics of the weights as they are, in place of a trail of former weights' ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detector.engine.distributed import Ranks
from detector.engine.inference import given_proposals
from detector.engine.randomness import seed_everything
from detector.engine.runtime import Runtime
from detector.structures import Batch

PRECISE_BN = 2**32 - 2  # in place of a step in the seed


def tracked_norms(model: nn.Module) -> list[_BatchNorm]:
    """Batch norm layers that follow the batches in training; frozen ones do not."""
    was_training = model.training
    model.train()
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    model.train(was_training)
    return norms


def check_precise_bn(num_batches: int, model: nn.Module) -> list[str]:
    """A sentence if ``training.precise_bn_steps`` has no effect.

    Raises:
        ValueError: it is negative.
    """
    if num_batches < 0:
        raise ValueError(f"training.precise_bn_steps={num_batches}; it must be 0 or more")
    if num_batches and not tracked_norms(model):
        return [
            f"training.precise_bn_steps={num_batches} has no effect: the model has no batch norm "
            "that follows the batches"
        ]
    return []


@torch.no_grad()
def recompute_batch_statistics(
    model: nn.Module,
    batches: Iterable[Batch],
    runtime: Runtime,
    seed: int,
    ranks: Ranks | None = None,
) -> None:
    """Sets running means and variances to those over ``batches``.

    Running statistics are a moving average over the steps, and lag behind weights that still move
    (Wu & Johnson 2021, section 3). Means are averaged over the batches; the variance is that of all
    batches together, each of equal weight: ``E[var + mean^2] - E[mean]^2``.

    Args:
        model: its frozen layers stay as they are; the training mode is restored afterwards.
        batches: training batches, with targets.
        runtime: how to run the model.
        seed: of what the batches draw.
        ranks: that have an equal number of batches each; all get the statistics of all.
    """
    norms = tracked_norms(model)
    if not norms:
        return
    was_training = model.training
    momenta = [norm.momentum for norm in norms]
    tracked = [norm.num_batches_tracked.clone() for norm in norms]
    sums: list[tuple[Tensor, Tensor]] = [
        (torch.zeros_like(n.running_mean), torch.zeros_like(n.running_var)) for n in norms
    ]
    count = 0
    model.train()
    try:
        for norm in norms:
            norm.momentum = 1.0  # the running statistics are then those of the last batch
        for batch in batches:
            moved = runtime.move(batch)
            seed_everything(seed, PRECISE_BN, count)
            with runtime.autocast():
                model(moved.images, moved.image_sizes, moved.targets, *given_proposals(moved))
            for norm, (mean, square) in zip(norms, sums, strict=True):
                mean += norm.running_mean
                square += norm.running_var + norm.running_mean**2
            count += 1
        if ranks is not None:
            ranks.add_up([tensor for pair in sums for tensor in pair])
            count *= ranks.size
    finally:
        model.train(was_training)
        for norm, momentum, number in zip(norms, momenta, tracked, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(number)
    for norm, (mean, square) in zip(norms, sums, strict=True):
        norm.running_mean.copy_(mean / count)
        norm.running_var.copy_(square / count - (mean / count) ** 2)
