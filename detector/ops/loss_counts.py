"""What losses are divided by, where a batch is computed in parts.

Some losses are means over what a batch happens to have: its sampled RoIs, its foreground. The means
of the parts of a batch are then not the parts of its mean. So every loss asks :func:`loss_count`,
and whoever splits a batch says here what the whole of it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

Count = TypeVar("Count", int, Tensor)

_whole: Callable[[int | Tensor], int | Tensor] | None = None


def loss_count(count: Count) -> Count:
    """The number that a sum over the batch is divided by: ``count``, or that of the whole batch.

    Args:
        count: of this (part of the) batch: a 0-d integer tensor, or a plain integer.

    Returns:
        At least 1, so that a batch without any has a loss of zero.
    """
    if _whole is not None:
        count = _whole(count)
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


class WholeBatch:
    """The counts of all parts of a batch together.

    The parts go through the model twice: under :meth:`counting`, where their losses are of no use,
    and then under :meth:`dividing`, where the losses of all parts add up to those of the batch.
    A forward pass asks for the same counts in the same order every time.

    Attributes:
        totals: the counts so far, in that order.
    """

    def __init__(self) -> None:
        self.totals: list[int | Tensor] = []

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Around the forward pass of one part."""
        counts: list[int | Tensor] = []

        def count(own: int | Tensor) -> int | Tensor:
            counts.append(own)
            return own

        with asking(count):
            yield
        assert not self.totals or len(self.totals) == len(counts), "other losses than before"
        former = self.totals or [0] * len(counts)
        self.totals = [a + b for a, b in zip(former, counts, strict=True)]

    @contextmanager
    def dividing(self) -> Iterator[None]:
        """Around the forward pass of one part, whose losses get the whole batch's counts."""
        totals = iter(self.totals)
        with asking(lambda own: next(totals)):
            yield


@contextmanager
def asking(whole: Callable[[int | Tensor], int | Tensor]) -> Iterator[None]:
    """Within it :func:`loss_count` gives ``whole(count)``, which it is called with in turn."""
    global _whole
    assert _whole is None, "the parts of a batch have no parts"
    _whole = whole
    try:
        yield
    finally:
        _whole = None
