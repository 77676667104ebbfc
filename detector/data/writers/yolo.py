"""Writes an index in the layout of the YOLO tools: boxes or polygons, in fractions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from detector.data.index import AnnotationIndex
from detector.data.outlines import join_rings
from detector.data.writers.losses import Losses
from detector.data.writers.objects import WrittenObject, objects_of, outside_polygon


def write_yolo(index: AnnotationIndex, names: list[str], root: Path, split: str) -> list[str]:
    """Writes ``labels/<split>/*.txt``, and ``data.yaml`` for all splits written so far.

    An object has one polygon, whose extent is its box: the parts of a mask are joined by bridges
    without width.

    Args:
        index: what to write.
        names: of the image files in ``images/<split>``.
        root: folder of the dataset.
        split: its name.

    Returns:
        What the format cannot hold.
    """
    losses = Losses()
    losses.add_keypoints(index, "YOLO as written here")
    folder = root / "labels" / split
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {name: number for number, name in enumerate(index.category_names)}
    for image, name in enumerate(names):
        size = np.array([index.widths[image], index.heights[image]], dtype=np.float64)
        lines = []
        for item in objects_of(index, image, clipped=True):
            title = f"annotation {index.annotation_ids[item.position]} of {name}"
            if item.crowd:
                losses.add("YOLO has no crowd regions or difficult objects: left out", title)
                continue
            if item.rings and outside_polygon(item) > 1:
                losses.add("YOLO takes the polygon's extent for the box: boxes change", title)
            values = _fractions(item, size)
            lines.append(f"{numbers[item.name]} {' '.join(f'{value:.9g}' for value in values)}\n")
        file = (folder / name).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines), encoding="utf-8")
    _write_settings(index, root)
    return losses.notes()


def _fractions(item: WrittenObject, size: np.ndarray) -> np.ndarray:
    if item.rings:
        return (join_rings(item.rings) / size).ravel()
    ends = np.array(item.box).reshape(2, 2) / size
    return np.concatenate([ends.mean(axis=0), ends[1] - ends[0]])


def _write_settings(index: AnnotationIndex, root: Path) -> None:
    splits = sorted(path.name for path in (root / "labels").iterdir() if path.is_dir())
    lines = ["path: .", *(f"{split}: images/{split}" for split in splits), "names:"]
    # Names in quotes: YAML takes some words, such as no, for other things.
    lines += [f"  {n}: {json.dumps(name)}" for n, name in enumerate(index.category_names)]
    (root / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
