"""The columns that readers fill record by record, and the annotation index made of them."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detector.data.coco_keypoints import KeypointNames
from detector.data.coco_masks import REMEDY as FIX_MASK
from detector.data.coco_masks import MaskColumns
from detector.data.index import AnnotationIndex
from detector.data.problems import DamagedRecord, Problem
from detector.data.rings import Rings, offsets_of, ranges
from detector.data.threads import num_threads

Box = tuple[float, float, float, float]

# Annotation tools round box ends; up to this many pixels beyond the image is clipped in silence.
OUTSIDE_TOLERANCE = 1.0
_RINGS_AT_ONCE = 4096
HUGE = 1e30  # beyond, and for NaN and infinity, arithmetic has no meaning


@dataclass
class ImageColumns:
    """Columns of the good images."""

    ids: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def add(self, identifier: int, width: int, height: int, name: bytes) -> None:
        """Takes one image; ``name`` is its file's, see :func:`check_file_name`."""
        self.ids.append(identifier)
        self.widths.append(width)
        self.heights.append(height)
        self.names.append(name)


@dataclass
class AnnotationColumns:
    """Columns of the annotations that are good as far as one record alone can tell.

    Attributes:
        ids: of the annotations.
        images: the position of each annotation's image in its :class:`ImageColumns`.
        labels: of the annotations.
        crowd: 0 or 1.
        boxes: four numbers each, ``x1, y1, x2, y2``.
        masks: their segmentations.
    """

    ids: array = field(default_factory=lambda: array("q"))
    images: array = field(default_factory=lambda: array("q"))
    labels: array = field(default_factory=lambda: array("q"))
    crowd: array = field(default_factory=lambda: array("b"))
    boxes: array = field(default_factory=lambda: array("d"))
    masks: MaskColumns = field(default_factory=MaskColumns)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, identifier: int, image: int, label: int, crowd: bool, box: Box) -> None:
        """Takes one annotation, whose mask was added before."""
        self.ids.append(identifier)
        self.images.append(image)
        self.labels.append(label)
        self.crowd.append(crowd)
        self.boxes.extend(box)

    def box_rows(self) -> np.ndarray:
        """``(rows, 4)`` float64."""
        return np.array(self.boxes, dtype=np.float64).reshape(-1, 4)


def check_file_name(name: str) -> bytes:
    """The name in UTF-8.

    Raises:
        DamagedRecord: no file can have it.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise DamagedRecord(f"its file name {name!r} holds characters no name has", "correct it")
    return encoded


def check_box(x1: float, y1: float, x2: float, y2: float, size: tuple[int, int], shown: str) -> Box:
    """A box clipped to its image.

    Args:
        x1, y1, x2, y2: in continuous pixels.
        size: ``(width, height)`` of the image.
        shown: the box as the file gives it, such as ``"bbox [0, 0, 5, 5]"``.

    Raises:
        DamagedRecord: it is not finite, has no area, or reaches outside the image by more than
            :data:`OUTSIDE_TOLERANCE`.
    """
    remedy = "correct the box or remove the object"
    width, height = size
    if not all(abs(end) < HUGE for end in (x1, y1, x2, y2)):
        raise DamagedRecord(f"{shown} is not finite", remedy)
    if x2 <= x1 or y2 <= y1:
        raise DamagedRecord(f"{shown} has no area", remedy, (x1, y1, x2, y2))
    if min(x1, y1) < -OUTSIDE_TOLERANCE or max(x2 - width, y2 - height) > OUTSIDE_TOLERANCE:
        what = f"{shown} reaches outside the {width}x{height} image"
        raise DamagedRecord(what, remedy, (x1, y1, x2, y2))
    box = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    # In float32, as the index holds it.
    if not (np.float32(box[0]) < np.float32(box[2]) and np.float32(box[1]) < np.float32(box[3])):
        raise DamagedRecord(f"{shown} has no area inside the {width}x{height} image", remedy)
    return box


def make_rings(
    annotations: AnnotationColumns,
    images: ImageColumns,
    name_row: Callable[[int], str],
    problems: list[Problem],
) -> tuple[Rings, np.ndarray]:
    """Rings of all annotations by row, and which rows are damaged, ``(rows,)`` bool.

    Args:
        name_row: how a row's annotation is called in the list of problems.
        problems: where the damaged rows are listed.
    """
    positions = np.array(annotations.images, dtype=np.int64)
    rings = annotations.masks.rings(
        annotations.box_rows(),
        np.array(images.heights, dtype=np.int64)[positions],
        np.array(images.widths, dtype=np.int64)[positions],
    )
    bad_rows = np.zeros(len(positions), dtype=bool)
    for row, what in annotations.masks.faults:
        bad_rows[row] = True
        problems.append(Problem("annotation", name_row(row), what, FIX_MASK))
    return rings, bad_rows


def assemble_index(
    images: ImageColumns,
    annotations: AnnotationColumns,
    rings: Rings,
    bad_rows: np.ndarray,
    problems: list[Problem],
    category_ids: list[int],
    category_names: list[str],
    source_file: Path,
    image_root: Path,
    keypoints: np.ndarray | None = None,
    keypoint_names: KeypointNames | None = None,
) -> AnnotationIndex:
    """Sorts annotations by image and rings by annotation, without the damaged rows.

    Args:
        keypoints: ``(rows, J, 3)`` float32, of objects that have some.
        keypoint_names: what they are.
    """
    image_of_row = np.array(annotations.images, dtype=np.int64)
    order = np.argsort(image_of_row, kind="stable")
    order = order[~bad_rows[order]]
    rank = np.full(len(bad_rows), -1, dtype=np.int64)
    rank[order] = np.arange(len(order))

    ring_rank = rank[rings.owners]
    ring_order = np.argsort(ring_rank, kind="stable")
    ring_order = ring_order[ring_rank[ring_order] >= 0]
    lengths = np.diff(rings.vertex_offsets)[ring_order]
    vertex_offsets = offsets_of(lengths)
    # Both coordinates of a vertex in one go, and some rings at a time: positions take more memory
    # than the vertices.
    pairs = np.ascontiguousarray(rings.vertices, dtype=np.float32).view(np.int64).ravel()
    vertices = np.empty(vertex_offsets[-1], dtype=np.int64)

    def copy(first: int) -> None:
        last = min(first + _RINGS_AT_ONCE, len(lengths))
        starts = rings.vertex_offsets[ring_order[first:last]]
        vertices[vertex_offsets[first] : vertex_offsets[last]] = pairs[
            ranges(starts, lengths[first:last])
        ]

    with ThreadPoolExecutor(num_threads()) as pool:
        list(pool.map(copy, range(0, len(lengths), _RINGS_AT_ONCE)))
    boxes = annotations.box_rows().astype(np.float32)
    described = keypoint_names or KeypointNames()
    return AnnotationIndex(
        image_ids=np.array(images.ids, dtype=np.int64),
        widths=np.array(images.widths, dtype=np.int32),
        heights=np.array(images.heights, dtype=np.int32),
        file_name_bytes=np.frombuffer(b"".join(images.names), dtype=np.uint8),
        file_name_offsets=offsets_of(np.array([len(name) for name in images.names], np.int64)),
        annotation_offsets=offsets_of(np.bincount(image_of_row[order], minlength=len(images))),
        annotation_ids=np.array(annotations.ids, dtype=np.int64)[order],
        boxes=boxes[order],
        labels=np.array(annotations.labels, dtype=np.int32)[order],
        crowd=np.array(annotations.crowd, dtype=bool)[order],
        ring_offsets=offsets_of(np.bincount(ring_rank[ring_order], minlength=len(order))),
        vertex_offsets=vertex_offsets,
        vertices=vertices.view(np.float32).reshape(-1, 2),
        category_ids=np.array(category_ids, dtype=np.int64),
        category_names=category_names,
        source_file=source_file,
        image_root=image_root,
        keypoints=None if keypoints is None else keypoints[order],
        keypoint_names=described.names,
        keypoint_flip=described.flip,
        skeleton=described.skeleton,
        keypoint_sigmas=described.sigmas,
        skipped=problems,
    )
