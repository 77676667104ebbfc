"""Whole detectors, ours beside others': the same weights, images, sizes and objects in one run."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console

from detector.benchmark.measure import matrix_peak
from detector.benchmark.model_tables import print_tables
from detector.benchmark.model_workload import PEERS, Counts, make_workload
from detector.benchmark.side_process import SideFailed, SideProcess, SideSettings, medians
from detector.engine.assembly import plain

# Images, height and width of a batch: on a CPU what it can do in seconds, on a GPU COCO's buckets.
CPU_SHAPES = ((2, 480, 640),)
BUCKETS = ((800, 1344), (1344, 800))
GPU_BATCH = {"train": 16, "infer": 8}
# Steps that follow each other on a GPU before anyone waits for it.
GPU_STEPS = 10

FLOAT32, BF16 = "float32, contiguous", "bf16, channels_last"
OURS_AUTO = "ours, runtime={}"


def measure_models(cfg: DictConfig, device: torch.device, console: Console) -> dict[str, Any]:
    """Training or inference of a detector beside each peer, printed as tables.

    Args:
        cfg: composed from ``configs/benchmark.yaml``; ``what`` is ``train`` or ``infer``.
        device: to run on.
        console: for the tables.

    Returns:
        ``comparisons``: of each peer ``rows`` (``ours``, ``beside`` and ``ratio``, their time by
        ours), ``sides`` (what was measured of each) and what they were given;
        ``matrix_peak`` by precision; ``left_out``: what could not be measured, and why.

    Raises:
        ValueError: an unknown peer or network, or shapes that are none.
        AssertionError: the sides do not find the same, so that their times say nothing.
    """
    against = plain(cfg.against) or "torchvision"
    against = [against] if isinstance(against, str) else against
    for peer in against:
        if peer not in PEERS:
            raise ValueError(f"against={peer}: {' or '.join(PEERS)} can be compared with")
    left_out = {peer: _missing(peer) for peer in against if _missing(peer)}
    for peer, why in left_out.items():
        console.print(f"{peer} is left out: {why}", soft_wrap=True)
    shapes = plain(cfg.shapes)
    if shapes is None and device.type == "cpu":
        shapes = CPU_SHAPES
    elif shapes is None:
        shapes = [(GPU_BATCH[cfg.what], *bucket) for bucket in BUCKETS]
    peaks = {
        "float32": matrix_peak(device, torch.float32),
        "bf16": matrix_peak(device, torch.bfloat16),
    }
    comparisons = {}
    for peer in against:
        if peer not in left_out:
            comparisons[peer] = _compare(cfg, peer, shapes, device, console, left_out)
            print_tables(peer, comparisons[peer], peaks, console)
    return {
        "network": cfg.network,
        "shapes": [list(shape) for shape in shapes],
        "repeats": cfg.repeats,
        "comparisons": comparisons,
        "matrix_peak": peaks,
        "left_out": left_out,
    }


def _missing(peer: str) -> str | None:
    if importlib.util.find_spec(peer) is None:
        return f"the package {peer} is not installed"
    return None


def _compare(
    cfg: DictConfig,
    peer: str,
    shapes: Sequence[Sequence[int]],
    device: torch.device,
    console: Console,
    left_out: dict[str, str],
) -> dict[str, Any]:
    trains = cfg.what == "train"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        workload = make_workload(cfg.network, peer, shapes, Counts(**plain(cfg.counts)))
        num_objects = [int(batch.targets.valid.sum()) for batch in workload.batches]
        file = Path(folder) / "workload.pt"
        torch.save(workload, file)
        del workload
        base = SideSettings(
            file,
            trains,
            device.type,
            cfg.threads,
            steps=1 if device.type == "cpu" else GPU_STEPS,
            warm_up=1 if device.type == "cpu" else 5,
        )
        names, rows = _sides(cfg, peer, base)
        sides: dict[str, SideProcess] = {}
        found: dict[str, dict[str, Any]] = {}
        for name, settings in names.items():
            console.print(f"preparing {name}", soft_wrap=True)
            try:
                process = running.enter_context(SideProcess(settings))
                found[name] = process.ask("prepare")
                sides[name] = process
            except SideFailed as error:
                # The peers have no bf16 of their own; whether they run in it is to be seen.
                if settings.peer is None or not settings.bf16:
                    raise
                left_out[name] = str(error)
                console.print(f"{name} is left out: {error}", soft_wrap=True)
        if not trains:
            check_found(found[f"ours, {FLOAT32}"]["found"], found[f"{peer}, {FLOAT32}"]["found"])
            for side in found.values():
                side["detections"] = [len(image["scores"]) for image in side.pop("found")]
        samples: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for _ in range(cfg.repeats):
            for name, process in sides.items():
                samples[name].append(process.ask("sample"))
        stages: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(0 if trains else min(cfg.repeats, 5)):
            for name, process in sides.items():
                stages[name].append(process.ask("stages"))
        for name, process in sides.items():
            found[name] |= _summary(samples[name], stages[name])
            # Memory is read before what only counts; then the process has done its duty.
            found[name] |= process.ask("count")
            found[name] |= process.ask("look")
    return {
        "objects": num_objects,
        "rows": [
            {
                "row": row,
                "ours": ours,
                "beside": other,
                "ratio": found[other]["seconds_per_image"] / found[ours]["seconds_per_image"],
                "cpu_ratio": found[other]["cpu_seconds_per_image"]
                / found[ours]["cpu_seconds_per_image"],
            }
            for row, ours, other in rows
            if other in sides
        ],
        "sides": found,
    }


def _sides(
    cfg: DictConfig, peer: str, base: SideSettings
) -> tuple[dict[str, SideSettings], list[tuple[str, str, str]]]:
    """What to start, and the rows made of it: a title, ours and the peer's side."""
    extra = tuple(plain(cfg.overrides) or ())
    auto = OURS_AUTO.format(cfg.runtime)
    theirs = {kind: f"{peer}, {kind}" for kind in (FLOAT32, BF16)}
    ours = {kind: f"ours, {kind}" for kind in (FLOAT32, BF16)}
    names = {
        auto: replace(base, ours=(f"runtime={cfg.runtime}", *extra)),
        ours[FLOAT32]: replace(base, ours=("runtime=default", *extra)),
        theirs[FLOAT32]: replace(base, peer=peer),
    }
    rows = [
        ("each as it comes", auto, theirs[FLOAT32]),
        (FLOAT32, ours[FLOAT32], theirs[FLOAT32]),
    ]
    if peer == "torchvision":
        names[ours[BF16]] = replace(base, ours=("runtime=bf16", *extra))
        names[theirs[BF16]] = replace(base, peer=peer, bf16=True)
        rows.append((BF16, ours[BF16], theirs[BF16]))
    return names, rows


def _summary(
    samples: Sequence[dict[str, Any]], stages: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Medians of the samples."""
    per_image = [
        {key: sample[key] / sample["images"] for key in ("seconds", "cpu_seconds")}
        for sample in samples
    ]
    times = medians(per_image)
    summary = {
        "images_per_second": 1 / times["seconds"],
        "seconds_per_image": times["seconds"],
        "cpu_seconds_per_image": times["cpu_seconds"],
        "seconds_by_stage": medians(list(stages) or [sample["laps"] for sample in samples]),
        "samples": [sample["seconds"] for sample in samples],
    }
    if "loss" in samples[0]:
        summary["losses"] = [sample["loss"] for sample in samples]
    return summary


def check_found(
    ours: Sequence[dict[str, np.ndarray]], theirs: Sequence[dict[str, np.ndarray]]
) -> None:
    """Both sides detect the same, but for what lies at a threshold.

    Raises:
        AssertionError: more than one in twenty of their detections is not among ours.
    """
    for image, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        near = np.abs(mine["boxes"][None] - other["boxes"][:, None]).max(2) < 0.1
        near &= mine["labels"][None] == other["labels"][:, None]
        near &= np.abs(mine["scores"][None] - other["scores"][:, None]) < 1e-3
        share = near.any(1).mean() if len(near) else 1.0
        assert share >= 0.95 and abs(len(mine["boxes"]) - len(other["boxes"])) <= 5, (
            f"image {image}: {len(mine['boxes'])} detections of ours, {len(other['boxes'])} of "
            f"theirs, of which ours has {share:.0%}. On images of less than 128 pixels rounding "
            "decides so much; else the sides are not the same detector"
        )
