"""Losses between two log lines, kept on the device until they are wanted."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


class NonFiniteLoss(FloatingPointError):
    """A loss or the gradient's norm became infinite or NaN."""


@dataclass
class LossWindow:
    """Collects losses step by step and reads them from the device all at once.

    Reading a value makes the host wait for the GPU. So nothing is read per step: a non-finite loss
    is found when the window is read, at the latest before the next checkpoint is written, and still
    named by its step and images.
    """

    _names: list[str] = field(default_factory=list)
    _rows: list[Tensor] = field(default_factory=list)
    _steps: list[tuple[int, list[int]]] = field(default_factory=list)

    def add(self, step: int, image_ids: Tensor, losses: dict[str, Tensor]) -> None:
        """Keeps the 0-d ``losses`` of ``step``; ``image_ids`` ``(B,)`` must lie on the CPU."""
        names = list(losses)
        assert not self._rows or names == self._names, "losses must have the same names every step"
        self._names = names
        self._rows.append(torch.stack([loss.detach().float() for loss in losses.values()]))
        self._steps.append((step, image_ids.tolist()))

    def read(self) -> dict[str, float]:
        """Means since the last reading, by name; empty when no step was taken since.

        Raises:
            NonFiniteLoss: naming the first bad step, its losses and its images.
        """
        means = self.check()
        self._rows, self._steps = [], []
        return means

    def check(self) -> dict[str, float]:
        """Like :meth:`read`, but goes on collecting."""
        if not self._rows:
            return {}
        table = torch.stack(self._rows).cpu()
        bad = (~torch.isfinite(table)).any(dim=1).nonzero().flatten().tolist()
        if bad:
            step, image_ids = self._steps[bad[0]]
            values = zip(self._names, table[bad[0]].tolist(), strict=True)
            listed = ", ".join(f"{name} {value:.4g}" for name, value in values)
            raise NonFiniteLoss(
                f"non-finite loss in step {step}: {listed}; image ids {image_ids}. "
                "Lower optimizer.lr, lengthen schedule.warmup_steps or set training.gradient_clip; "
                "if it always happens with the same images, look at their annotations"
            )
        return dict(zip(self._names, table.mean(dim=0).tolist(), strict=True))
