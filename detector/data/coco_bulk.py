"""COCO annotation records that are plain at first sight, many at once.

A file of a million good records would take a minute one by one. Here only such are taken as need
no second look; whatever is odd in any way is left to :mod:`detector.data.coco_records`, which says
what is wrong. The results are the same.
"""

from __future__ import annotations

import dataclasses
import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from detector.data.coco_masks import PolygonParts, can_be_parts, make_parts
from detector.data.columns import HUGE, OUTSIDE_TOLERANCE, AnnotationColumns, ImageColumns

CHUNK = 2048  # records taken together; one odd record sends so many the slow way


@dataclass(frozen=True)
class RecordColumns:
    """What n annotation records say, of the right types but otherwise as it stands there.

    Attributes:
        ids: ``(n,)`` int64.
        image_ids: likewise.
        category_ids: likewise.
        crowd: likewise.
        boxes: ``(n, 4)`` float64 ``(x, y, width, height)``.
        parts: of all polygons; rows from 0 on.
        runs: rows and segmentations that are no polygons.
    """

    ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    crowd: np.ndarray
    boxes: np.ndarray
    parts: PolygonParts
    runs: list[tuple[int, Any]]

    def __len__(self) -> int:
        return len(self.ids)


def columns_of(records: Sequence[Any]) -> RecordColumns | None:
    """The columns of parsed records, ``None`` if one is odd."""
    try:
        ids = [record["id"] for record in records]
        image_ids = [record["image_id"] for record in records]
        categories = [record["category_id"] for record in records]
        boxes = [record["bbox"] for record in records]
        crowd = [record.get("iscrowd", 0) for record in records]
        segmentations = [record.get("segmentation") for record in records]
    except (TypeError, KeyError, AttributeError):
        return None
    if not _are_all(int, ids, image_ids, categories, crowd) or not _are_all(list, boxes):
        return None
    numbers = list(chain.from_iterable(boxes))
    if not set(map(len, boxes)) <= {4} or not set(map(type, numbers)) <= {int, float}:
        return None
    polygons = [each if type(each) is list else () for each in segmentations]
    parts = list(chain.from_iterable(polygons))
    lengths = np.array(list(map(len, parts)), dtype=np.int64) if _are_all(list, parts) else None
    if lengths is None or not can_be_parts(lengths):
        return None
    rows = np.repeat(np.arange(len(records)), list(map(len, polygons)))
    runs = [
        (row, each)
        for row, each in enumerate(segmentations)
        if type(each) is not list and each is not None
    ]
    try:
        coordinates = np.frombuffer(b"".join([_packer(len(part))(*part) for part in parts]))
        return RecordColumns(
            *(np.array(array("q", column)) for column in (ids, image_ids, categories, crowd)),
            np.array(array("d", numbers)).reshape(-1, 4),
            make_parts(coordinates, lengths, rows),
            runs,
        )
    except (struct.error, OverflowError):
        return None


@lru_cache(None)
def _packer(count: int) -> Callable[..., bytes]:
    """Packs so many numbers as float64; three times as fast as ``array`` takes a list."""
    return struct.Struct(f"{count}d").pack


class KnownIds:
    """The images and categories that annotations may name.

    Args:
        images: the good images.
        labels: of each category id.
    """

    def __init__(self, images: ImageColumns, labels: dict[int, int]) -> None:
        self._image_ids, self._places = _sorted(images.ids)
        self._category_ids, ranks = _sorted(list(labels))
        self._labels = np.array(list(labels.values()), dtype=np.int64)[ranks]
        sizes = [images.widths, images.heights]
        self.sizes = np.array(sizes, dtype=np.int64).T
        """``(N, 2)`` int64 ``(width, height)``."""

    def places(self, image_ids: np.ndarray) -> np.ndarray | None:
        """The positions of images, or ``None`` if one is not known."""
        found = _find(self._image_ids, image_ids)
        return None if found is None else self._places[found]

    def labels(self, category_ids: np.ndarray) -> np.ndarray | None:
        """The labels of categories, or ``None`` if one is not known."""
        found = _find(self._category_ids, category_ids)
        return None if found is None else self._labels[found]


def _sorted(ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    column = np.array(ids, dtype=np.int64)
    order = np.argsort(column, kind="stable")
    return column[order], order


def _find(known: np.ndarray, ids: np.ndarray) -> np.ndarray | None:
    if len(known) == 0:
        return None
    found = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return found if np.array_equal(known[found], ids) else None


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
    records: RecordColumns | None, known: KnownIds, seen: set[int], annotations: AnnotationColumns
) -> bool:
    """Takes all records, or none if one of them is odd.

    Args:
        records: of the file's ``annotations``; ``None``: one is known to be odd.
        known: the images and categories.
        seen: ids of the annotations before; those of the records are added.
        annotations: where they are added.

    Returns:
        Whether they were taken.
    """
    if records is None or not ((records.crowd == 0) | (records.crowd == 1)).all():
        return False
    ids = records.ids.tolist()
    new = set(ids)
    if len(new) != len(ids) or not seen.isdisjoint(new):
        return False
    places, labels = known.places(records.image_ids), known.labels(records.category_ids)
    if places is None or labels is None:
        return False
    sizes = known.sizes[places]
    clipped = _clip_boxes(records.boxes, sizes)
    if clipped is None:
        return False
    first = len(annotations)
    runs = [(first + row, each, tuple(sizes[row, ::-1].tolist())) for row, each in records.runs]
    parts = dataclasses.replace(records.parts, rows=first + records.parts.rows)
    if not annotations.masks.add_all(parts, runs):
        return False
    seen |= new
    annotations.ids.frombytes(records.ids.tobytes())
    annotations.images.frombytes(places.tobytes())
    annotations.labels.frombytes(labels.tobytes())
    annotations.crowd.frombytes(records.crowd.astype(np.int8).tobytes())
    annotations.boxes.frombytes(clipped.tobytes())
    return True


def _are_all(kind: type, *columns: list[Any]) -> bool:
    return all(set(map(type, column)) <= {kind} for column in columns)


def _clip_boxes(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray | None:
    """``(n, 4)`` float64 ``(x1, y1, x2, y2)`` inside the images, or ``None`` if one is odd."""
    if not (np.abs(boxes) < HUGE).all() or (boxes[:, 2:] <= 0).any():
        return None
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    if (low < -OUTSIDE_TOLERANCE).any() or (high - sizes > OUTSIDE_TOLERANCE).any():
        return None
    clipped = np.concatenate([np.maximum(low, 0), np.minimum(high, sizes)], axis=1)
    return clipped if (clipped[:, 2:] > clipped[:, :2]).all() else None
