"""Writes an index as a project of the VGG Image Annotator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.index import AnnotationIndex
from detector.data.outlines import join_rings
from detector.data.writers.csv_table import write_classes
from detector.data.writers.losses import Losses
from detector.data.writers.objects import WrittenObject, objects_of, outside_polygon

FILE_NAME = "via_region_data.json"


def write_via(index: AnnotationIndex, names: list[str], root: Path, split: str) -> list[str]:
    """Writes ``<split>/via_region_data.json`` and ``classes.txt``.

    A region has one polygon, whose extent is the object's box: the parts of a mask are joined by
    bridges without width. Crowd regions have the attribute ``crowd``.

    Args:
        index: what to write.
        names: of the image files, relative to the folder ``<split>`` or absolute.
        root: folder of the dataset.
        split: its name.

    Returns:
        What the format cannot hold.
    """
    losses = Losses()
    losses.add_keypoints(index, "VIA")
    images = {}
    for image, name in enumerate(names):
        regions = []
        for item in objects_of(index, image, clipped=True):
            if item.rings and outside_polygon(item) > 1:
                title = f"annotation {index.annotation_ids[item.position]} of {name}"
                losses.add("VIA takes the polygon's extent for the box: boxes change", title)
            regions.append(_region(item))
        # The tool's key is the name and the file's size, which it does not need (-1).
        images[f"{name}-1"] = {
            "filename": name,
            "size": -1,
            "regions": regions,
            "file_attributes": {},
        }
    options = dict.fromkeys(index.category_names, "")
    region_attributes = {
        "class": {"type": "dropdown", "description": "", "options": options, "default_options": {}}
    }
    project = {
        "_via_settings": {"core": {}, "project": {"name": split}},
        "_via_img_metadata": images,
        "_via_attributes": {"region": region_attributes, "file": {}},
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": list(images),
    }
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / split / FILE_NAME).write_text(json.dumps(project), encoding="utf-8")
    write_classes(index, root)
    return losses.notes()


def _region(item: WrittenObject) -> dict[str, Any]:
    attributes = {"class": item.name} | ({"crowd": "1"} if item.crowd else {})
    x1, y1, x2, y2 = item.box
    if item.rings:
        x, y = np.transpose(join_rings(item.rings)).tolist()
        shape = {"name": "polygon", "all_points_x": x, "all_points_y": y}
    else:
        shape = {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
    return {"shape_attributes": shape, "region_attributes": attributes}
