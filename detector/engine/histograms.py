"""How the values of tensors are spread, counted where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NUM_BINS = 64


@dataclass(frozen=True)
class Histogram:
    """Of a tensor's n finite values, n > 0.

    Attributes:
        count: n.
        low, high: the smallest and the largest.
        sum, sum_squares: of all.
        limits: ``(bins,)`` float64 ascending, the right ends of bins of one width from ``low`` on.
        counts: ``(bins,)`` float64, how many lie in each.
    """

    count: int
    low: float
    high: float
    sum: float
    sum_squares: float
    limits: np.ndarray
    counts: np.ndarray


def count_values(tensors: Sequence[Tensor], num_bins: int = NUM_BINS) -> list[Histogram | None]:
    """Histograms of tensors of any shapes and float dtypes, on one device.

    Only the counts come to the host, of all tensors at once: where they are on a GPU, the host
    waits for it a single time.

    Returns:
        One for each; ``None`` of a tensor without finite values.
    """
    if not tensors:
        return []
    rows = torch.stack([_row(tensor.detach(), num_bins) for tensor in tensors]).cpu().numpy()
    return [_histogram(row) for row in rows]


def _row(values: Tensor, num_bins: int) -> Tensor:
    """``(4 + bins,)`` float64: low, high, sum, sum of squares, counts."""
    values = values.reshape(-1).float()
    finite = torch.isfinite(values)
    low = torch.where(finite, values, torch.inf).amin() if len(values) else values.new_tensor(0.0)
    high = torch.where(finite, values, -torch.inf).amax() if len(values) else low
    kept = torch.where(finite, values, 0.0).double()
    low, high = low.double(), high.double()
    width = (high - low) / num_bins
    # What is not finite is counted in a bin of its own, which is cut off.
    place = ((kept - low) / torch.where(width > 0, width, 1.0)).clamp(0, num_bins - 1)
    place = torch.where(finite, place, num_bins).long()
    counts = kept.new_zeros(num_bins + 1).scatter_add_(0, place, torch.ones_like(kept))
    return torch.cat([torch.stack([low, high, kept.sum(), kept.square().sum()]), counts[:-1]])


def _histogram(row: np.ndarray) -> Histogram | None:
    low, high, total, squares = row[:4].tolist()
    counts = row[4:]
    if not counts.sum():
        return None
    # Of equal values, all lie in the first bin, which must have a width to be drawn.
    width = (high - low) / len(counts) or max(abs(low), 1e-6) * 1e-6
    limits = low + width * np.arange(1, len(counts) + 1)
    return Histogram(int(counts.sum()), low, high, total, squares, limits, counts)
