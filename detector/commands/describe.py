"""The tool that describes a model: its parts, their outputs, parameters and arithmetic."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from detector.engine.assembly import number_of_classes
from detector.engine.atomic_file import write_json
from detector.engine.parts import Part, build_without_memory, measure_parts, multiply_adds
from detector.engine.progress import open_console
from detector.engine.published import Comparison, compare_with_published

COCO_CLASSES = 80
SIZE_DIVISOR = 32  # as detector.data.collate pads
WIDTH_IN_A_FILE = 130

CONVENTION = (
    "FLOPs are two for each multiply-add of convolutions, matrix products and attention, as "
    "PyTorch counts them; normalisation, activations, pooling, RoI ops and NMS are not in. All "
    "slots for proposals and detections count, as if the images filled them."
)


def describe(cfg: DictConfig) -> dict[str, Any]:
    """Prints a model's parts in the order in which an image goes through them.

    Nothing is computed and no file is read but the configuration: it takes a second or two.

    Args:
        cfg: composed from ``configs/describe.yaml``.

    Returns:
        What it printed, as written to ``cfg.json``.

    Raises:
        ValueError: a number that is not at least 1, or what a constructor refused.
    """
    num_classes = COCO_CLASSES if cfg.num_classes is None else cfg.num_classes
    counts = {"num_classes": num_classes}
    counts |= {key: cfg[key] for key in ("height", "width", "batch", "num_proposals")}
    for key, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{key}={value} must be a whole number of at least 1")
    model = build_without_memory(cfg, num_classes)
    height, width = (-(-cfg[key] // SIZE_DIVISOR) * SIZE_DIVISOR for key in ("height", "width"))
    parts = measure_parts(model, cfg.batch, height, width, cfg.num_proposals)
    comparisons = compare_with_published(cfg)

    console = open_console()
    if not console.is_terminal:
        console.width = WIDTH_IN_A_FILE
    kind = type(model).__name__
    classes = ""
    if model.has_classes:
        classes = f", {number_of_classes(model.num_classes)}"
        if cfg.num_classes is None:
            classes += ", since num_classes is not set, which training takes from the data"
    console.print(f"{cfg.name}: {kind}{classes}", soft_wrap=True)
    console.print(
        f"input {_shape((cfg.batch, 3, height, width))}: {cfg.height} x {cfg.width} padded to "
        f"multiples of {SIZE_DIVISOR}",
        soft_wrap=True,
    )
    console.print(parts_table(parts))
    console.print(CONVENTION)
    if comparisons:
        console.print(comparison_table(comparisons))
    report = {
        "name": cfg.name,
        "model": kind,
        "num_classes": model.num_classes,
        "input": [cfg.batch, 3, height, width],
        "parameters": sum(part.parameters for part in parts),
        "trainable": sum(part.trainable for part in parts),
        "multiply_adds": multiply_adds(parts),
        "flops": sum(part.flops for part in parts),
        "parts": [dataclasses.asdict(part) for part in parts],
        "published": [dataclasses.asdict(one) for one in comparisons],
    }
    if cfg.json is not None:
        write_json(Path(cfg.json), report)
        console.print(f"written to {cfg.json}", soft_wrap=True)
    return report


def parts_table(parts: list[Part]) -> Table:
    """A row for each part and the sums below."""
    table = Table(show_footer=True, pad_edge=False)
    flops = sum(part.flops for part in parts)
    table.add_column("part, under model", "total", overflow="fold")
    table.add_column("class")
    table.add_column("output")
    for title in ("trainable", "frozen"):
        table.add_column(
            title, f"{sum(getattr(part, title) for part in parts):,}", justify="right", no_wrap=True
        )
    table.add_column("GFLOPs", f"{flops / 1e9:,.2f}", justify="right", no_wrap=True)
    table.add_column(
        "G multiply-adds", f"{multiply_adds(parts) / 1e9:,.2f}", justify="right", no_wrap=True
    )
    for part in parts:
        table.add_row(
            part.path,
            part.kind,
            " ".join(_shape(shape) for shape in part.shapes),
            f"{part.trainable:,}" if part.trainable else "",
            f"{part.frozen:,}" if part.frozen else "",
            f"{part.flops / 1e9:,.2f}" if part.flops else "",
            f"{part.flops / 2e9:,.2f}" if part.flops else "",
        )
    return table


def comparison_table(comparisons: list[Comparison]) -> Table:
    """A row for each published number."""
    table = Table("published", "by", pad_edge=False)
    for title in ("theirs", "ours"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in comparisons:
        exact = "parameters" in one.what
        numbers = (one.published, one.ours)
        texts = (f"{number:,}" if exact else f"{number / 1e9:.2f} G" for number in numbers)
        table.add_row(one.what, one.source, *texts)
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
