"""The records of a COCO file, checked one by one, as the columns of an annotation index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.coco_bulk import (
    CHUNK,
    KnownIds,
    add_plain_images,
    add_plain_records,
    columns_of,
)
from detector.data.coco_keypoints import REMEDY as FIX_KEYPOINTS
from detector.data.coco_keypoints import KeypointColumns, read_keypoint_names
from detector.data.coco_text import TextRecords
from detector.data.columns import (
    HUGE,
    OUTSIDE_TOLERANCE,
    AnnotationColumns,
    Box,
    ImageColumns,
    assemble_index,
    check_file_name,
    make_rings,
)
from detector.data.index import AnnotationIndex
from detector.data.problems import DamagedRecord, Problem
from detector.data.rings import Rings

_FIX_BOX = "correct the bbox or remove the annotation"


@dataclass
class _Images(ImageColumns):
    """Columns of the good image records, and where each id stands."""

    position: dict[int, int] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)


@dataclass
class _Annotations(AnnotationColumns):
    """Columns of the annotation records, with keypoints."""

    keypoints: KeypointColumns = field(default_factory=KeypointColumns)


def parse_dataset(
    data: Any,
    source_file: Path,
    image_root: Path,
    keypoint_flip: Sequence[Sequence[str]] | None = None,
    pieces: Iterable[list[Any] | TextRecords] | None = None,
) -> AnnotationIndex:
    """Checks and flattens a parsed COCO file. Damaged records end in ``index.skipped``.

    Args:
        data: the parsed JSON.
        source_file, image_root: of the index.
        keypoint_flip: see :func:`detector.data.coco.read_coco`.
        pieces: the list ``annotations`` in pieces, if it is not in ``data``.

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
    described, having = read_keypoint_names(data["categories"], source_file, keypoint_flip)
    problems: list[Problem] = []
    images = _read_images(data["images"], problems)
    labels = {category: label for label, category in enumerate(category_ids)}
    annotations = _Annotations(keypoints=KeypointColumns(described, having))
    if pieces is None:
        records = data["annotations"]
        pieces = (records[start : start + CHUNK] for start in range(0, len(records), CHUNK))
    _read_annotations(pieces, images, labels, annotations, problems)
    rings, keypoints, bad_rows = _read_geometry(annotations, images, problems)
    return assemble_index(
        images, annotations, rings, bad_rows, problems,
        category_ids, category_names, source_file, image_root, keypoints, described,
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
    if add_plain_images(records, images, images.position):
        return images
    for number, record in enumerate(records):
        try:
            _read_image(record, images)
        except DamagedRecord as damage:
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
        raise DamagedRecord("not a JSON object", "correct or remove the record")
    identifier, name = record.get("id"), record.get("file_name")
    width, height = record.get("width"), record.get("height")
    if not _is_integer(identifier):
        raise DamagedRecord(f"its id {identifier!r} is not an integer", "number the images")
    if identifier in images.position:
        raise DamagedRecord("duplicate image id", "make image ids unique")
    if not isinstance(name, str) or not name:
        raise DamagedRecord("no file_name", "add the file's name")
    if not (_is_integer(width) and _is_integer(height) and 0 < width < 2**31 > height > 0):
        raise DamagedRecord(
            f"width {width!r} and height {height!r} are not positive integers",
            "set the image's size in pixels",
        )
    encoded = check_file_name(name)
    images.damaged.discard(identifier)
    images.position[identifier] = len(images)
    images.add(identifier, width, height, encoded)


def _read_annotations(
    pieces: Iterable[list[Any] | TextRecords],
    images: _Images,
    labels: dict[int, int],
    annotations: _Annotations,
    problems: list[Problem],
) -> None:
    seen: set[int] = set()
    known = KnownIds(images, labels)
    start = 0
    for piece in pieces:
        in_text = isinstance(piece, TextRecords)
        # What is plain at first sight goes together; where something is odd, one by one.
        if annotations.keypoints.num_keypoints or not add_plain_records(
            piece.columns if in_text else columns_of(piece), known, seen, annotations
        ):
            records = piece.parse() if in_text else piece
            for number, record in enumerate(records, start=start):
                _try_annotation(record, number, images, labels, seen, annotations, problems)
        else:
            annotations.keypoints.add_none(len(piece))
        start += len(piece)


def _try_annotation(
    record: Any,
    number: int,
    images: _Images,
    labels: dict[int, int],
    seen: set[int],
    annotations: _Annotations,
    problems: list[Problem],
) -> None:
    try:
        if not isinstance(record, dict):
            raise DamagedRecord("not a JSON object", "correct or remove the record")
        image = record.get("image_id")
        if _is_integer(image) and image in images.damaged:
            return  # its image is listed
        _read_annotation(record, images, labels, seen, annotations)
    except DamagedRecord as damage:
        problems.append(Problem("annotation", _name_annotation(record, number), *damage.args))


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
        raise DamagedRecord(f"its id {identifier!r} is not an integer", "number the annotations")
    if identifier in seen:
        raise DamagedRecord("duplicate annotation id", "make annotation ids unique")
    seen.add(identifier)
    image = record.get("image_id")
    if not _is_integer(image) or image not in images.position:
        raise DamagedRecord(f"unknown image {image!r}", "add the image or remove the annotation")
    category = record.get("category_id")
    if not _is_integer(category) or category not in labels:
        raise DamagedRecord(
            f"unknown category {category!r}", "add the category or remove the annotation"
        )
    crowd = record.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DamagedRecord(f"iscrowd is {crowd!r}", "set it to 0 or 1")
    position = images.position[image]
    box = _read_box(record.get("bbox"), images.widths[position], images.heights[position])
    row = len(annotations)
    size = (images.heights[position], images.widths[position])
    keypoints = annotations.keypoints.parse(record)
    annotations.masks.add(record.get("segmentation"), size, row)  # the last that may refuse it
    annotations.keypoints.add(*keypoints)
    annotations.add(identifier, position, labels[category], bool(crowd), box)


def _read_box(value: Any, width: int, height: int) -> Box:
    if not isinstance(value, list) or len(value) != 4:
        raise DamagedRecord(f"bbox {value!r} is not a list [x, y, width, height]", _FIX_BOX)
    for number in value:
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise DamagedRecord(f"bbox {value!r} is not made of numbers", _FIX_BOX)
        if not abs(number) < HUGE:
            raise DamagedRecord(f"bbox {value!r} is not finite", _FIX_BOX)
    x, y, box_width, box_height = value
    if box_width < 0 or box_height < 0:
        raise DamagedRecord(f"bbox {value!r} has a negative size", _FIX_BOX)
    x2, y2 = x + box_width, y + box_height
    if box_width == 0 or box_height == 0:
        raise DamagedRecord(f"bbox {value!r} has no area", _FIX_BOX, (x, y, x2, y2))
    if min(x, y) < -OUTSIDE_TOLERANCE or max(x2 - width, y2 - height) > OUTSIDE_TOLERANCE:
        what = f"bbox {value!r} reaches outside the {width}x{height} image"
        raise DamagedRecord(what, _FIX_BOX, (x, y, x2, y2))
    clipped = max(x, 0.0), max(y, 0.0), min(x2, float(width)), min(y2, float(height))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise DamagedRecord(f"bbox {value!r} lies outside the {width}x{height} image", _FIX_BOX)
    return clipped


def _read_geometry(
    annotations: _Annotations, images: _Images, problems: list[Problem]
) -> tuple[Rings, np.ndarray, np.ndarray]:
    """Rings and keypoints of all annotations by row, and which rows are damaged, (rows,) bool."""

    def name_row(row: int) -> str:
        return f"image {images.ids[annotations.images[row]]}, annotation {annotations.ids[row]}"

    rings, bad_rows = make_rings(annotations, images, name_row, problems)
    positions = np.array(annotations.images, dtype=np.int64)
    keypoints, faults = annotations.keypoints.rows(
        np.array(images.heights, dtype=np.int64)[positions],
        np.array(images.widths, dtype=np.int64)[positions],
    )
    for row, what in faults:
        if not bad_rows[row]:  # else it is listed
            problems.append(Problem("annotation", name_row(row), what, FIX_KEYPOINTS))
        bad_rows[row] = True
    return rings, keypoints, bad_rows
