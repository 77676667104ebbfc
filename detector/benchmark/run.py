"""The benchmark: tables on standard output, and the same numbers as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from detector.benchmark.comparison import compare, comparison_table
from detector.benchmark.evaluation_rows import measure_evaluation
from detector.benchmark.index_rows import measure_index
from detector.benchmark.kernels import measure_resources, resources_table, specialisations
from detector.benchmark.loading_rows import measure_loading
from detector.benchmark.machine import describe_run
from detector.benchmark.measure import copy_bandwidth
from detector.benchmark.model_rows import measure_models
from detector.benchmark.rows import all_rows
from detector.engine.atomic_file import write_json
from detector.engine.progress import open_console
from detector.ops.cuda.runtime import KernelsUnavailable

WIDTH_IN_A_FILE = 170
KINDS = ("ops", "train", "infer", "kernels", "data", "evaluate")
# What is another one on another device, which what=all measures.
OF_A_DEVICE = ("ops", "infer", "train", "kernels")


def benchmark(cfg: DictConfig) -> dict[str, Any]:
    """Measures what ``cfg.what`` names and prints it.

    Args:
        cfg: composed from ``configs/benchmark.yaml``.

    Returns:
        What was measured and on what, as written to ``cfg.json``.

    Raises:
        ValueError: ``what`` or ``device`` is unknown, there is no such device, the kernels cannot
            be compiled, or a setting does not fit what is measured.
    """
    if cfg.what not in (*KINDS, "all"):
        raise ValueError(f"what={cfg.what}: {', '.join(KINDS)} can be measured, or all")
    if cfg.repeats < 1:
        raise ValueError(f"repeats={cfg.repeats}: a median needs at least one")
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    console = open_console()
    if not console.is_terminal:
        console.width = WIDTH_IN_A_FILE
    device = choose_device(cfg.device)
    report = describe_run(device)
    hardware = report.get("gpu") or f"{report['cpu']}, {report['threads']} threads"
    console.print(f"{hardware}, torch {report['torch']}", soft_wrap=True)
    if cfg.what == "all":
        for what in OF_A_DEVICE:
            console.print(f"\nwhat={what}")
            try:
                report[what] = _measure(OmegaConf.merge(cfg, {"what": what}), device, console)
            except ValueError as error:
                if what != "kernels":  # which need a compiler, the rest does not
                    raise
                report[what] = {"left_out": str(error)}
                console.print(f"kernels are left out: {error}", soft_wrap=True)
    else:
        report |= _measure(cfg, device, console)
    if cfg.json is not None:
        write_json(Path(cfg.json), report)
        console.print(f"written to {cfg.json}", soft_wrap=True)
    return report


def _measure(cfg: DictConfig, device: torch.device, console: Console) -> dict[str, Any]:
    if cfg.what == "ops":
        return measure_ops(device, cfg.repeats, cfg.only, console)
    if cfg.what in ("train", "infer"):
        return measure_models(cfg, device, console)
    if cfg.what == "data":
        return measure_data(cfg, console)
    if cfg.what == "evaluate":
        return measure_evaluation(console)
    return measure_kernels(console)


def measure_data(cfg: DictConfig, console: Console) -> dict[str, Any]:
    """The start on a large annotation file, and what one data worker gives after it."""
    parts = {
        "index": lambda: measure_index(cfg.repeats, console),
        "loading": lambda: measure_loading(cfg.repeats, console, cfg.annotations, cfg.images),
    }
    chosen = [name for name in parts if (cfg.only or "") in name]
    if not chosen:
        raise ValueError(f"only={cfg.only}: of what=data, {' or '.join(parts)} can stand alone")
    return {name: parts[name]() for name in chosen}


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one.

    Raises:
        ValueError: another word than ``auto``, ``cpu`` or ``cuda``; or no GPU is there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name}: auto, cpu or cuda is expected")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: PyTorch sees no GPU; device=cpu measures the CPU")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def measure_ops(
    device: torch.device, repeats: int, only: str | None, console: Console
) -> dict[str, Any]:
    """Every comparison whose name contains ``only``."""
    bandwidth = copy_bandwidth(device, repeats)
    rows = []
    for comparison in all_rows(device, only or ""):
        rows += compare(comparison, device, repeats)
        last = rows[-1]
        console.print(f"{last.op}: {last.our_seconds * 1e3:.3g} ms, {last.ratio:.2f}x")
    if not rows:
        raise ValueError(f"only={only}: no op has this in its name")
    title = f"Medians of {repeats}; a plain copy moves {bandwidth / 1e9:.3g} GB/s"
    console.print(comparison_table(rows, title))
    return {
        "repeats": repeats,
        "copy_bytes_per_second": bandwidth,
        "rows": [row.as_json() for row in rows],
    }


def measure_kernels(console: Console) -> dict[str, Any]:
    """What the compiler says of every specialisation, for every architecture."""
    try:
        found = measure_resources(specialisations())
    except KernelsUnavailable as error:
        raise ValueError(str(error)) from error
    console.print(resources_table(found))
    fields = ("registers", "shared_bytes", "stack_bytes", "spilled_bytes", "code_bytes")
    return {
        "kernels": [
            {
                "kernel": one.kernel.name,
                "source": one.kernel.source,
                "macros": dict(one.kernel.macros),
                "architecture": one.architecture,
                **{field: getattr(one, field) for field in fields},
            }
            for one in found
        ]
    }
