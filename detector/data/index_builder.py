"""Builds an annotation index from formats that name images and classes instead of numbering them.

YOLO, CSV, Labelme and VIA give an object as a class name with a box or a polygon, and an image as
a file; the numbers that the index wants are made here, and every record is held against the same
rules as a COCO file's.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from detector.data.class_names import check_name
from detector.data.coco_masks import REMEDY as FIX_MASK
from detector.data.columns import (
    HUGE,
    AnnotationColumns,
    ImageColumns,
    assemble_index,
    check_box,
    check_file_name,
    make_rings,
)
from detector.data.index import AnnotationIndex
from detector.data.problems import DamagedRecord, Problem
from detector.data.voc_records import image_id_of

Part = list[float]


class IndexBuilder:
    """Takes images, each followed by its objects, and lists what is wrong with them.

    Args:
        classes: the names in the order of the labels; ``None``: the names that objects have,
            sorted.
    """

    def __init__(self, classes: Sequence[str] | None) -> None:
        self.problems: list[Problem] = []
        self._classes = None if classes is None else list(classes)
        self._images = ImageColumns()
        self._annotations = AnnotationColumns()
        self._names: list[str] = []  # of each annotation's class
        self._titles: list[str] = []  # of each annotation, in messages

    @contextmanager
    def listing(self, kind: str, record: str) -> Iterator[None]:
        """Lists a :class:`DamagedRecord` raised in the block as a problem of ``record``."""
        try:
            yield
        except DamagedRecord as damage:
            self.problems.append(Problem(kind, record, *damage.args))

    def add_image(self, name: str, size: tuple[int, int]) -> None:
        """Begins an image; the objects that follow are its.

        Args:
            name: of the file, relative to the image root, with ``/``.
            size: ``(width, height)`` in pixels.

        Raises:
            DamagedRecord: no image can be so.
        """
        width, height = size
        if not 0 < width < 2**31 > height > 0:
            raise DamagedRecord(f"its size is {width}x{height}", "set its size in pixels")
        self._images.add(0, width, height, check_file_name(name))

    def add_object(
        self,
        title: str,
        class_name: str,
        box: Sequence[float] | None = None,
        parts: list[Part] | None = None,
        crowd: bool = False,
    ) -> None:
        """Takes one object of the image that was begun last.

        Args:
            title: how it is called in messages.
            class_name: the name of its class.
            box: ``(x1, y1, x2, y2)`` in continuous pixels; ``None``: the extent of ``parts``.
            parts: polygons ``[x, y, x, y, ...]`` that make up its mask together; ``None``: a box
                without a mask.
            crowd: see :class:`AnnotationIndex`.

        Raises:
            DamagedRecord: it cannot be used.
        """
        if self._classes is not None and class_name not in self._classes:
            raise DamagedRecord(
                f'no such class as "{class_name}"',
                f"correct the name, or give data.classes that hold it; now "
                f"{', '.join(self._classes[:20])}",
                None,
                class_name,
            )
        reason = check_name(class_name)
        if reason is not None:
            raise DamagedRecord(reason, "give it the name of a class")
        size = self._images.widths[-1], self._images.heights[-1]
        if box is None:
            ends = _extent(parts or [])
            shown = f"its polygon from ({ends[0]:g}, {ends[1]:g}) to ({ends[2]:g}, {ends[3]:g})"
        else:
            ends = tuple(map(float, box))
            shown = f"box ({', '.join(f'{end:g}' for end in ends)})"
        checked = check_box(*ends, size, shown)
        rows = self._annotations
        rows.masks.add(parts, size[::-1], len(rows))
        rows.add(len(rows) + 1, len(self._images) - 1, 0, crowd, checked)
        self._names.append(class_name)
        self._titles.append(title)

    def build(self, source_format: str, source_file: Path, image_root: Path) -> AnnotationIndex:
        """The index of what was taken; damaged records are in ``index.skipped``."""
        classes = sorted(set(self._names)) if self._classes is None else self._classes
        labels = {name: label for label, name in enumerate(classes)}
        images, rows = self._images, self._annotations
        rows.labels = array("q", [labels[name] for name in self._names])
        images.ids = image_ids_of([name.decode() for name in images.names])
        rings, bad_rows = make_rings(rows, images, self._titles.__getitem__, self.problems)
        index = assemble_index(
            images, rows, rings, bad_rows, self.problems,
            list(range(1, len(classes) + 1)), classes, source_file, image_root,
        )  # fmt: skip
        index.source_format = source_format
        return index


def image_ids_of(names: Sequence[str]) -> list[int]:
    """An id for every image file.

    The number that a file's name spells (``images/000000000139.jpg`` 139, ``2008_000002.jpg``
    2008000002) where no other image spells it; else 52 bits made from its path, from 2^52 on.
    """
    stems = [PurePosixPath(name).stem for name in names]
    spelled = [image_id_of(stem) for stem in stems]
    count: dict[int, int] = {}
    for identifier in spelled:
        count[identifier] = count.get(identifier, 0) + 1
    made = 2**52
    return [
        identifier
        if identifier < made and count[identifier] == 1
        else made + int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % made
        for identifier, name in zip(spelled, names, strict=True)
    ]


def _extent(parts: list[Part]) -> tuple[float, float, float, float]:
    if not parts or any(len(part) < 6 or len(part) % 2 for part in parts):
        counts = ", ".join(str(len(part) / 2).removesuffix(".0") for part in parts) or "no"
        raise DamagedRecord(f"a degenerate polygon of {counts} vertices, fewer than 3", FIX_MASK)
    if not all(abs(value) < HUGE for part in parts for value in part):
        raise DamagedRecord("its polygon is not finite", FIX_MASK)
    x = [value for part in parts for value in part[::2]]
    y = [value for part in parts for value in part[1::2]]
    return min(x), min(y), max(x), max(y)
