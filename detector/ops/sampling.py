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
    labels: Tensor,
    num_samples: int,
    positive_fraction: float,
    seeds: Tensor | None = None,
    stream: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws candidates without replacement into fixed slots, positives first.

    At most ``num_samples * positive_fraction`` positives are drawn; negatives fill the rest, as in
    Fast R-CNN, section 2.3. Top-k of random keys does it without a data-dependent shape.

    Args:
        labels: ``(B, N)`` int64: 1 positive, 0 negative, -1 never drawn.
        num_samples: S, slots per image.
        positive_fraction: the largest share of positives.
        seeds: ``(B,)`` int64: what is drawn for an image follows from its seed alone, not from the
            images beside it; ``None`` draws from torch's generator.
        stream: other draws from the same seeds have another number.

    Returns:
        ``(B, S)`` int64 index into N, ``(B, S)`` bool positive, ``(B, S)`` bool valid.
    """
    if seeds is None:
        keys = torch.rand(labels.shape, device=labels.device)
    else:
        keys = hashed_keys(seeds, labels.shape[1], stream)
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


def hashed_keys(seeds: Tensor, count: int, stream: int = 0) -> Tensor:
    """Uniform random numbers as a function of their seed and place, in parallel and on any device.

    Counter-based like those of Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011),
    here by two rounds of a 32-bit integer hash.

    Args:
        seeds: ``(B,)`` int64 in ``0..2**32 - 1``.
        count: N, of each seed; fewer are the beginning of more.
        stream: a small number; other streams have nothing in common.

    Returns:
        ``(B, N)`` float32 in ``[0, 1)``, multiples of ``2**-24`` as ``torch.rand`` gives them.
    """
    places = torch.arange(count, device=seeds.device) + (stream << 28)
    return (_mix(_mix(places) ^ seeds[:, None]) >> 8).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """Shuffles the integers below ``2**32``; the products stay below ``2**63``."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 15)


def _top(keys: Tensor, eligible: Tensor, count: int) -> tuple[Tensor, Tensor]:
    # One column at least, so that gather has something to read; its key of -1 says it is empty.
    values, index = torch.where(eligible, keys, -1.0).topk(max(count, 1), dim=1)
    return values if count else torch.full_like(values, -1.0), index
