"""The XML files of a VOC dataset, checked one by one, as the flat arrays of an annotation index."""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from detector.data.index import AnnotationIndex
from detector.data.problems import DamagedRecord, Problem
from detector.data.rings import offsets_of

# Tools that count from 0, or round, are off by one pixel; that much is clipped in silence.
_OUTSIDE_TOLERANCE = 1.0
_FIX_BOX = "correct its bndbox or remove the object"
# Numbers below it are spelled by names, those from it on made from names; all are exact in JSON.
_FIRST_MADE_ID = 2**52


@dataclass(frozen=True)
class Entry:
    """One line of a split.

    Attributes:
        folder: where ``Annotations`` lies, relative to the image root: empty or ending in a slash.
        name: of the image, without suffix.
        content: of its XML file, ``None`` where there is none.
    """

    folder: str
    name: str
    content: bytes | None

    @property
    def annotation_file(self) -> str:
        return f"{self.folder}Annotations/{self.name}.xml"


@dataclass
class _Objects:
    """Columns of the good objects."""

    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)


@dataclass
class _Images:
    """Columns of the good images."""

    ids: dict[int, str] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    num_objects: list[int] = field(default_factory=list)


def parse_entries(
    entries: list[Entry], classes: list[str], source_file: Path, image_root: Path
) -> AnnotationIndex:
    """Checks and flattens the XML of all entries. Damaged records end in ``index.skipped``."""
    labels = {name: label for label, name in enumerate(classes)}
    images, objects, problems = _Images(), _Objects(), []
    for entry in entries:
        try:
            _read_image(entry, images, objects, labels, problems)
        except DamagedRecord as damage:
            problems.append(Problem("image", f"image {entry.annotation_file}", *damage.args))
    num_objects = len(objects.labels)
    widths, heights = np.array(images.sizes, dtype=np.int32).reshape(-1, 2).T.copy()
    return AnnotationIndex(
        image_ids=np.array(list(images.ids), dtype=np.int64),
        widths=widths,
        heights=heights,
        file_name_bytes=np.frombuffer(b"".join(images.names), dtype=np.uint8),
        file_name_offsets=offsets_of(np.array([len(name) for name in images.names], np.int64)),
        annotation_offsets=offsets_of(np.array(images.num_objects, dtype=np.int64)),
        annotation_ids=np.arange(1, num_objects + 1),
        boxes=np.array(objects.boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(objects.labels, dtype=np.int32),
        crowd=np.array(objects.difficult, dtype=bool),
        ring_offsets=np.zeros(num_objects + 1, dtype=np.int64),
        vertex_offsets=np.zeros(1, dtype=np.int64),
        vertices=np.zeros((0, 2), dtype=np.float32),
        category_ids=np.arange(1, len(classes) + 1),
        category_names=classes,
        source_file=source_file,
        image_root=image_root,
        source_format="voc",
        skipped=problems,
    )


def image_id_of(name: str) -> int:
    """The number that a VOC image name spells, or one made from any other name.

    ``000012`` is 12 and ``2008_000002`` is 2008000002; other names give 52 bits of their SHA-256,
    from 2^52 on.
    """
    if re.fullmatch(r"[0-9]{1,15}|[0-9]{4}_[0-9]{6}", name):
        return int(name.replace("_", ""))
    digest = hashlib.sha256(name.encode()).digest()
    return _FIRST_MADE_ID + int.from_bytes(digest[:8], "big") % _FIRST_MADE_ID


def _read_image(
    entry: Entry,
    images: _Images,
    objects: _Objects,
    labels: dict[str, int],
    problems: list[Problem],
) -> None:
    root = _parse(entry)
    width, height = _read_size(root)
    identifier = image_id_of(entry.name)
    if identifier in images.ids:
        other = images.ids[identifier]
        if other == entry.annotation_file:
            raise DamagedRecord("the splits list it twice", "list it once")
        raise DamagedRecord(f"its id {identifier} is that of {other} too", "rename one of them")
    count = len(objects.labels)
    for number, record in enumerate(root.findall("object"), start=1):
        try:
            label, difficult, box = _read_object(record, labels, width, height)
        except DamagedRecord as damage:
            name = f'image {entry.annotation_file}, object {number} ("{_text(record, "name")}")'
            problems.append(Problem("annotation", name, *damage.args))
            continue
        objects.labels.append(label)
        objects.difficult.append(difficult)
        objects.boxes.append(box)
    images.ids[identifier] = entry.annotation_file
    images.sizes.append((width, height))
    images.names.append(_image_file(entry, root).encode())
    images.num_objects.append(len(objects.labels) - count)


def _parse(entry: Entry) -> ElementTree.Element:
    if entry.content is None:
        raise DamagedRecord("there is no such file", "add it, or take its name out of the split")
    try:
        root = ElementTree.fromstring(entry.content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DamagedRecord(f"it is no XML ({error})", "restore it") from error
    if root.tag != "annotation":
        raise DamagedRecord(f"it holds <{root.tag}>, not <annotation>", "restore it")
    return root


def _image_file(entry: Entry, root: ElementTree.Element) -> str:
    """The file of the entry's name; its suffix is .jpg unless the annotation says another."""
    said = PurePosixPath(_text(root, "filename"))
    suffix = said.suffix if said.stem == PurePosixPath(entry.name).name and said.suffix else ".jpg"
    return f"{entry.folder}JPEGImages/{entry.name}{suffix}"


def _read_size(root: ElementTree.Element) -> tuple[int, int]:
    words = [_text(root, "size/width"), _text(root, "size/height")]
    if not all(re.fullmatch("[0-9]{1,9}", word) and int(word) > 0 for word in words):
        raise DamagedRecord(
            f"its size is {words[0] or 'nothing'} by {words[1] or 'nothing'}",
            "set width and height in pixels",
        )
    return int(words[0]), int(words[1])


def _read_object(
    record: ElementTree.Element, labels: dict[str, int], width: int, height: int
) -> tuple[int, bool, tuple[float, float, float, float]]:
    name = _text(record, "name")
    if name not in labels:
        raise DamagedRecord(
            "no such class" if name else "it has no name",
            f"correct the name, or give data.classes that hold it; now {', '.join(labels)}",
            None,
            name or None,
        )
    difficult = _text(record, "difficult") or "0"
    if difficult not in ("0", "1"):
        raise DamagedRecord(f'difficult is "{difficult}"', "set it to 0 or 1")
    return labels[name], difficult == "1", _read_box(record, width, height)


def _read_box(
    record: ElementTree.Element, width: int, height: int
) -> tuple[float, float, float, float]:
    # A person's parts have boxes too, one level below.
    words = [_text(record, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    shown = f"bndbox ({', '.join(word or 'nothing' for word in words)})"
    try:
        xmin, ymin, xmax, ymax = map(float, words)
    except ValueError:
        raise DamagedRecord(f"{shown} is not four numbers", _FIX_BOX) from None
    if not np.isfinite((xmin, ymin, xmax, ymax)).all():
        raise DamagedRecord(f"{shown} is not finite", _FIX_BOX)
    # By the convention equal ends would be one pixel; no object is, but a slip of the mouse is.
    if xmax <= xmin or ymax <= ymin:
        box = xmin - 1, ymin - 1, xmax, ymax
        raise DamagedRecord(f"{shown} has no area", _FIX_BOX, box)
    x1, y1 = xmin - 1, ymin - 1
    if min(x1, y1) < -_OUTSIDE_TOLERANCE or max(xmax - width, ymax - height) > _OUTSIDE_TOLERANCE:
        raise DamagedRecord(f"{shown} reaches outside the {width}x{height} image", _FIX_BOX)
    return max(x1, 0.0), max(y1, 0.0), min(xmax, float(width)), min(ymax, float(height))


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
