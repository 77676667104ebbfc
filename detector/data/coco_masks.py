"""The segmentations of a COCO file, polygons and run-length encodings, checked and made rings."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
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
_HUGE = 1e30  # no place in an image, and at the end of what float32 holds
_PIECE = 1 << 17  # coordinates

REMEDY = "correct the segmentation or remove the annotation"


@dataclass(frozen=True)
class PolygonParts:
    """Polygon parts as rings, and what has to be known of them.

    Attributes:
        vertices: ``(v, 2)`` float32, every part of positive area.
        lengths: ``(n,)`` int64, vertices of each part.
        rows: ``(n,)`` int64, of each part.
        flat: ``(n,)`` bool, parts without area.
        finite: ``(n,)`` bool, false where a vertex was NaN, infinite or beyond any image; it is 0.
    """

    vertices: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    flat: np.ndarray
    finite: np.ndarray


@dataclass
class MaskColumns:
    """Segmentations as flat columns. A *row* is the number of an annotation.

    Attributes:
        parts: polygon parts that were taken many at once.
        coordinates: of the other polygon parts, one after another.
        part_lengths: vertices of each of these.
        part_rows: the row of each of these.
        strings: compressed run-length encodings.
        string_rows: the row of each string.
        lists: uncompressed run lengths.
        list_rows: the row of each list.
        faults: ``(row, what)`` of segmentations that turned out damaged in :meth:`rings`.
    """

    parts: list[PolygonParts] = field(default_factory=list)
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

    def add_all(self, parts: PolygonParts, runs: list[tuple[int, Any, tuple[int, int]]]) -> bool:
        """Takes the segmentations of many annotations at once, or none if one looks damaged.

        Args:
            parts: of all polygons.
            runs: row, segmentation and size of those that are no polygons, see :meth:`add`.
        """
        others = MaskColumns()
        try:
            for row, segmentation, size in runs:
                others.add(segmentation, size, row)
        except DamagedRecord:
            return False
        self.parts.append(parts)
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
        self._collect_parts()
        parts, self.parts = self.parts, []
        rows = _joined(parts, "rows")
        self._refuse(rows[~_joined(parts, "finite")], "its polygon is not finite")
        # A flat part beside a proper one adds nothing to the mask and harms nothing.
        has_area = np.zeros(len(boxes), dtype=bool)
        has_area[rows[~_joined(parts, "flat")]] = True
        self._refuse(rows[~has_area[rows]], "a degenerate polygon, it has no area")
        runs = self._run_rings(heights, widths)
        lengths = np.concatenate([_joined(parts, "lengths"), np.diff(runs.vertex_offsets)])
        rings = Rings(
            np.concatenate([*(part.vertices for part in parts), runs.vertices]),
            offsets_of(lengths),
            np.concatenate([rows, runs.owners]),
        )
        self._refuse(_rows_apart(rings, boxes), "its segmentation and its bbox do not overlap")
        return rings

    def _collect_parts(self) -> None:
        """Makes parts of those that came one by one."""
        coordinates = np.frombuffer(self.coordinates, dtype=np.float64)
        lengths = 2 * np.array(self.part_lengths, dtype=np.int64)
        rows, offsets = np.array(self.part_rows, dtype=np.int64), offsets_of(lengths)
        # In pieces that stay in the processor's cache, three times as fast.
        first = 0
        while first < len(rows):
            last = int(np.searchsorted(offsets, offsets[first] + _PIECE, side="right")) - 1
            last = max(last, first + 1)
            piece = coordinates[offsets[first] : offsets[last]]
            self.parts.append(make_parts(piece, lengths[first:last], rows[first:last]))
            first = last

    def _refuse(self, rows: np.ndarray, what: str) -> None:
        known = {row for row, _ in self.faults}
        self.faults += [(row, what) for row in np.unique(rows).tolist() if row not in known]

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


def can_be_parts(lengths: np.ndarray) -> bool:
    """Whether these are counts of numbers that polygon parts can have."""
    return bool((lengths >= 6).all() and (lengths % 2 == 0).all())


def make_parts(coordinates: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> PolygonParts:
    """Polygon parts as rings.

    Args:
        coordinates: float64, ``x, y, x, y, ...`` of all parts.
        lengths: ``(n,)`` int64, numbers of each part, see :func:`can_be_parts`.
        rows: ``(n,)`` int64, of each part.
    """
    points, lengths = coordinates.reshape(-1, 2), lengths // 2
    offsets = offsets_of(lengths)
    finite = np.ones(len(lengths), dtype=bool)
    usable = np.abs(points) < _HUGE  # and not NaN
    if not usable.all():
        usable = usable.all(axis=1)
        finite = np.logical_and.reduceat(usable, offsets[:-1])
        points = np.where(usable[:, None], points, 0)
    areas = ring_areas(points, offsets)
    vertices = orient_rings(points, offsets, areas).astype(np.float32)
    return PolygonParts(vertices, lengths, rows, np.abs(areas) <= _MIN_RING_AREA, finite)


def join_parts(pieces: Sequence[PolygonParts]) -> PolygonParts:
    """The parts of all pieces."""
    return PolygonParts(*(_joined(pieces, field.name) for field in fields(PolygonParts)))


def _joined(pieces: Sequence[PolygonParts], name: str) -> np.ndarray:
    nothing = make_parts(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    return np.concatenate([getattr(piece, name) for piece in (*pieces, nothing)])


def _sum_groups(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    group = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(group, weights=values, minlength=len(lengths))


def _rows_apart(rings: Rings, boxes: np.ndarray) -> np.ndarray:
    """Rows whose rings, all together, lie beside their box."""
    if len(rings.owners) == 0:
        return np.zeros(0, dtype=np.int64)
    starts, owners = rings.vertex_offsets[:-1], rings.owners
    low = np.minimum.reduceat(rings.vertices, starts, axis=0)
    high = np.maximum.reduceat(rings.vertices, starts, axis=0)
    theirs = boxes[owners]
    beside = ((low >= theirs[:, 2:]) | (high <= theirs[:, :2])).any(axis=1)
    # Few have a ring beside; only they need the extent of all rings.
    candidates = np.unique(owners[beside])
    rows = np.searchsorted(candidates, owners).clip(0, max(len(candidates) - 1, 0))
    mine = np.flatnonzero(candidates[rows] == owners) if len(candidates) else rows[:0]
    all_low, all_high = np.full((2, len(candidates), 2), [[[np.inf]], [[-np.inf]]])
    np.minimum.at(all_low, rows[mine], low[mine])
    np.maximum.at(all_high, rows[mine], high[mine])
    theirs = boxes[candidates]
    return candidates[((all_low >= theirs[:, 2:]) | (all_high <= theirs[:, :2])).any(axis=1)]
