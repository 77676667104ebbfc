"""Reads large JSON files."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import orjson  # an extra of the package
except ImportError:
    orjson = None


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    With ``orjson`` it takes 0.4 of the time (measured on 432 MB of COCO annotations). What it
    refuses (NaN, and what is no JSON at all) goes to Python's own parser: the result, or the
    message, is the same with and without it.

    Raises:
        ValueError: it is not JSON.
    """
    content = file.read_bytes()
    if orjson is not None:
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(content)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: not a JSON file ({error}); check that it was copied whole"
        ) from error


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pauses the search for cycles, in vain among the millions of lists of a JSON file.

    It takes as long as the parsing itself.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
