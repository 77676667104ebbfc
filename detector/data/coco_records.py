"""The records of a COCO file, checked one by one, as the flat arrays of an annotation index."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.index import AnnotationIndex
from detector.data.problems import Problem
from detector.data.rings import (
    Rings,
    decode_counts,
    offsets_of,
    orient_rings,
    ranges,
    ring_areas,
    trace_runs,
)

# Annotation tools round box ends; up to this many pixels beyond the image is clipped in silence.
_OUTSIDE_TOLERANCE = 1.0
# A polygon part below this area (square pixels) has its vertices on one line.
_MIN_RING_AREA = 1e-6

_FIX_BOX = "correct the bbox or remove the annotation"
_FIX_MASK = "correct the segmentation or remove the annotation"


@dataclass
class _Images:
    """Columns of the good image records, and where each id stands."""

    ids: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    position: dict[int, int] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)


@dataclass
class _Annotations:
    """Columns of the annotation records that are good as far as one record alone can tell."""

    ids: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    # Polygons: all coordinates of all parts, the length of each part and its annotation's row.
    coordinates: array = field(default_factory=lambda: array("d"))
    part_lengths: list[int] = field(default_factory=list)
    part_rows: list[int] = field(default_factory=list)
    # Run-length encodings: the row of each annotation with one, and its counts.
    string_rows: list[int] = field(default_factory=list)
    strings: list[bytes] = field(default_factory=list)
    list_rows: list[int] = field(default_factory=list)
    lists: list[np.ndarray] = field(default_factory=list)


class _Damaged(Exception):
    """What is wrong with a record, and the remedy."""


def parse_dataset(data: Any, source_file: Path, image_root: Path) -> AnnotationIndex:
    """Checks and flattens a parsed COCO file. Damaged records end in ``index.skipped``.

    Raises:
        ValueError: the file as a whole cannot be used: it is not COCO, lists no image or no
            category, or its categories contradict each other.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise ValueError(
                f'{source_file}: not COCO instance annotations, there is no list "{key}"; '
                "export the dataset in COCO format"
            )
    for key in ("images", "categories"):
        if not data[key]:
            raise ValueError(f'{source_file}: empty dataset, "{key}" is an empty list; fill it')
    category_ids, category_names = _read_categories(data["categories"], source_file)
    problems: list[Problem] = []
    images = _read_images(data["images"], problems)
    labels = {category: label for label, category in enumerate(category_ids)}
    annotations = _read_annotations(data["annotations"], images, labels, problems)
    rings, bad_rows = _read_masks(annotations, images, problems)
    return _assemble(
        images, annotations, rings, bad_rows, problems,
        category_ids, category_names, source_file, image_root,
    )  # fmt: skip


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _read_categories(records: list, file: Path) -> tuple[list[int], list[str]]:
    names: dict[int, str] = {}
    for position, record in enumerate(records):
        if not isinstance(record, dict) or not _is_integer(record.get("id")):
            raise ValueError(
                f"{file}: category record {position} has no integer id; give it a unique one"
            )
        category, name = record["id"], record.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"{file}: category {category} has no name; give it one")
        if category in names:
            raise ValueError(
                f"{file}: duplicate category id {category} ({names[category]}, {name}); "
                "make ids unique"
            )
        if name in names.values():
            raise ValueError(
                f'{file}: two categories are named "{name}", one of them {category}; rename one'
            )
        names[category] = name
    ids = sorted(names)
    return ids, [names[category] for category in ids]


def _read_images(records: list, problems: list[Problem]) -> _Images:
    images = _Images()
    for number, record in enumerate(records):
        try:
            _read_image(record, images)
        except _Damaged as damage:
            identifier = record.get("id") if isinstance(record, dict) else None
            if _is_integer(identifier) and identifier not in images.position:
                images.damaged.add(identifier)
            name = f"image {identifier}" if identifier is not None else f"image record {number}"
            if isinstance(record, dict) and isinstance(record.get("file_name"), str):
                name += f" ({record['file_name']})"
            problems.append(Problem("image", name, *damage.args))
    return images


def _read_image(record: Any, images: _Images) -> None:
    if not isinstance(record, dict):
        raise _Damaged("not a JSON object", "correct or remove the record")
    identifier, name = record.get("id"), record.get("file_name")
    width, height = record.get("width"), record.get("height")
    if not _is_integer(identifier):
        raise _Damaged(f"its id {identifier!r} is not an integer", "number the images")
    if identifier in images.position:
        raise _Damaged("duplicate image id", "make image ids unique")
    if not isinstance(name, str) or not name:
        raise _Damaged("no file_name", "add the file's name")
    if not (_is_integer(width) and _is_integer(height) and 0 < width < 2**31 > height > 0):
        raise _Damaged(
            f"width {width!r} and height {height!r} are not positive integers",
            "set the image's size in pixels",
        )
    images.damaged.discard(identifier)
    images.position[identifier] = len(images.ids)
    images.ids.append(identifier)
    images.widths.append(width)
    images.heights.append(height)
    images.names.append(name.encode())


def _read_annotations(
    records: list, images: _Images, labels: dict[int, int], problems: list[Problem]
) -> _Annotations:
    annotations = _Annotations()
    seen: set[int] = set()
    for number, record in enumerate(records):
        try:
            if not isinstance(record, dict):
                raise _Damaged("not a JSON object", "correct or remove the record")
            if record.get("image_id") in images.damaged:
                continue  # its image is listed
            _read_annotation(record, images, labels, seen, annotations)
        except _Damaged as damage:
            problems.append(Problem("annotation", _name_annotation(record, number), *damage.args))
    return annotations


def _name_annotation(record: Any, number: int) -> str:
    if not isinstance(record, dict) or "id" not in record:
        name = f"annotation record {number}"
    else:
        name = f"annotation {record['id']}"
    image = record.get("image_id") if isinstance(record, dict) else None
    return f"image {image}, {name}" if image is not None else name


def _read_annotation(
    record: dict,
    images: _Images,
    labels: dict[int, int],
    seen: set[int],
    annotations: _Annotations,
) -> None:
    identifier = record.get("id")
    if not _is_integer(identifier):
        raise _Damaged(f"its id {identifier!r} is not an integer", "number the annotations")
    if identifier in seen:
        raise _Damaged("duplicate annotation id", "make annotation ids unique")
    seen.add(identifier)
    image = record.get("image_id")
    if not _is_integer(image) or image not in images.position:
        raise _Damaged(f"unknown image {image!r}", "add the image or remove the annotation")
    category = record.get("category_id")
    if not _is_integer(category) or category not in labels:
        raise _Damaged(
            f"unknown category {category!r}", "add the category or remove the annotation"
        )
    crowd = record.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise _Damaged(f"iscrowd is {crowd!r}", "set it to 0 or 1")
    position = images.position[image]
    box = _read_box(record.get("bbox"), images.widths[position], images.heights[position])
    row = len(annotations.ids)
    # A crowd region never becomes a target; evaluation reads its mask from the file.
    if not crowd:
        size = (images.heights[position], images.widths[position])
        _read_segmentation(record.get("segmentation"), size, row, annotations)
    annotations.ids.append(identifier)
    annotations.images.append(position)
    annotations.labels.append(labels[category])
    annotations.crowd.append(bool(crowd))
    annotations.boxes.append(box)


def _read_box(value: Any, width: int, height: int) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4:
        raise _Damaged(f"bbox {value!r} is not a list [x, y, width, height]", _FIX_BOX)
    for number in value:
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise _Damaged(f"bbox {value!r} is not made of numbers", _FIX_BOX)
        if not math.isfinite(number):
            raise _Damaged(f"bbox {value!r} is not finite", _FIX_BOX)
    x, y, box_width, box_height = value
    if box_width < 0 or box_height < 0:
        raise _Damaged(f"bbox {value!r} has a negative size", _FIX_BOX)
    if box_width == 0 or box_height == 0:
        raise _Damaged(f"bbox {value!r} has no area", _FIX_BOX)
    x2, y2 = x + box_width, y + box_height
    if min(x, y) < -_OUTSIDE_TOLERANCE or max(x2 - width, y2 - height) > _OUTSIDE_TOLERANCE:
        raise _Damaged(f"bbox {value!r} reaches outside the {width}x{height} image", _FIX_BOX)
    clipped = max(x, 0.0), max(y, 0.0), min(x2, float(width)), min(y2, float(height))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise _Damaged(f"bbox {value!r} lies outside the {width}x{height} image", _FIX_BOX)
    return clipped


def _read_segmentation(
    value: Any, size: tuple[int, int], row: int, annotations: _Annotations
) -> None:
    if value is None or value == []:
        return  # a box without a mask
    if isinstance(value, list):
        _read_polygons(value, row, annotations)
    elif isinstance(value, dict):
        _read_runs(value, size, row, annotations)
    else:
        raise _Damaged(f"segmentation is a {type(value).__name__}", _FIX_MASK)


def _read_polygons(parts: list, row: int, annotations: _Annotations) -> None:
    for part in parts:
        if not isinstance(part, list):
            raise _Damaged("a polygon part is not a list of coordinates", _FIX_MASK)
        if len(part) % 2:
            raise _Damaged(f"a polygon part has {len(part)} numbers, not x, y pairs", _FIX_MASK)
        if len(part) < 6:
            raise _Damaged(
                f"a degenerate polygon part has {len(part) // 2} vertices, fewer than 3", _FIX_MASK
            )
    start = len(annotations.coordinates)
    try:
        for part in parts:
            annotations.coordinates.extend(part)
    except (TypeError, OverflowError):
        del annotations.coordinates[start:]
        raise _Damaged("a polygon part is not made of numbers", _FIX_MASK) from None
    annotations.part_lengths.extend(len(part) // 2 for part in parts)
    annotations.part_rows.extend([row] * len(parts))


def _read_runs(value: dict, size: tuple[int, int], row: int, annotations: _Annotations) -> None:
    counts = value.get("counts")
    if value.get("size") != list(size):
        raise _Damaged(
            f"its RLE is of size {value.get('size')!r} but the image is {list(size)} "
            "(height, width)",
            _FIX_MASK,
        )
    if isinstance(counts, str) and counts.isascii():
        annotations.string_rows.append(row)
        annotations.strings.append(counts.encode())
    elif isinstance(counts, list):
        try:
            runs = np.array(array("q", counts), dtype=np.int64)
        except (TypeError, OverflowError):
            raise _Damaged("its RLE counts are not integers", _FIX_MASK) from None
        annotations.list_rows.append(row)
        annotations.lists.append(runs)
    else:
        raise _Damaged("its RLE has no counts", _FIX_MASK)


def _read_masks(
    annotations: _Annotations, images: _Images, problems: list[Problem]
) -> tuple[Rings, np.ndarray]:
    """Rings of all annotations by row, and which rows are damaged, ``(rows,)`` bool."""
    num_rows = len(annotations.ids)
    bad_rows = np.zeros(num_rows, dtype=bool)

    def refuse(rows: np.ndarray, what: str) -> None:
        for row in np.unique(rows[~bad_rows[rows]]):
            bad_rows[row] = True
            image = images.ids[annotations.images[row]]
            record = f"image {image}, annotation {annotations.ids[row]}"
            problems.append(Problem("annotation", record, what, _FIX_MASK))

    # Polygons.
    points = np.array(annotations.coordinates, dtype=np.float64).reshape(-1, 2)
    offsets = offsets_of(np.array(annotations.part_lengths, dtype=np.int64))
    part_rows = np.array(annotations.part_rows, dtype=np.int64)
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        refuse(np.repeat(part_rows, np.diff(offsets))[~finite], "its polygon is not finite")
        points[~finite] = 0
    has_area = np.zeros(num_rows, dtype=bool)
    has_area[part_rows[np.abs(ring_areas(points, offsets)) > _MIN_RING_AREA]] = True
    refuse(part_rows[~has_area[part_rows]], "a degenerate polygon, it has no area")
    polygons = Rings(orient_rings(points, offsets), offsets, part_rows)

    # Run-length encodings.
    counts, count_offsets, valid = decode_counts(annotations.strings)
    counts = np.concatenate([counts, *annotations.lists])
    list_lengths = [len(runs) for runs in annotations.lists]
    lengths = np.concatenate([np.diff(count_offsets), np.array(list_lengths, dtype=np.int64)])
    rows = np.array(annotations.string_rows + annotations.list_rows, dtype=np.int64)
    valid = np.concatenate([valid, [(runs >= 0).all() for runs in annotations.lists]])
    refuse(rows[~valid.astype(bool)], "its RLE counts are damaged")
    counts, lengths, rows = _select(counts, lengths, rows, ~bad_rows[rows])
    heights, widths = _sizes_of(rows, annotations, images)
    sums = _sum_groups(counts, lengths)
    refuse(rows[sums != heights * widths], "its RLE counts do not add up to the image's area")
    odd = (np.arange(len(counts)) - np.repeat(offsets_of(lengths)[:-1], lengths)) % 2 == 1
    refuse(rows[_sum_groups(counts * odd, lengths) == 0], "its RLE mask is empty")
    counts, lengths, rows = _select(counts, lengths, rows, ~bad_rows[rows])
    heights, widths = _sizes_of(rows, annotations, images)
    traced = trace_runs(counts, offsets_of(lengths), heights, widths)

    rings = Rings(
        np.concatenate([polygons.vertices.astype(np.float32), traced.vertices]),
        np.concatenate([offsets, offsets[-1] + traced.vertex_offsets[1:]]),
        np.concatenate([part_rows, rows[traced.owners]]),
    )
    boxes = np.array(annotations.boxes, dtype=np.float64).reshape(-1, 4)
    apart = _rows_apart(rings, boxes)
    refuse(apart, "its segmentation and its bbox do not overlap")
    return rings, bad_rows


def _select(
    counts: np.ndarray, lengths: np.ndarray, rows: np.ndarray, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if keep.all():
        return counts, lengths, rows
    return counts[np.repeat(keep, lengths)], lengths[keep], rows[keep]


def _sum_groups(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    sums = np.concatenate([[0], np.cumsum(values)])
    return np.diff(sums[offsets_of(lengths)])


def _sizes_of(
    rows: np.ndarray, annotations: _Annotations, images: _Images
) -> tuple[np.ndarray, np.ndarray]:
    positions = np.array(annotations.images, dtype=np.int64)[rows]
    heights = np.array(images.heights, dtype=np.int64)[positions]
    return heights, np.array(images.widths, dtype=np.int64)[positions]


def _rows_apart(rings: Rings, boxes: np.ndarray) -> np.ndarray:
    """Rows whose rings lie beside their box."""
    if len(rings.owners) == 0:
        return np.zeros(0, dtype=np.int64)
    starts = rings.vertex_offsets[:-1]
    low = np.full((len(boxes), 2), np.inf)
    high = np.full((len(boxes), 2), -np.inf)
    np.minimum.at(low, rings.owners, np.minimum.reduceat(rings.vertices, starts, axis=0))
    np.maximum.at(high, rings.owners, np.maximum.reduceat(rings.vertices, starts, axis=0))
    with_mask = np.isfinite(low[:, 0])
    apart = ((low >= boxes[:, 2:]) | (high <= boxes[:, :2])).any(axis=1)
    return np.flatnonzero(with_mask & apart)


def _assemble(
    images: _Images,
    annotations: _Annotations,
    rings: Rings,
    bad_rows: np.ndarray,
    problems: list[Problem],
    category_ids: list[int],
    category_names: list[str],
    source_file: Path,
    image_root: Path,
) -> AnnotationIndex:
    """Sorts annotations by image and rings by annotation, without the damaged rows."""
    image_of_row = np.array(annotations.images, dtype=np.int64)
    order = np.argsort(image_of_row, kind="stable")
    order = order[~bad_rows[order]]
    rank = np.full(len(bad_rows), -1, dtype=np.int64)
    rank[order] = np.arange(len(order))

    ring_rank = rank[rings.owners]
    ring_order = np.argsort(ring_rank, kind="stable")
    ring_order = ring_order[ring_rank[ring_order] >= 0]
    lengths = np.diff(rings.vertex_offsets)[ring_order]
    vertices = rings.vertices[ranges(rings.vertex_offsets[ring_order], lengths)]
    boxes = np.array(annotations.boxes, dtype=np.float32).reshape(-1, 4)
    return AnnotationIndex(
        image_ids=np.array(images.ids, dtype=np.int64),
        widths=np.array(images.widths, dtype=np.int32),
        heights=np.array(images.heights, dtype=np.int32),
        file_name_bytes=np.frombuffer(b"".join(images.names), dtype=np.uint8),
        file_name_offsets=offsets_of(np.array([len(name) for name in images.names], np.int64)),
        annotation_offsets=offsets_of(
            np.bincount(image_of_row[order], minlength=len(images.ids))
        ),
        annotation_ids=np.array(annotations.ids, dtype=np.int64)[order],
        boxes=boxes[order],
        labels=np.array(annotations.labels, dtype=np.int32)[order],
        crowd=np.array(annotations.crowd, dtype=bool)[order],
        ring_offsets=offsets_of(np.bincount(ring_rank[ring_order], minlength=len(order))),
        vertex_offsets=offsets_of(lengths),
        vertices=np.ascontiguousarray(vertices),
        category_ids=np.array(category_ids, dtype=np.int64),
        category_names=category_names,
        source_file=source_file,
        image_root=image_root,
        skipped=problems,
    )  # fmt: skip
