"""How far reading has come, for whoever wants to show it.

Reading a large dataset for the first time takes seconds or minutes. What reads says here how much
there is to do and what is done; who runs it may install a display. Without one nothing is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
"""Takes how much has been done since the last call."""
Display = Callable[[str, int, str], AbstractContextManager[Advance]]
"""Of what is done, how much there is to do, and in what unit (``"files"``, ``"bytes"``)."""


@contextmanager
def _show_nothing(what: str, total: int, unit: str) -> Iterator[Advance]:
    yield lambda amount: None


_display: Display = _show_nothing


def show_slow_work(display: Display | None) -> None:
    """Installs what shows slow work from now on in this process; ``None``: nothing does."""
    global _display
    _display = display or _show_nothing


def slow_work(what: str, total: int, unit: str) -> AbstractContextManager[Advance]:
    """Around work that may be slow; gives what is to be told of the parts that are done."""
    return _display(what, total, unit)
