"""COCO's compressed run-length encoding, written for many masks at once.

A mask is read column by column; its runs alternate between zeros and ones, zeros first. COCO
writes the lengths as text: each as the difference from the last length of the same kind but one,
in groups of five bits, low ones first, one character from ``chr(48)`` on for each group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RLE = dict[str, Any]
"""A COCO run-length encoding: ``{"size": [height, width], "counts": str}``."""


def encode_borders(borders: np.ndarray, ends: np.ndarray, height: int, width: int) -> list[RLE]:
    """Encodings of masks given by the places where their value changes.

    Args:
        borders: int64; for each mask, in order, the indices ``column * height + row`` of pixels
            that differ from the pixel before them in column order, never decreasing; the first
            is where ones begin. An index that stands twice says nothing, and ``height * width``
            stands for the end.
        ends: ``(N,)`` int64, where each mask's borders end in ``borders``.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        N encodings with ``counts`` as text, ready for JSON.
    """
    num_masks, pixels = len(ends), height * width
    if not num_masks:
        return []
    # Each mask gets numbers of its own, 0..pixels, so that all are one increasing sequence.
    base = np.arange(num_masks, dtype=np.int64) * (pixels + 1)
    keys = borders + np.repeat(base, np.diff(ends, prepend=0))
    keys = _without_pairs(keys)
    ends = np.searchsorted(keys, base + pixels + 1)
    counts, starts = _run_lengths(keys, ends, base, pixels)

    differences = counts.copy()
    differences[3:] -= counts[1:-2]
    for place in range(3):  # the first lengths of a mask are written as they are
        first = (starts[:-1] + place)[starts[:-1] + place < len(counts)]
        differences[first] = counts[first]
    text, text_ends = _as_text(differences)
    text_starts = np.concatenate([[0], text_ends])[starts].tolist()
    return [
        {"size": [height, width], "counts": text[text_starts[i] : text_starts[i + 1]]}
        for i in range(num_masks)
    ]


def _without_pairs(keys: np.ndarray) -> np.ndarray:
    """Of equal neighbours one is left where their number is odd, and none where it is even."""
    if not (keys[1:] == keys[:-1]).any():
        return keys
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first[np.diff(first, append=len(keys)) % 2 == 1]]


def _run_lengths(
    keys: np.ndarray, ends: np.ndarray, base: np.ndarray, pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of all masks in a row, and ``(N + 1,)`` where each mask's begin."""
    # Between the borders stand the first and the last place of every mask.
    two = 2 * np.arange(len(ends))
    bounds = np.empty(len(keys) + 2 * len(ends), np.int64)
    is_border = np.ones(len(bounds), bool)
    first, last = np.concatenate([[0], ends[:-1]]) + two, ends + two + 1
    is_border[first] = is_border[last] = False
    bounds[is_border], bounds[first], bounds[last] = keys, base, base + pixels
    lengths = np.diff(bounds)
    # What lies between two masks is no run; nor is what follows a run down to the last pixel.
    is_run = np.ones(len(lengths), bool)
    is_run[last[:-1]] = False
    is_run[last - 1] = (lengths[last - 1] > 0) | (first == last - 1)
    starts = np.concatenate([[0], np.cumsum(is_run)])[np.append(first, len(lengths))]
    return lengths[is_run], starts


def _as_text(values: np.ndarray) -> tuple[str, np.ndarray]:
    """Signed numbers in groups of five bits; the characters, and where each number's end."""
    # n groups hold numbers of 5 n bits with their sign; ~x needs as many as x.
    magnitude = np.where(values < 0, ~values, values)
    lengths = np.ones(len(values), np.int64)
    limit = 16
    while True:
        longer = magnitude >= limit
        if not longer.any():
            break
        lengths += longer
        limit *= 32
    ends = np.cumsum(lengths)
    text = np.empty(ends[-1], np.uint8)
    places, rest = ends - lengths, values
    while True:
        more = lengths > 1
        text[places] = (rest & 31) + 48 + 32 * more
        if not more.any():
            return text.tobytes().decode("ascii"), ends
        places, rest, lengths = places[more] + 1, rest[more] >> 5, lengths[more] - 1
