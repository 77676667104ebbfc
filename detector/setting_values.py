"""Values that users give to settings, held against the defaults that they replace.

A constructor that gets a word for a number may notice it late, or never: ``2.5`` steps would train
and fail at the end. The default says what is meant, so no second description of every setting is
needed.
"""

from __future__ import annotations

from typing import Any

# Settings whose configs give null a meaning though their default may be a number.
_MAY_BE_NULL = ("training.", "optimizer.norm_weight_decay", "optimizer.bias_weight_decay")
# Words that stand for a number which is then found.
_WORDS = {"data.batch_size": "auto"}


def fit_value(key: str, value: Any, default: Any) -> Any:
    """``value`` for the setting ``key``, if it is of the kind of ``default``.

    A default of ``None`` accepts everything, whole numbers are accepted for fractions, and numbers
    become text where text is meant, as in ``data.root=2024``.

    Args:
        key: full name, for the message.
        value: plain Python, as are lists and dicts of it.
        default: likewise.

    Raises:
        ValueError: it is of another kind; names key, value and default.
    """
    if default is None or (isinstance(value, str) and value == _WORDS.get(key)):
        return value
    if isinstance(default, dict) and isinstance(value, dict):
        return {
            name: fit_value(f"{key}.{name}", child, default.get(name))
            for name, child in value.items()
        }
    if isinstance(default, str) and isinstance(value, int | float):
        return str(value)
    if not _is_of_kind(key, value, default):
        shown = "null" if value is None else value
        raise ValueError(
            f"{key}={shown}: {_kind(default)} is expected here, such as {key}={_shown(default)}"
        )
    return value


def _is_of_kind(key: str, value: Any, default: Any) -> bool:
    if value is None:
        is_number = isinstance(default, int | float)
        return not is_number or key.startswith(_MAY_BE_NULL)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list) and isinstance(value, list):
        return not default or all(_is_item(item, default[0]) for item in value)
    return isinstance(value, type(default))


def _is_item(item: Any, first: Any) -> bool:
    if isinstance(first, int | float):
        return isinstance(item, int | float)
    return not isinstance(first, list) or isinstance(item, list)


def _kind(default: Any) -> str:
    if isinstance(default, bool):
        return "true or false"
    names = {
        int: "a whole number",
        float: "a number",
        list: "a list like the default",
        dict: "a group of settings",
    }
    return names.get(type(default), "text")


def _shown(default: Any) -> str:
    if isinstance(default, dict):
        return f"{{{next(iter(default), '')}: ...}}"
    return str(default).lower() if isinstance(default, bool) else str(default).replace(" ", "")
