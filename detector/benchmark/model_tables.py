"""What was measured of whole detectors, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

MIB = 2**20


def print_tables(
    peer: str, comparison: Mapping[str, Any], peaks: Mapping[str, float], console: Console
) -> None:
    """Ratios, then all numbers of each side.

    Args:
        peer: beside which.
        comparison: one of :func:`detector.benchmark.model_rows.measure_models`.
        peaks: operations per second of a large product of matrices by precision.
        console: where to.
    """
    ratios = Table(title=f"beside {peer}; above 1 ours is faster", title_justify="left")
    for name in ("row", "ours", "beside"):
        ratios.add_column(name)
    for name in ("ratio", "of CPU time"):
        ratios.add_column(name, justify="right", no_wrap=True)
    for row in comparison["rows"]:
        numbers = (f"{row['ratio']:.2f}x", f"{row['cpu_ratio']:.2f}x")
        ratios.add_row(row["row"], row["ours"], row["beside"], *numbers)
    console.print(ratios)

    table = Table(title_justify="left")
    table.add_column("side")
    for name in ("images/s", "peak MiB", "GFLOP", "of the peak", "RoIs"):
        table.add_column(name, justify="right", no_wrap=True)
    stages = list(
        dict.fromkeys(s for side in comparison["sides"].values() for s in side["seconds_by_stage"])
    )
    for name in stages:
        table.add_column(f"{name} ms", justify="right", no_wrap=True)
    on_gpu = any("busy_share" in side for side in comparison["sides"].values())
    for name in ("busy", "host waits") if on_gpu else ():
        table.add_column(name, justify="right", no_wrap=True)
    for name, side in comparison["sides"].items():
        table.add_row(name, *_cells(side, stages, peaks, on_gpu))
    console.print(table)


def share_of_peak(side: Mapping[str, Any], peaks: Mapping[str, float]) -> float:
    """Of the operations per second that a product of matrices reaches in the same precision."""
    peak = peaks["float32" if side["precision"] == "float32" else "bf16"]
    return side["flops"] * side["images_per_second"] / peak


def _cells(
    side: Mapping[str, Any], stages: list[str], peaks: Mapping[str, float], on_gpu: bool
) -> list[str]:
    times = side["seconds_by_stage"]
    cells = [
        f"{side['images_per_second']:.3g}",
        f"{side['peak_bytes'] / MIB:.0f}",
        f"{side['flops'] / 1e9:.4g}",
        f"{share_of_peak(side, peaks):.0%}",
        " + ".join(f"{number:g}" for number in side["pooled"].values()),
        *(f"{times[stage] * 1e3:.3g}" if stage in times else "" for stage in stages),
    ]
    if on_gpu:
        cells += [f"{side['busy_share']:.1%}", str(side["host_waits"])]
    return cells
