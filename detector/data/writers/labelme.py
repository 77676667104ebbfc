"""Writes an index as one Labelme file per image."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path
from typing import Any

from detector.data.index import AnnotationIndex
from detector.data.outlines import bridge_holes
from detector.data.writers.csv_table import write_classes
from detector.data.writers.losses import Losses
from detector.data.writers.objects import WrittenObject, objects_of, outside_polygon

_VERSION = "5.5.0"  # of the tool whose files these are like


def write_labelme(index: AnnotationIndex, names: list[str], root: Path, split: str) -> list[str]:
    """Writes ``<split>/*.json`` and ``classes.txt``.

    Objects with masks become polygons, their parts joined by a group_id, and have their extent for
    a box; others become rectangles. Crowd regions have the flag ``crowd``.

    Args:
        index: what to write.
        names: of the image files, relative to the folder ``<split>``.
        root: folder of the dataset.
        split: its name.

    Returns:
        What the format cannot hold.
    """
    losses = Losses()
    losses.add_keypoints(index, "Labelme as written here")
    folder = root / split
    for image, name in enumerate(names):
        shapes: list[dict[str, Any]] = []
        for number, item in enumerate(objects_of(index, image, clipped=True), start=1):
            if item.rings and outside_polygon(item) > 1:
                title = f"annotation {index.annotation_ids[item.position]} of {name}"
                losses.add("Labelme takes the polygon's extent for the box: boxes change", title)
            shapes += _shapes(item, number)
        content = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": posixpath.basename(name),
            "imageData": None,
            "imageHeight": int(index.heights[image]),
            "imageWidth": int(index.widths[image]),
        }
        file = (folder / name).with_suffix(".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    write_classes(index, root)
    return losses.notes()


def _shapes(item: WrittenObject, number: int) -> list[dict[str, Any]]:
    x1, y1, x2, y2 = item.box
    if item.rings:
        kind, outlines = "polygon", [part.tolist() for part in bridge_holes(item.rings)]
    else:
        kind, outlines = "rectangle", [[[x1, y1], [x2, y2]]]
    return [
        {
            "label": item.name,
            "points": points,
            "group_id": number if len(outlines) > 1 else None,
            "shape_type": kind,
            "flags": {"crowd": True} if item.crowd else {},
        }
        for points in outlines
    ]
