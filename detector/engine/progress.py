"""What the user sees while it runs: a live bar in a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Self, TypeVar

import rich.progress
from rich.console import Console, Group
from rich.errors import LiveError
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")

SILENCE = 60.0  # seconds after which a log without a bar is told that something still goes on
PATIENCE = 1.0  # seconds of work that needs no bar


class ProgressDisplay:
    """Plain lines; the base of :class:`LiveDisplay`.

    Args:
        console: where to print.
        max_steps: the last step.
        step: finished steps.
    """

    def __init__(self, console: Console, max_steps: int, step: int = 0) -> None:
        self.console = console
        self.max_steps = max_steps
        self.step = step
        self._seconds_per_step: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def print(self, *what: Any) -> None:
        """Text or a rich table, above the bar."""
        self.console.print(*what, soft_wrap=all(isinstance(x, str) for x in what))

    def note(self, text: str) -> None:
        """What is going on between two reports; a bar has room for it, and a warning stays."""
        self.print(text)

    def advance(self, step: int) -> None:
        """``step`` steps are finished."""
        self.step = step

    def report(self, values: dict[str, float], seconds_per_step: float) -> None:
        """The newest losses and speeds, and the time one step took lately."""
        self._seconds_per_step = seconds_per_step
        self.print(f"step {self.step}/{self.max_steps}  {describe(values)}  ETA {self.eta()}")

    def eta(self) -> str:
        """Time left in training steps, evaluations not counted."""
        if self._seconds_per_step is None:
            return "-:--:--"
        return duration((self.max_steps - self.step) * self._seconds_per_step)

    def track(self, items: Iterable[Item], total: int, what: str, unit: str) -> Iterator[Item]:
        """Passes ``items`` on and shows how many of ``total`` have been handled."""
        return track(items, total, what, unit, self.console)


class LiveDisplay(ProgressDisplay):
    """A bar with losses, images/s, time left and memory, drawn in place."""

    def __init__(self, console: Console, max_steps: int, step: int = 0) -> None:
        super().__init__(console, max_steps, step)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[eta]}"),
            console=console,
            expand=True,
        )
        self._training = self._bar.add_task("training", total=max_steps, completed=step, eta="")
        self._values = Text("", overflow="fold")
        self._live = Live(Group(self._bar, self._values), console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(None, None, None)

    def note(self, text: str) -> None:
        if text.startswith("warning"):
            self.print(text)
        else:
            self._values.plain = text

    def advance(self, step: int) -> None:
        super().advance(step)
        self._bar.update(self._training, completed=step, eta=f"ETA {self.eta()}")

    def report(self, values: dict[str, float], seconds_per_step: float) -> None:
        self._seconds_per_step = seconds_per_step
        self._values.plain = describe(values)

    def track(self, items: Iterable[Item], total: int, what: str, unit: str) -> Iterator[Item]:
        task = self._bar.add_task(what, total=total, eta="")
        try:
            for item in items:
                yield item
                self._bar.advance(task)
        finally:
            self._bar.remove_task(task)


def track(
    items: Iterable[Item], total: int, what: str, unit: str, console: Console
) -> Iterator[Item]:
    """Passes ``items`` on under a bar in a terminal; in a pipe, a line a minute and at the end."""
    began = said = time.perf_counter()
    if console.is_terminal:
        yield from rich.progress.track(items, what, total, console=console)
    else:
        for done, item in enumerate(items):
            if time.perf_counter() - said > SILENCE:
                said = time.perf_counter()
                console.print(f"{what}: {done}/{total} {unit}", soft_wrap=True)
            yield item
        elapsed = duration(time.perf_counter() - began)
        console.print(f"{what}: {total} {unit} in {elapsed}", soft_wrap=True)


@contextmanager
def late_bar(
    what: str, total: int, unit: str, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar of slow work, in a terminal only, once it has taken :data:`PATIENCE` seconds.

    It goes when the work is done. Takes and gives what
    :func:`detector.data.slow_work.show_slow_work` asks for.
    """
    console = console or open_console()
    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(what, total=total)
    due = time.perf_counter() + PATIENCE if console.is_terminal else float("inf")

    def advance(amount: int) -> None:
        nonlocal due
        bar.advance(task, amount)
        if time.perf_counter() > due:
            due = float("inf")
            with suppress(LiveError):  # another bar is there
                bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


def open_console(quiet: bool = False) -> Console:
    """Standard output, where text is shown as it is.

    Rich would take ``[ab]`` in a path or pattern for a style and swallow it.
    """
    return Console(markup=False, highlight=False, quiet=quiet)


def open_display(max_steps: int, step: int = 0, console: Console | None = None) -> ProgressDisplay:
    """The display that suits standard output."""
    console = console or open_console()
    kind = LiveDisplay if console.is_terminal else ProgressDisplay
    return kind(console, max_steps, step)


def describe(values: dict[str, float]) -> str:
    """``"loss 1.234 (box 0.3, mask 0.7)  gradient 2.1  lr 0.02  7.5 images/s  3.1 GiB"``."""
    skipped = f"  skipped {values['skipped_steps']:.0f}" if values.get("skipped_steps") else ""
    return (
        f"loss {values['loss']:.4g} ({_parts(values)})  "
        f"gradient {values['gradient_norm']:.3g}{skipped}  "
        f"lr {values['lr']:.3g}  {values['images_per_second']:.3g} images/s  "
        f"{values['memory_gib']:.2f} GiB"
    )


def _parts(values: dict[str, float]) -> str:
    return ", ".join(
        f"{name.removeprefix('loss_')} {value:.3g}"
        for name, value in values.items()
        if name.startswith("loss_")
    )


def describe_val_loss(losses: dict[str, float]) -> str:
    """``"validation loss 1.234 (box 0.3, mask 0.7)"``."""
    return f"validation loss {losses['loss']:.4g} ({_parts(losses)})"


def duration(seconds: float) -> str:
    """``"1:02:03"``."""
    return str(timedelta(seconds=round(seconds)))
