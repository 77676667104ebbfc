"""Writes an index as a table of objects."""

from __future__ import annotations

import csv
from pathlib import Path

from detector.data.csv_table import COLUMNS, OPTIONAL_COLUMNS
from detector.data.index import AnnotationIndex
from detector.data.outlines import bridge_holes
from detector.data.writers.losses import Losses
from detector.data.writers.objects import WrittenObject, objects_of


def write_csv(index: AnnotationIndex, names: list[str], root: Path, split: str) -> list[str]:
    """Writes ``<split>.csv`` and ``classes.txt``; masks with holes become one polygon.

    Args:
        index: what to write.
        names: of the image files, relative to the folder ``<split>`` or absolute.
        root: folder of the dataset.
        split: its name.

    Returns:
        What the format cannot hold.
    """
    losses = Losses()
    losses.add_keypoints(index, "CSV")
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *OPTIONAL_COLUMNS])
        for image, name in enumerate(names):
            rows = [_row(item) for item in objects_of(index, image)]
            writer.writerows([name, *row] for row in rows or [[""] * 7])
    write_classes(index, root)
    return losses.notes()


def write_classes(index: AnnotationIndex, root: Path) -> None:
    """Writes ``classes.txt``, one name per line in the order of the labels."""
    lines = "".join(f"{name}\n" for name in index.category_names)
    (root / "classes.txt").write_text(lines, encoding="utf-8")


def _row(item: WrittenObject) -> list[object]:
    parts = bridge_holes(item.rings) if item.rings else []
    polygon = "; ".join(" ".join(map(repr, part.ravel().tolist())) for part in parts)
    return [*item.box, item.name, polygon, int(item.crowd)]
