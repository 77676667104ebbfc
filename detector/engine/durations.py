"""Spans of time as users write them."""

from __future__ import annotations

import re

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_NUMBER = r"(\d+(?:\.\d+)?)"
_TEXT = re.compile("".join(f"(?:{_NUMBER}{unit})?" for unit in _UNITS))


def parse_duration(key: str, value: str | float | None) -> float | None:
    """Seconds of ``90``, ``"30m"``, ``"1h30m"`` or ``"45s"``; ``None`` stays.

    Args:
        key: the setting, for the message.
        value: what it is set to.

    Raises:
        ValueError: no span of time, or none above zero.
    """
    if value is None:
        return None
    seconds = 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (found := _TEXT.fullmatch(value.replace(" ", ""))):
        parts = zip(found.groups(), _UNITS.values(), strict=True)
        seconds = sum(float(number) * unit for number, unit in parts if number)
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{key}={value}: write a time such as 30m, 1h30m, 45s or seconds, or null")
    return seconds
