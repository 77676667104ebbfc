"""Exponential moving average of the weights (Polyak averaging)."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """A second model whose weights follow the trained one's slowly.

    It takes the noise of the last steps out of the weights, which in short schedules buys what the
    final low learning rates would. The decay warms up as ``min(decay, (1 + n) / (10 + n))`` over
    updates ``n``, so that the random initial weights are forgotten quickly.

    Args:
        model: the trained model; it is copied.
        decay: share of the average kept in each update, in ``(0, 1)``.

    Raises:
        ValueError: ``decay`` outside its range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not isinstance(decay, int | float) or not 0 < decay < 1:
            raise ValueError(f"training.ema_decay is {decay}; it must lie between 0 and 1, or null")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards ``model`` after its ``step``-th step (1 is the first).

        Floating-point parameters and buffers are averaged, integer buffers copied.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        average, current = self.model.state_dict(), model.state_dict()
        floating = [name for name, value in average.items() if value.is_floating_point()]
        others = [name for name in average if name not in set(floating)]
        # state_dict's tensors share memory with the model's; each call is one launch for all.
        torch._foreach_lerp_(
            [average[name] for name in floating], [current[name] for name in floating], 1 - decay
        )
        if others:
            torch._foreach_copy_(
                [average[name] for name in others], [current[name] for name in others]
            )
