"""Exponential moving average of the weights (Polyak averaging)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


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
        average, current = self._copy_others(model)
        torch._foreach_lerp_(average, current, self.weight(step))

    @torch.no_grad()
    def follow(self, model: nn.Module, weight: Tensor) -> None:
        """:meth:`update` by a 0-d ``weight`` on the device, which a CUDA graph can read.

        Up to rounding the same; it takes memory for a third copy of the weights.
        """
        average, current = self._copy_others(model)
        difference = torch._foreach_sub(current, average)
        torch._foreach_mul_(difference, weight)
        torch._foreach_add_(average, difference)

    def weight(self, step: int) -> float:
        """The share of the new weights in the average after the ``step``-th step."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    def _copy_others(self, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Copies what is not averaged; gives what is, of the average and of ``model``."""
        # state_dict's tensors share memory with the model's; each call is one launch for all.
        average, current = self.model.state_dict(), model.state_dict()
        floating = [name for name, value in average.items() if value.is_floating_point()]
        others = sorted(average.keys() - set(floating))
        if others:
            torch._foreach_copy_(
                [average[name] for name in others], [current[name] for name in others]
            )
        return [average[name] for name in floating], [current[name] for name in floating]
