"""Writes an index as COCO JSON, or as its records; nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.index import AnnotationIndex
from detector.data.rings import next_in_ring, offsets_of, ring_areas
from detector.data.writers.objects import WrittenObject, objects_of, shortest
from detector.ops.rle import RLE, encode_borders

_PIXEL_CENTRE = 0.5  # COCO's keypoints are indices of pixels


def write_coco(index: AnnotationIndex, names: list[str], root: Path, split: str) -> list[str]:
    """Writes ``annotations/<split>.json``.

    Args:
        index: what to write.
        names: of the image files, relative to the folder of the images, or absolute.
        root: folder of the dataset.
        split: its name.

    Returns:
        What the format cannot hold: nothing.
    """
    file = root / "annotations" / f"{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    images, annotations, categories = coco_records(index, names)
    with open(file, "w", encoding="utf-8") as stream:
        stream.write('{"images":[')
        _write_list(stream, images)
        stream.write('],\n"annotations":[')
        _write_list(stream, annotations)
        stream.write('],\n"categories":[')
        _write_list(stream, categories)
        stream.write("]}\n")
    return []


def coco_records(
    index: AnnotationIndex, names: list[str] | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Images, annotations and categories of an index as COCO has them.

    Masks are polygons, those with holes run-length encodings; the area is the mask's, or the box's.
    """
    if names is None:
        names = [index.file_name(image) for image in range(len(index))]
    images, annotations = [], []
    for image, name in enumerate(names):
        identifier = int(index.image_ids[image])
        height, width = int(index.heights[image]), int(index.widths[image])
        images.append({"id": identifier, "file_name": name, "width": width, "height": height})
        if index.federated is not None:
            for key, labels in (
                ("neg_category_ids", index.federated.negatives(image)),
                ("not_exhaustive_category_ids", index.federated.not_exhaustive(image)),
            ):
                images[-1][key] = index.category_ids[labels].tolist()
        for item in objects_of(index, image):
            annotations.append(_annotation(index, item, identifier, (height, width)))
    return images, annotations, _categories(index)


def _annotation(
    index: AnnotationIndex, item: WrittenObject, image_id: int, size: tuple[int, int]
) -> dict[str, Any]:
    x1, y1, x2, y2 = item.box
    record = {
        "id": int(index.annotation_ids[item.position]),
        "image_id": image_id,
        "category_id": int(index.category_ids[index.labels[item.position]]),
        "bbox": [x1, y1, _length(x1, x2), _length(y1, y2)],
        "iscrowd": int(item.crowd),
        "area": (x2 - x1) * (y2 - y1),
    }
    if item.rings:
        offsets = offsets_of(np.array([len(ring) for ring in item.rings]))
        areas = ring_areas(np.concatenate(item.rings), offsets)
        record["area"] = float(areas.sum())
        if (areas < 0).any():
            record["segmentation"] = rings_to_rle(item.rings, *size)
        else:
            record["segmentation"] = [ring.ravel().tolist() for ring in item.rings]
    if index.has_keypoints:
        points = shortest(index.keypoints[item.position])
        points[points[:, 2] > 0, :2] -= _PIXEL_CENTRE
        record["keypoints"] = points.ravel().tolist()
        record["num_keypoints"] = int((points[:, 2] > 0).sum())
    return record


def _length(start: float, end: float) -> float:
    """``end - start`` without the digits of rounding, if it still leads to the same end."""
    rounded = round(end - start, 6)
    return rounded if np.float32(start + rounded) == np.float32(end) else end - start


def _categories(index: AnnotationIndex) -> list[dict[str, Any]]:
    frequencies = index.federated.frequencies if index.federated else []
    categories = []
    for label, name in enumerate(index.category_names):
        category: dict[str, Any] = {"id": int(index.category_ids[label]), "name": name}
        if index.has_keypoints:
            category["keypoints"] = index.keypoint_names
            category["skeleton"] = [[first + 1, second + 1] for first, second in index.skeleton]
            if index.keypoint_sigmas is not None:
                category["keypoint_sigmas"] = index.keypoint_sigmas
        if frequencies:
            category["frequency"] = frequencies[label]
        categories.append(category)
    return categories


def rings_to_rle(rings: list[np.ndarray], height: int, width: int) -> RLE:
    """The run-length encoding of a mask whose rings run along pixel edges.

    Each horizontal edge is a border in the columns it spans; borders below the last row fall on the
    next column's first pixel, where the runs go on.
    """
    offsets = offsets_of(np.array([len(ring) for ring in rings]))
    starts = np.concatenate(rings).astype(np.int64)
    ends = starts[next_in_ring(offsets)]
    level = starts[:, 1] == ends[:, 1]
    left = np.minimum(starts[level, 0], ends[level, 0])
    length = np.abs(ends[level, 0] - starts[level, 0])
    columns = np.arange(length.sum()) + np.repeat(left - (np.cumsum(length) - length), length)
    borders = np.sort(columns * height + np.repeat(starts[level, 1], length))
    return encode_borders(borders, np.array([len(borders)]), height, width)[0]


def _write_list(stream, records: list[dict[str, Any]]) -> None:
    for number, record in enumerate(records):
        stream.write(",\n" if number else "\n")
        stream.write(json.dumps(record, separators=(",", ":")))
