"""Parts of a model by their dotted paths, as settings name them: ``backbone.trunk.layer1``."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def find_part(model: nn.Module, path: str, setting: str) -> nn.Module:
    """The part at ``path``.

    Args:
        model: such as a :class:`detector.rcnn.MaskRCNN`.
        path: names of parts within parts, as ``model.named_modules()`` joins them.
        setting: what the user wrote, for the message.

    Raises:
        ValueError: there is none; names the parts where the path ends.
    """
    here, walked = model, ""
    for name in path.split("."):
        parts = dict(here.named_children())
        if name not in parts:
            where = f"{walked} ({type(here).__name__})" if walked else type(here).__name__
            inside = f"it has {', '.join(parts)}" if parts else "which has no parts"
            raise ValueError(f"{setting}: {where} has no part {name}, {inside}")
        here = parts[name]
        walked = f"{walked}.{name}" if walked else name
    return here


def is_below(name: str, path: str) -> bool:
    """Whether ``name``, of a parameter or a part, is ``path`` or lies inside of it."""
    return name == path or name.startswith(f"{path}.")


def longest_prefix(name: str, paths: Iterable[str]) -> str | None:
    """The most specific of ``paths`` that ``name`` lies below, if any."""
    return max((path for path in paths if is_below(name, path)), key=len, default=None)
