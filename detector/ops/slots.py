"""Which slots the expensive heads compute: all of them, or on CPU only the filled ones.

Fixed shapes cost nothing on a GPU that would otherwise wait for a count, but on a CPU every empty
slot is arithmetic. This is the only place that knows the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_drop_empty_on_cpu = True


@contextmanager
def keep_empty_slots() -> Iterator[None]:
    """Within this context the CPU computes empty slots too, as a GPU does."""
    global _drop_empty_on_cpu
    before, _drop_empty_on_cpu = _drop_empty_on_cpu, False
    try:
        yield
    finally:
        _drop_empty_on_cpu = before


def slots_to_compute(valid: Tensor) -> Tensor:
    """Rows of the flattened slots that are worth computing.

    Args:
        valid: ``(B, S)`` bool.

    Returns:
        ``(N,)`` int64 indices into ``B * S``: every slot, or only the filled ones on CPU.
    """
    if valid.device.type == "cpu" and _drop_empty_on_cpu:
        return valid.flatten().nonzero()[:, 0]
    return torch.arange(valid.numel(), device=valid.device)


def take_slots(values: Tensor, rows: Tensor) -> Tensor:
    """Rows ``(N, ...)`` of slots ``(B, S, ...)``."""
    return values.flatten(0, 1).index_select(0, rows)


def put_slots(values: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """Slots ``(B, S, ...)`` from rows ``(N, ...)``; slots that were not computed are zeros.

    Args:
        values: ``(N, ...)``.
        rows: ``(N,)`` as :func:`slots_to_compute` gave them.
        like: ``(B, S)``, gives the leading shape.
    """
    slots = values.new_zeros(like.numel(), *values.shape[1:])
    return slots.index_copy(0, rows, values).unflatten(0, like.shape)
