"""Keeps steps with a non-finite loss or gradient from the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.amp import GradScaler


class StepGuard:
    """Lets the optimiser take a step only if loss and gradient are finite.

    On a GPU the host does not ask: whether a step is bad is a flag on the device, which fused
    optimisers look at themselves, and which chooses between the batch statistics before and after
    the step. Once ``tolerated`` bad steps in a row are exceeded all further steps change nothing
    either: when the host reads the losses, the weights are still those before the bad step, for
    the replay. An optimiser that is not fused makes the host wait for the flag. On a CPU the flag
    is simply read. The flags stay where they are, so that a CUDA graph of the step finds them.

    With a loss scale a non-finite gradient is no error: the scaler skips the step and lowers it.

    Args:
        model: under training; its buffers, batch statistics for instance, are kept too.
        optimizer: of its parameters.
        tolerated: bad steps in a row after which training goes on.
        scaler: the loss scale, of fp16.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        tolerated: int = 0,
        scaler: GradScaler | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._tolerated = tolerated
        self._scaler = scaler
        parameter = next(model.parameters())
        self._on_gpu = parameter.is_cuda
        self._fused = self._on_gpu and getattr(optimizer, "_step_supports_amp_scaling", False)
        self._bad = torch.zeros((), dtype=torch.bool, device=parameter.device)
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=parameter.device)
        self._frozen = self._bad.clone()
        # What forward passes change: of one dtype together, so that all of it is a few launches.
        buffers: dict[torch.dtype, list[Tensor]] = {}
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name not in module._non_persistent_buffers_set:
                    buffers.setdefault(buffer.dtype, []).append(buffer)
        self._buffers = list(buffers.values())
        self._former: list[Tensor] = []

    @property
    def is_fused(self) -> bool:
        """Whether the optimiser itself looks at the flag, on a GPU."""
        return self._fused

    @property
    def knows_bad(self) -> bool:
        """Whether the last step was a bad one, as far as that is known without waiting."""
        return not self._on_gpu and bool(self._bad)

    def warnings(self) -> list[str]:
        """A sentence if the host has to wait for the GPU in each step."""
        if not self._on_gpu or self._fused or self._scaler is not None:
            return []
        return [
            f"{type(self._optimizer).__name__} is not fused, so that the host waits for the GPU in "
            "each step to see whether it is finite; set optimizer.fused=true (or "
            "+optimizer.fused=true)"
        ]

    def begin(self) -> None:
        """Call it before the forward pass."""
        self._former = [_flat(buffers) for buffers in self._buffers]

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to go backward from."""
        if self._scaler is None:
            return loss
        # The scaler skips what it finds non-finite, so this is how nothing changes any more.
        return self._scaler.scale(torch.where(self._frozen, torch.nan, loss))

    def unscale(self) -> None:
        """Gradients as they are without a loss scale; call it before they are clipped."""
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)

    def step(self, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """The optimiser's step, if it is a good one.

        Args:
            loss: 0-d, of the whole batch.
            gradient_norm: 0-d, L2 over all gradients.

        Returns:
            0-d: the gradient's norm, and zero in a step that the loss scale skipped.
        """
        finite = torch.isfinite(loss.detach())
        if self._scaler is None:
            finite = finite & torch.isfinite(gradient_norm)
        else:
            overflown = finite & ~torch.isfinite(gradient_norm)
            gradient_norm = gradient_norm.masked_fill(overflown, 0.0)
        self._in_a_row.add_(1).masked_fill_(finite, 0)
        self._frozen.logical_or_(self._in_a_row > self._tolerated)
        torch.logical_or(~finite, self._frozen, out=self._bad)
        if self._scaler is not None:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        elif self._fused:
            self._optimizer.found_inf = self._bad.float()
            self._optimizer.step()
            del self._optimizer.found_inf
        elif not self._bad:
            self._optimizer.step()
        self._put_back()
        return gradient_norm

    def _put_back(self) -> None:
        if not (self._on_gpu or self._bad):
            return
        for buffers, former in zip(self._buffers, self._former, strict=True):
            kept = torch.where(self._bad, former, _flat(buffers))
            parts = kept.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(
                buffers, [part.view_as(b) for part, b in zip(parts, buffers, strict=True)]
            )


def _flat(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.detach().reshape(-1) for buffer in buffers])


def check_on_nonfinite(policy: str, max_skipped: int) -> int:
    """How many bad steps in a row are tolerated.

    Args:
        policy: ``"stop"`` or ``"skip"``.
        max_skipped: for ``"skip"``.

    Raises:
        ValueError: another word, or a number below 1.
    """
    if policy not in ("stop", "skip"):
        raise ValueError(f"training.on_nonfinite={policy}; choose stop or skip")
    if max_skipped < 1:
        raise ValueError(f"training.max_skipped={max_skipped}; it must be at least 1")
    return max_skipped if policy == "skip" else 0
