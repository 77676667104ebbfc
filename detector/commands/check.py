"""The tool's doctor: what is wrong with a dataset, as a table, a page and JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detector.data.dataset import DetectionDataset
from detector.data.doctor.anchor_fit import AnchorTable
from detector.data.doctor.examine import Diagnosis, examine
from detector.data.doctor.findings import Finding
from detector.engine import assembly
from detector.engine.atomic_file import atomic_write, write_json
from detector.engine.progress import track
from detector.report.doctor_page import doctor_page

RECORDS_PRINTED = 5
WIDTH_IN_A_FILE = 130
STYLES = {"error": "bold red", "warning": "yellow", "note": "blue"}


def check(cfg: DictConfig, console: Console) -> Diagnosis:
    """Examines both splits of ``cfg.data``, or ``cfg.split``, and tells what it finds.

    With ``cfg.output`` it writes ``check.html`` and ``check.json`` there.

    Raises:
        ValueError, FileNotFoundError: what cannot be read at all.
    """
    if cfg.split not in (None, "train", "val"):
        raise ValueError(f"split={cfg.split} is not known: write train, val or null for both")
    output = None if OmegaConf.is_missing(cfg, "output") else Path(str(cfg.output))
    datasets = {
        split: read_for_examination(cfg, split)
        for split in ("train", "val")
        if cfg.split in (None, split)
    }
    for split, dataset in datasets.items():
        console.print(f"{split}: {assembly.describe_dataset(dataset)}", soft_wrap=True)

    def progress(items: Iterable, count: int, what: str) -> Iterable:
        return track(items, count, what, "images", console)

    if not console.is_terminal:
        console.width = WIDTH_IN_A_FILE
    diagnosis = examine(datasets, anchor_table(cfg), progress)
    console.print(findings_table(diagnosis))
    if output is None:
        console.print("output=FOLDER writes a page with pictures, and all records as JSON")
        return diagnosis
    with atomic_write(output / "check.html") as file:
        file.write(doctor_page(diagnosis).encode())
    write_json(output / "check.json", diagnosis.to_json())
    console.print(f"written to {output}/check.html and check.json", soft_wrap=True)
    return diagnosis


def read_for_examination(cfg: DictConfig, split: str) -> DetectionDataset:
    """A split with all its images; damaged records are left out and kept in ``index.skipped``."""
    node = cfg.data[split]
    free = {"on_error": "skip", "keep_empty": True, "min_keypoints": 0, "proposals": None}
    for key, value in free.items():
        if key in node:
            node[key] = value
    if "on_error" in cfg.data:
        cfg.data.on_error = "skip"
    # What is damaged is told in the findings.
    logger = logging.getLogger("detector.data.problems")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return assembly.build_dataset(cfg.data, split)
    finally:
        logger.setLevel(level)


def anchor_table(cfg: DictConfig) -> AnchorTable | None:
    """The anchors of ``cfg.model``; ``None`` for a model without a Region Proposal Network."""
    if OmegaConf.select(cfg, "model.rpn.anchors") is None:
        return None
    rpn = cfg.model.rpn
    generator = assembly.build(rpn.anchors)
    levels = range(len(generator.strides))
    return AnchorTable(
        base=np.stack([getattr(generator, f"base{level}").double().numpy() for level in levels]),
        strides=generator.strides,
        offset=generator.offset,
        sizes=assembly.plain(rpn.anchors.sizes),
        aspect_ratios=assembly.plain(rpn.anchors.aspect_ratios),
        positive_iou=rpn.positive_iou,
        negative_iou=rpn.negative_iou,
        border=rpn.border,
    )


def findings_table(diagnosis: Diagnosis) -> Table:
    """The findings, each with its first records and its remedy."""
    table = Table(title="Findings", title_justify="left", show_lines=True)
    table.add_column("", no_wrap=True)
    table.add_column("finding", ratio=3)
    table.add_column("remedy", ratio=2)
    for finding in diagnosis.findings:
        level = Text(finding.level, style=STYLES[finding.level])
        table.add_row(level, Text(_told(finding)), Text(finding.remedy))
    if not diagnosis.findings:
        table.add_row(Text("good", style="green"), "nothing was found", "")
    return table


def _told(finding: Finding) -> str:
    lines = [f"{finding.title} ({len(finding.records)})"]
    for record in finding.records[:RECORDS_PRINTED]:
        remedy = f"; {record.remedy}" if record.remedy else ""
        lines.append(f"- {record.where}: {record.what}{remedy}")
    if len(finding.records) > RECORDS_PRINTED:
        lines.append(f"  ... and {len(finding.records) - RECORDS_PRINTED} more")
    return "\n".join(lines)
