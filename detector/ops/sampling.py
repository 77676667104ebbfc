"""Random choice of a fixed number of foreground and background candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.ops.matching import NEGATIVE, POSITIVE


def check_sampling(where: str, num_samples: int, positive_fraction: float) -> None:
    """Refuses numbers that leave nothing to train on, or more positives than slots.

    Raises:
        ValueError: names the settings below ``where``.
    """
    if num_samples < 1 or not 0 < positive_fraction <= 1:
        raise ValueError(
            f"{where}.num_samples={num_samples} and {where}.positive_fraction={positive_fraction}: "
            "give at least one sample, and a fraction above 0 and up to 1"
        )


def sample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws candidates without replacement into fixed slots, positives first.

    At most ``num_samples * positive_fraction`` positives are drawn; negatives fill the rest, as in
    Fast R-CNN, section 2.3. Top-k of random keys does it without a data-dependent shape.

    Args:
        labels: ``(B, N)`` int64: 1 positive, 0 negative, -1 never drawn.
        num_samples: S, slots per image.
        positive_fraction: the largest share of positives.

    Returns:
        ``(B, S)`` int64 index into N, ``(B, S)`` bool positive, ``(B, S)`` bool valid.
    """
    keys = torch.rand(labels.shape, device=labels.device)
    max_positives = min(int(num_samples * positive_fraction), labels.shape[1])
    positive_keys, positives = _top(keys, labels == POSITIVE, max_positives)
    negative_keys, negatives = _top(keys, labels == NEGATIVE, min(num_samples, labels.shape[1]))
    num_positives = (positive_keys >= 0).sum(1, keepdim=True)
    num_negatives = (negative_keys >= 0).sum(1, keepdim=True)

    slot = torch.arange(num_samples, device=labels.device).expand(len(labels), -1)
    is_positive = slot < num_positives
    negative_slot = slot - num_positives
    valid = is_positive | (negative_slot < num_negatives)
    index = torch.where(
        is_positive,
        positives.gather(1, slot.clamp(max=max(max_positives - 1, 0))),
        negatives.gather(1, negative_slot.clamp(min=0, max=negatives.shape[1] - 1)),
    )
    return index * valid, is_positive, valid


def _top(keys: Tensor, eligible: Tensor, count: int) -> tuple[Tensor, Tensor]:
    # One column at least, so that gather has something to read; its key of -1 says it is empty.
    values, index = torch.where(eligible, keys, -1.0).topk(max(count, 1), dim=1)
    return values if count else torch.full_like(values, -1.0), index
