"""The records that readers cannot use, as a finding, with where they are to be seen."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from detector.data.doctor.findings import Finding, Record, Spot
from detector.data.index import AnnotationIndex
from detector.data.problems import Problem

_ID = re.compile(r"\bimage (-?\d+)\b")
_PATH = re.compile(r"[^\s(),\"]+\.\w+")


def check_damage(split: str, index: AnnotationIndex) -> list[Finding]:
    """The damaged records of a split, which are not in its index."""
    if not index.skipped:
        return []
    by_id = {int(identifier): image for image, identifier in enumerate(index.image_ids)}
    by_stem = {PurePosixPath(index.file_name(i)).stem: i for i in range(len(index))}
    records = []
    for problem in index.skipped:
        image = _image_of(problem, by_id, by_stem)
        spots = ()
        if image is not None:
            spots = (Spot(split, image, (), () if problem.box is None else (tuple(problem.box),)),)
        records.append(Record(f"{split}: {problem.record}", problem.what, problem.remedy, spots))
    return [
        Finding(
            "damaged_record",
            "error",
            "Damaged records",
            "Training refuses them, or with data.on_error=skip leaves them out; objects that are "
            "left out count as background.",
            "Repair each as said; data.on_error=skip trains without them.",
            records,
        )
    ]


def _image_of(problem: Problem, by_id: dict[int, int], by_stem: dict[str, int]) -> int | None:
    """The position of the image that a problem's title names by id or by file."""
    found = _ID.search(problem.record)
    if found and int(found[1]) in by_id:
        return by_id[int(found[1])]
    for word in _PATH.findall(problem.record):
        stem = PurePosixPath(word).stem
        if stem in by_stem:
            return by_stem[stem]
    return None
