"""Stages of a trunk and parts of a detector that stay as they were loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from torch import nn


class Freezable(nn.Module):
    """A module that may have frozen ones inside: no gradients, no new statistics."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []

    def freeze_modules(self, modules: Iterable[nn.Module]) -> None:
        """Freezes these modules of it, in place of those frozen by a former call."""
        self._frozen = list(modules)
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; what is frozen stays in evaluation mode.

        Running statistics are no parameters: without this they would drift where weights are fixed.
        """
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


class FreezableTrunk(Freezable):
    """A trunk in stages, of which the first may be frozen."""

    _stages: list[list[nn.Module]]

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The modules of each stage, the stem first."""
        return self._stages

    def freeze(self, stages: Sequence[Iterable[nn.Module]], freeze_at: int) -> None:
        """Freezes the first ``freeze_at`` of ``stages``, each given by its modules.

        Raises:
            ValueError: there are not as many stages.
        """
        if not 0 <= freeze_at <= len(stages):
            raise ValueError(f"freeze_at={freeze_at} must be 0 (nothing) to {len(stages)} (all)")
        self._stages = [list(stage) for stage in stages]
        self.freeze_modules(module for stage in self._stages[:freeze_at] for module in stage)


def check_increasing(key: str, values: Sequence[int], allowed: range) -> tuple[int, ...]:
    """``values`` as a tuple, if they are a rising choice of ``allowed``.

    Raises:
        ValueError: they are not; the message calls them ``key``.
    """
    chosen = tuple(values)
    if not chosen or list(chosen) != [value for value in allowed if value in chosen]:
        raise ValueError(
            f"{key}={list(chosen)} must be one or more of {', '.join(map(str, allowed))}, "
            "each once and the finest first"
        )
    return chosen
