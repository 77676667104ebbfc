"""The segmentations of a COCO file, polygons and run-length encodings, checked and made rings."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from detector.data.problems import DamagedRecord
from detector.data.rings import (
    Rings,
    decode_counts,
    offsets_of,
    orient_rings,
    ring_areas,
    trace_runs,
)

# A polygon part below this area (square pixels) has its vertices on one line.
_MIN_RING_AREA = 1e-6
_PIECE = 1 << 16  # vertices

REMEDY = "correct the segmentation or remove the annotation"


@dataclass
class MaskColumns:
    """Segmentations as flat columns. A *row* is the number of an annotation.

    Attributes:
        coordinates: of all polygon parts, one after another.
        part_lengths: vertices of each part.
        part_rows: the row of each part.
        strings: compressed run-length encodings.
        string_rows: the row of each string.
        lists: uncompressed run lengths.
        list_rows: the row of each list.
        faults: ``(row, what)`` of segmentations that turned out damaged in :meth:`rings`.
    """

    coordinates: array = field(default_factory=lambda: array("d"))
    part_lengths: array = field(default_factory=lambda: array("q"))
    part_rows: array = field(default_factory=lambda: array("q"))
    strings: list[bytes] = field(default_factory=list)
    string_rows: list[int] = field(default_factory=list)
    lists: list[np.ndarray] = field(default_factory=list)
    list_rows: list[int] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)

    def add(self, segmentation: Any, size: tuple[int, int], row: int) -> None:
        """Takes the segmentation of one annotation.

        Args:
            segmentation: polygon parts, an RLE, or ``None`` or ``[]`` for a box without a mask.
            size: ``(height, width)`` of the image.
            row: of the annotation, larger than all before.

        Raises:
            DamagedRecord: it can be seen at once that it is none of these.
        """
        if segmentation is None or segmentation == []:
            return
        if isinstance(segmentation, list):
            self._add_polygons(segmentation, row)
        elif isinstance(segmentation, dict):
            self._add_runs(segmentation, size, row)
        else:
            raise DamagedRecord(f"segmentation is a {type(segmentation).__name__}", REMEDY)

    def add_all(self, segmentations: list, sizes: list[tuple[int, int]], first_row: int) -> bool:
        """Takes the segmentations of many annotations at once, or none if one looks damaged.

        Args:
            segmentations: see :meth:`add`.
            sizes: ``(height, width)`` of each one's image.
            first_row: of the first annotation; larger than all before.
        """
        polygons = [each if type(each) is list else () for each in segmentations]
        parts = list(chain.from_iterable(polygons))
        if not set(map(type, parts)) <= {list}:
            return False
        lengths = np.array(list(map(len, parts)), dtype=np.int64)
        if (lengths < 6).any() or (lengths % 2).any():
            return False
        try:
            coordinates = b"".join([_packer(len(part))(*part) for part in parts])
        except struct.error:
            return False
        others = MaskColumns()
        try:
            for row, segmentation in enumerate(segmentations, start=first_row):
                if type(segmentation) is not list and segmentation is not None:
                    others.add(segmentation, sizes[row - first_row], row)
        except DamagedRecord:
            return False
        rows = np.repeat(
            np.arange(first_row, first_row + len(segmentations)), list(map(len, polygons))
        )
        self.coordinates.frombytes(coordinates)
        self.part_lengths.extend(array("q", (lengths // 2).tobytes()))
        self.part_rows.extend(array("q", rows.tobytes()))
        self.strings += others.strings
        self.string_rows += others.string_rows
        self.lists += others.lists
        self.list_rows += others.list_rows
        return True

    def _add_polygons(self, parts: list, row: int) -> None:
        for part in parts:
            if not isinstance(part, list):
                raise DamagedRecord("a polygon part is not a list of coordinates", REMEDY)
            if len(part) % 2:
                raise DamagedRecord(
                    f"a polygon part has {len(part)} numbers, not x, y pairs", REMEDY
                )
            if len(part) < 6:
                raise DamagedRecord(
                    f"a degenerate polygon part has {len(part) // 2} vertices, fewer than 3", REMEDY
                )
        start = len(self.coordinates)
        try:
            for part in parts:
                self.coordinates.extend(part)
        except (TypeError, OverflowError):
            del self.coordinates[start:]
            raise DamagedRecord("a polygon part is not made of numbers", REMEDY) from None
        self.part_lengths.extend(len(part) // 2 for part in parts)
        self.part_rows.extend([row] * len(parts))

    def _add_runs(self, segmentation: dict, size: tuple[int, int], row: int) -> None:
        counts = segmentation.get("counts")
        if segmentation.get("size") != list(size):
            raise DamagedRecord(
                f"its RLE is of size {segmentation.get('size')!r} but the image is {list(size)} "
                "(height, width)",
                REMEDY,
            )
        if isinstance(counts, str) and counts.isascii():
            self.string_rows.append(row)
            self.strings.append(counts.encode())
        elif isinstance(counts, list):
            try:
                runs = np.array(array("q", counts), dtype=np.int64)
            except (TypeError, OverflowError):
                raise DamagedRecord("its RLE counts are not integers", REMEDY) from None
            self.list_rows.append(row)
            self.lists.append(runs)
        else:
            raise DamagedRecord("its RLE has no counts", REMEDY)

    def rings(self, boxes: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> Rings:
        """The rings of all rows; ``owners`` are rows. Damaged ones end in :attr:`faults`.

        Args:
            boxes: ``(rows, 4)`` ``(x1, y1, x2, y2)``.
            heights: ``(rows,)`` int64, of each row's image.
            widths: likewise.
        """
        polygons = self._polygon_rings(len(boxes))
        runs = self._run_rings(heights, widths)
        rings = Rings(
            np.concatenate([polygons.vertices, runs.vertices]),
            np.concatenate(
                [polygons.vertex_offsets, polygons.vertex_offsets[-1] + runs.vertex_offsets[1:]]
            ),
            np.concatenate([polygons.owners, runs.owners]),
        )
        self._refuse(_rows_apart(rings, boxes), "its segmentation and its bbox do not overlap")
        return rings

    def _refuse(self, rows: np.ndarray, what: str) -> None:
        known = {row for row, _ in self.faults}
        self.faults += [(row, what) for row in np.unique(rows).tolist() if row not in known]

    def _polygon_rings(self, num_rows: int) -> Rings:
        points = np.frombuffer(self.coordinates, dtype=np.float64).reshape(-1, 2)
        offsets = offsets_of(np.array(self.part_lengths, dtype=np.int64))
        rows = np.array(self.part_rows, dtype=np.int64)
        vertices = np.empty(points.shape, dtype=np.float32)
        areas = np.empty(len(rows))
        finite = np.ones(len(rows), dtype=bool)
        # In pieces that stay in the processor's cache, three times as fast.
        first = 0
        while first < len(rows):
            last = int(np.searchsorted(offsets, offsets[first] + _PIECE, side="right")) - 1
            last = max(last, first + 1)
            piece = points[offsets[first] : offsets[last]]
            ends = offsets[first : last + 1] - offsets[first]
            usable = np.isfinite(piece).all(axis=1)
            if not usable.all():
                finite[first:last] = np.logical_and.reduceat(usable, ends[:-1])
                piece[~usable] = 0
            areas[first:last] = ring_areas(piece, ends)
            vertices[offsets[first] : offsets[last]] = orient_rings(piece, ends, areas[first:last])
            first = last
        self._refuse(rows[~finite], "its polygon is not finite")
        # A flat part beside a proper one adds nothing to the mask and harms nothing.
        has_area = np.zeros(num_rows, dtype=bool)
        has_area[rows[np.abs(areas) > _MIN_RING_AREA]] = True
        self._refuse(rows[~has_area[rows]], "a degenerate polygon, it has no area")
        return Rings(vertices, offsets, rows)

    def _run_rings(self, heights: np.ndarray, widths: np.ndarray) -> Rings:
        counts, offsets, valid = decode_counts(self.strings)
        valid = np.concatenate([valid, np.array([(r >= 0).all() for r in self.lists], dtype=bool)])
        lengths = [np.diff(offsets), np.array([len(runs) for runs in self.lists], dtype=np.int64)]
        lengths = np.concatenate(lengths)
        counts = np.concatenate([counts, *self.lists])
        rows = np.array(self.string_rows + self.list_rows, dtype=np.int64)
        self._refuse(rows[~valid], "its RLE counts are damaged")

        # Floats cannot overflow where damaged counts are absurd, and are exact where they are not.
        complete = _sum_groups(counts.astype(np.float64), lengths) == heights[rows] * widths[rows]
        self._refuse(rows[~complete], "its RLE counts do not add up to the image's area")
        rank = np.arange(len(counts)) - np.repeat(offsets_of(lengths)[:-1], lengths)
        filled = _sum_groups((rank % 2 == 1) & (counts > 0), lengths) > 0
        self._refuse(rows[~filled], "its RLE mask is empty")

        good = valid & complete & filled
        counts, lengths, rows = counts[np.repeat(good, lengths)], lengths[good], rows[good]
        traced = trace_runs(counts, offsets_of(lengths), heights[rows], widths[rows])
        return Rings(traced.vertices, traced.vertex_offsets, rows[traced.owners])


@lru_cache(None)
def _packer(count: int) -> Callable[..., bytes]:
    """Packs so many numbers as float64; three times as fast as ``array`` takes a list."""
    return struct.Struct(f"{count}d").pack


def _sum_groups(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    group = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(group, weights=values, minlength=len(lengths))


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
