"""Where files are kept that can be made again: annotation indices, image checks, kernels."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_directory() -> Path:
    """``$DETECTOR_CACHE``, else the user's cache folder."""
    if explicit := os.environ.get("DETECTOR_CACHE"):
        return Path(explicit)
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "detector"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "detector"
