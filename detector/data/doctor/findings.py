"""What the doctor finds: kinds of defects, each with its records and its remedy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from detector.data.index import AnnotationIndex

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Spot:
    """A place to look at.

    Attributes:
        split: ``"train"`` or ``"val"``.
        image: position in the split's index.
        annotations: positions in the index, the objects that are meant; of none, the whole image.
        boxes: ``(x1, y1, x2, y2)`` in pixels, further places that are no annotations of the index.
    """

    split: str
    image: int
    annotations: tuple[int, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(frozen=True)
class Record:
    """One case of a finding.

    Attributes:
        where: the file, image or object, by name and id.
        what: what is wrong with it.
        remedy: what to do about this one, where it is not the finding's.
        spots: what to look at.
    """

    where: str
    what: str
    remedy: str | None = None
    spots: tuple[Spot, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A kind of defect.

    Attributes:
        kind: a word for programs, such as ``"duplicate_annotation"``.
        level: ``"error"``: training refuses it or its numbers are wrong; ``"warning"``: it costs
            accuracy, most likely a mistake; ``"note"``: worth knowing.
        title: such as ``"Objects annotated twice"``.
        why: what it does to a training or an evaluation.
        remedy: what to do.
        records: the cases.
    """

    kind: str
    level: Level
    title: str
    why: str
    remedy: str
    records: list[Record] = field(default_factory=list)

    def to_json(self, indices: dict[str, AnnotationIndex]) -> dict[str, Any]:
        """Plain values, with names and ids in place of positions."""
        return {
            "kind": self.kind,
            "level": self.level,
            "title": self.title,
            "why": self.why,
            "remedy": self.remedy,
            "count": len(self.records),
            "records": [_record_json(record, indices) for record in self.records],
        }


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """One finding of each kind, errors first, then warnings and notes; else as they came."""
    merged: dict[str, Finding] = {}
    for finding in findings:
        former = merged.get(finding.kind)
        if former is not None:
            finding = replace(former, records=former.records + finding.records)
        merged[finding.kind] = finding
    return sorted(merged.values(), key=lambda finding: LEVELS.index(finding.level))


def name_image(index: AnnotationIndex, image: int) -> str:
    """``"image 7 (a.jpg)"``; only the file where the format gives images no ids."""
    if index.source_format != "coco":
        return index.file_name(image)
    return f"image {index.image_ids[image]} ({index.file_name(image)})"


def name_object(index: AnnotationIndex, place: int) -> str:
    """``"annotation 12"``; its box where the format gives objects no ids."""
    if index.source_format == "coco":
        return f"annotation {index.annotation_ids[place]}"
    x1, y1, x2, y2 = index.boxes[place]
    return f"the object from ({x1:.0f}, {y1:.0f}) to ({x2:.0f}, {y2:.0f})"


def _record_json(record: Record, indices: dict[str, AnnotationIndex]) -> dict[str, Any]:
    return {
        "where": record.where,
        "what": record.what,
        "remedy": record.remedy,
        "spots": [_spot_json(spot, indices[spot.split]) for spot in record.spots],
    }


def _spot_json(spot: Spot, index: AnnotationIndex) -> dict[str, Any]:
    return {
        "split": spot.split,
        "image_id": int(index.image_ids[spot.image]),
        "file_name": index.file_name(spot.image),
        "annotation_ids": [int(index.annotation_ids[place]) for place in spot.annotations],
        "boxes": [list(map(float, box)) for box in spot.boxes],
    }
