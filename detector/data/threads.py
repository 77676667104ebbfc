"""How many threads numpy's work on large arrays is spread over."""

from __future__ import annotations

import os

_MOST = 4  # more would wait for memory, or for the one that takes what they give


def num_threads() -> int:
    """As many as there are cores that this process may use, up to a few."""
    if hasattr(os, "sched_getaffinity"):
        return min(_MOST, len(os.sched_getaffinity(0)))
    return min(_MOST, os.cpu_count() or 1)
