"""Damaged records: collected while reading, then refused together or skipped together."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OnError = Literal["raise", "skip"]

_MAX_LISTED = 20

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """One damaged record.

    Attributes:
        kind: ``"image"``, ``"annotation"`` or ``"category"``: the record that is dropped.
        record: how the file calls it, such as ``"image 12 (a.jpg)"``.
        what: what is wrong with it.
        remedy: what to do about it.
        box: where it is, if that is known: ``(x1, y1, x2, y2)`` in continuous pixels, maybe without
            area or outside the image.
        other_class: the name of its class, if all that is wrong is that the dataset is read without
            this class.
    """

    kind: str
    record: str
    what: str
    remedy: str
    box: Sequence[float] | None = None
    other_class: str | None = None

    def __str__(self) -> str:
        return f"{self.record}: {self.what}; {self.remedy}"


class DamagedRecord(Exception):
    """Raised with a :class:`Problem`'s fields from ``what`` on, where it is seen."""


def describe_problems(file: Path, problems: list[Problem]) -> str:
    """The file, how many records are damaged, and the first of them line by line."""
    counts = Counter(problem.kind for problem in problems)
    counted = " and ".join(
        f"{count} damaged {kind} record{'s' if count > 1 else ''}" for kind, count in counts.items()
    )
    lines = [f"{file}: {counted}"]
    lines += [f"  {problem}" for problem in problems[:_MAX_LISTED]]
    if len(problems) > _MAX_LISTED:
        lines.append(f"  ... and {len(problems) - _MAX_LISTED} more")
    return "\n".join(lines)


def describe_other_classes(problems: list[Problem]) -> str:
    """``"12 objects of classes not in data.classes: dog (9), cow (3)"``, or empty."""
    counts = Counter(name for each in problems if (name := each.other_class) is not None)
    if not counts:
        return ""
    listed = ", ".join(f"{name} ({count})" for name, count in counts.most_common(_MAX_LISTED))
    more = f" and {len(counts) - _MAX_LISTED} more" if len(counts) > _MAX_LISTED else ""
    total = counts.total()
    objects = f"{total} object{'s' if total > 1 else ''} of classes not in data.classes"
    return f"{objects}: {listed}{more}"


def settle_problems(file: Path, problems: list[Problem], on_error: OnError) -> None:
    """Refuses damaged records, or says once that they are left out.

    Raises:
        ValueError: there are problems and ``on_error`` is ``"raise"``; all are in one message.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error is {on_error!r}; it must be "raise" or "skip"')
    if not problems:
        return
    message = describe_problems(file, problems)
    others = describe_other_classes(problems)
    among = f" Among them are {others}." if others else ""
    if on_error == "raise":
        raise ValueError(
            f"{message}\nRepair these records, or leave them out with data.on_error=skip.{among}"
        )
    _logger.warning("%s\nThese records are left out (data.on_error=skip).%s", message, among)
