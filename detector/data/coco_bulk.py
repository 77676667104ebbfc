"""COCO annotation records that are plain at first sight, many at once.

A file of a million good records would take a minute one by one. Here only such are taken as need
no second look; whatever is odd in any way is left to :mod:`detector.data.coco_records`, which says
what is wrong. The results are the same.
"""

from __future__ import annotations

from array import array
from itertools import chain
from typing import Any

import numpy as np

from detector.data.columns import HUGE, OUTSIDE_TOLERANCE, AnnotationColumns, ImageColumns

CHUNK = 2048  # records taken together; one odd record sends so many the slow way


def add_plain_images(records: list[Any], images: ImageColumns, position: dict[int, int]) -> bool:
    """Takes all image records, or none if one of them is odd.

    Args:
        records: the file's ``images``.
        images: where they are added; empty.
        position: where each id stands in ``images``; they are added here too.

    Returns:
        Whether they were taken.
    """
    try:
        ids = [record["id"] for record in records]
        names = [record["file_name"] for record in records]
        widths = [record["width"] for record in records]
        heights = [record["height"] for record in records]
        encoded = [name.encode() for name in names]
    except (TypeError, KeyError, AttributeError, UnicodeEncodeError):
        return False
    if not _are_all(int, ids, widths, heights) or not _are_all(str, names):
        return False
    places = dict(zip(ids, range(len(ids)), strict=True))
    in_range = min(widths + heights) > 0 and max(widths + heights) < 2**31
    in_range = in_range and min(ids) >= -(2**63) and max(ids) < 2**63
    if len(places) < len(ids) or not in_range or not all(names) or b"\0" in b"".join(encoded):
        return False
    position.update(places)
    images.ids += ids
    images.widths += widths
    images.heights += heights
    images.names += encoded
    return True


def add_plain_records(
    records: list[Any],
    images: ImageColumns,
    position: dict[int, int],
    labels: dict[int, int],
    seen: set[int],
    annotations: AnnotationColumns,
) -> bool:
    """Takes all records, or none if one of them is odd.

    Args:
        records: of the file's ``annotations``.
        images: the good images.
        position: of each image id in ``images``.
        labels: of each category id.
        seen: ids of the annotations before; those of the records are added.
        annotations: where they are added.

    Returns:
        Whether they were taken.
    """
    try:
        ids = [record["id"] for record in records]
        image_ids = [record["image_id"] for record in records]
        categories = [record["category_id"] for record in records]
        boxes = [record["bbox"] for record in records]
        crowd = [record.get("iscrowd", 0) for record in records]
        segmentations = [record.get("segmentation") for record in records]
    except (TypeError, KeyError, AttributeError):
        return False
    if not _are_all(int, ids, image_ids, categories, crowd) or not _are_all(list, boxes):
        return False
    new = set(ids)
    if len(new) != len(ids) or not seen.isdisjoint(new) or not set(crowd) <= {0, 1}:
        return False
    try:
        identifiers = array("q", ids)
        places = [position[image] for image in image_ids]
        numbers = [labels[category] for category in categories]
    except (KeyError, OverflowError):
        return False
    widths = [images.widths[place] for place in places]
    heights = [images.heights[place] for place in places]
    clipped = _clip_boxes(boxes, widths, heights)
    sizes = list(zip(heights, widths, strict=True))
    if clipped is None or not annotations.masks.add_all(segmentations, sizes, len(annotations)):
        return False
    seen |= new
    annotations.ids.extend(identifiers)
    annotations.images.extend(places)
    annotations.labels.extend(numbers)
    annotations.crowd.extend(crowd)
    annotations.boxes.extend(array("d", clipped.tobytes()))
    return True


def _are_all(kind: type, *columns: list[Any]) -> bool:
    return all(set(map(type, column)) <= {kind} for column in columns)


def _clip_boxes(boxes: list[list], widths: list[int], heights: list[int]) -> np.ndarray | None:
    """``(n, 4)`` float64 ``(x1, y1, x2, y2)`` inside the images, or ``None`` if one is odd."""
    if not set(map(len, boxes)) <= {4}:
        return None
    flat = list(chain.from_iterable(boxes))
    if not set(map(type, flat)) <= {int, float}:
        return None
    try:
        values = np.array(array("d", flat), dtype=np.float64).reshape(-1, 4)
    except OverflowError:
        return None
    if not (np.abs(values) < HUGE).all() or (values[:, 2:] <= 0).any():
        return None
    size = np.stack([np.array(widths), np.array(heights)], axis=1).astype(np.float64)
    low, high = values[:, :2], values[:, :2] + values[:, 2:]
    if (low < -OUTSIDE_TOLERANCE).any() or (high - size > OUTSIDE_TOLERANCE).any():
        return None
    clipped = np.concatenate([np.maximum(low, 0), np.minimum(high, size)], axis=1)
    return clipped if (clipped[:, 2:] > clipped[:, :2]).all() else None
