"""One row of the table: an op beside what else computes the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table

from detector.benchmark.measure import Side, median_seconds, peak_bytes

MIB = 2**20


@dataclass(frozen=True)
class Comparison:
    """An op with its inputs bound, and others' ways to the same result.

    Attributes:
        op: its name.
        inputs: what it is given, in words and shapes.
        ours: takes nothing; what it gives is handed to ``check``.
        others: by name, likewise.
        check: ``check(ours, theirs)`` fails if they do not mean the same.
        with_memory: the peak of memory is worth a look.
        traffic_bytes: the least bytes that must be read and written, for bytes per second.
    """

    op: str
    inputs: str
    ours: Side
    others: Mapping[str, Side]
    check: Callable[[Any, Any], None] | None = None
    with_memory: bool = False
    traffic_bytes: int = 0


@dataclass(frozen=True)
class Row:
    """What was measured: seconds and bytes, ``None`` where it was not asked for."""

    op: str
    inputs: str
    other: str
    our_seconds: float
    their_seconds: float
    our_peak_bytes: int | None
    their_peak_bytes: int | None
    our_bytes_per_second: float | None

    @property
    def ratio(self) -> float:
        return self.their_seconds / self.our_seconds

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio}


def compare(comparison: Comparison, device: torch.device, repeats: int) -> list[Row]:
    """Measures every side in one run: a row for each of the others.

    Raises:
        AssertionError: the sides do not agree, so that their times say nothing.
    """
    if comparison.check is not None:
        result = comparison.ours()
        for side in comparison.others.values():
            comparison.check(result, side())
        del result
    sides = {"ours": comparison.ours, **comparison.others}
    seconds = median_seconds(sides, device, repeats)
    peaks: dict[str, int | None] = dict.fromkeys(sides)
    if comparison.with_memory:
        peaks = {name: peak_bytes(side, device) for name, side in sides.items()}
    traffic = comparison.traffic_bytes
    return [
        Row(
            comparison.op,
            comparison.inputs,
            other,
            our_seconds=seconds["ours"],
            their_seconds=seconds[other],
            our_peak_bytes=peaks["ours"],
            their_peak_bytes=peaks[other],
            our_bytes_per_second=traffic / seconds["ours"] if traffic else None,
        )
        for other in comparison.others
    ]


def comparison_table(rows: Sequence[Row], title: str) -> Table:
    """The rows with milliseconds, MiB and GB/s."""
    table = Table(title=title)
    for name in ("op", "inputs"):
        table.add_column(name, overflow="fold", min_width=12)
    table.add_column("ours ms", justify="right", no_wrap=True)
    table.add_column("beside", overflow="fold", min_width=12)
    for name in ("theirs ms", "ratio", "ours MiB", "theirs MiB", "ours GB/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.op,
            row.inputs,
            f"{row.our_seconds * 1e3:.3g}",
            row.other,
            f"{row.their_seconds * 1e3:.3g}",
            f"{row.ratio:.2f}x",
            *(
                "" if peak is None else f"{peak / MIB:.3g}"
                for peak in (row.our_peak_bytes, row.their_peak_bytes)
            ),
            "" if row.our_bytes_per_second is None else f"{row.our_bytes_per_second / 1e9:.3g}",
        )
    return table
