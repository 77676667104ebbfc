"""Losses between two log lines, kept on the device until they are wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor


class NonFiniteLoss(FloatingPointError):
    """A loss or the gradient's norm became infinite or NaN.

    Attributes:
        step: the first bad step, or where some may be skipped the last of too many; 1 is the first
            step of a training.
        losses: its values by name, with ``gradient_norm``.
        position: ``(epoch, batch)`` of its first batch.
    """

    def __init__(
        self, message: str, step: int, losses: dict[str, float], position: tuple[int, int]
    ) -> None:
        super().__init__(message)
        self.step = step
        self.losses = losses
        self.position = position

    def extended(self, sentence: str) -> Self:
        """The same, and a sentence more."""
        return type(self)(f"{self}. {sentence}", self.step, self.losses, self.position)


@dataclass
class LossWindow:
    """Collects losses step by step and reads them from the device all at once.

    Reading a value makes the host wait for the GPU. So nothing is read per step: a non-finite loss
    is found when the window is read, at the latest before the next checkpoint is written, and still
    named by its step and images. Meanwhile :class:`detector.engine.step_guard.StepGuard` keeps the
    weights from it.

    Attributes:
        tolerated: non-finite steps in a row that are no error; they are skipped and counted.
    """

    tolerated: int = 0
    _names: list[str] = field(default_factory=list)
    _rows: list[Tensor] = field(default_factory=list)
    _steps: list[tuple[int, list[int], tuple[int, int]]] = field(default_factory=list)
    _in_a_row: int = 0  # of those read before

    def add(
        self,
        step: int,
        image_ids: Tensor,
        losses: dict[str, Tensor],
        position: tuple[int, int] = (0, 0),
    ) -> None:
        """Keeps the 0-d ``losses`` of ``step``; ``image_ids`` ``(B,)`` must lie on the CPU."""
        names = list(losses)
        assert not self._rows or names == self._names, "losses must have the same names every step"
        self._names = names
        self._rows.append(torch.stack([loss.detach().float() for loss in losses.values()]))
        self._steps.append((step, image_ids.tolist(), position))

    def read(self) -> dict[str, float]:
        """Means since the last reading, by name; empty when no step was taken since.

        Where steps may be skipped, ``skipped_steps`` is how many were, and they have no part in the
        means, which are NaN if all were.

        Raises:
            NonFiniteLoss: naming the bad step, its losses and its images.
        """
        means, self._in_a_row = self._look()
        self._rows, self._steps = [], []
        return means

    def check(self) -> dict[str, float]:
        """Like :meth:`read`, but goes on collecting."""
        return self._look()[0]

    def _look(self) -> tuple[dict[str, float], int]:
        if not self._rows:
            return {}, self._in_a_row
        table = torch.stack(self._rows).cpu()
        finite = torch.isfinite(table).all(dim=1)
        in_a_row = self._in_a_row
        for number, good in enumerate(finite.tolist()):
            in_a_row = 0 if good else in_a_row + 1
            if in_a_row > self.tolerated:
                self._refuse(number, table[number].tolist(), in_a_row)
        means = dict(zip(self._names, table[finite].mean(dim=0).tolist(), strict=True))
        if self.tolerated:
            means["skipped_steps"] = float((~finite).sum())
        return means, in_a_row

    def _refuse(self, number: int, row: list[float], in_a_row: int) -> None:
        step, image_ids, position = self._steps[number]
        losses = dict(zip(self._names, row, strict=True))
        listed = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        more = f" after {in_a_row - 1} others in a row" if in_a_row > 1 else ""
        raise NonFiniteLoss(
            f"non-finite loss in step {step}{more}: {listed}; image ids {image_ids}. "
            "Lower optimizer.lr, lengthen schedule.warmup_steps or set training.gradient_clip; "
            "if it always happens with the same images, look at their annotations",
            step,
            losses,
            position,
        )
