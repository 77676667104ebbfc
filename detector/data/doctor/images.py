"""Images that a dataset holds more than once, above all in training and validation."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from pathlib import PurePosixPath

import numpy as np

from detector.data.doctor.findings import Finding, Record, Spot, name_image
from detector.data.doctor.fingerprints import (
    NAMESAKE_BITS,
    NAMESAKE_CORRELATION,
    Fingerprints,
    look_alike,
    near_pairs,
)
from detector.data.index import AnnotationIndex

SAME_FILE, SAME_BYTES = "the same file", "the same content"
NAMESAKES, NEAR = "the same name and nearly the same picture", "nearly the same picture"


def check_repeated_images(
    indices: dict[str, AnnotationIndex], prints: dict[str, Fingerprints]
) -> list[Finding]:
    """Leakage between the splits, and images that are twice in one of them."""
    places = [(split, image) for split, index in indices.items() for image in range(len(index))]
    whole = _joined([prints[split] for split in indices])
    names = [_name_of(indices[split], image) for split, image in places]
    paths = [str(indices[split].path(image).resolve()) for split, image in places]
    pairs = _equal_pairs(whole, paths)
    pairs |= dict.fromkeys(near_pairs(whole), NEAR)
    for pair in _namesakes(names, places):
        if pair not in pairs and look_alike(whole, *pair, NAMESAKE_BITS, NAMESAKE_CORRELATION):
            pairs[pair] = NAMESAKES
    leaks, copies, near = [], [], []
    for (one, other), reason in sorted(pairs.items()):
        record = _record(indices, places[one], places[other], reason)
        if places[one][0] != places[other][0]:
            leaks.append(record)
        elif reason in (SAME_FILE, SAME_BYTES):
            copies.append(record)
        else:
            near.append(record)
    findings = [
        Finding(
            "leakage",
            "error",
            "Images of val that are in train too",
            "The model is tested on what it was shown: the numbers of validation are too good, and "
            "the best checkpoint is chosen by memory.",
            "Take them out of one split. For frames of one video or tiles of one slide, divide "
            "anew by groups: action=split group='REGULAR EXPRESSION OF THE COMMON PART'.",
            leaks,
        ),
        Finding(
            "duplicate_image",
            "warning",
            "Images that are there twice",
            "They count twice in every epoch and in validation; where their annotations differ, "
            "one contradicts the other.",
            "Keep one of each, with the better annotations.",
            copies,
        ),
        Finding(
            "near_duplicate_image",
            "note",
            "Images that look nearly the same",
            "Copies in another size or quality, or neighbouring frames: they teach little more "
            "than one of them, and divided by chance they leak.",
            "Keep them in one split (action=split group=...), or keep one of each.",
            near,
        ),
    ]
    return [finding for finding in findings if finding.records]


def _joined(prints: list[Fingerprints]) -> Fingerprints:
    return Fingerprints(
        [digest for each in prints for digest in each.digests],
        np.concatenate([each.hashes for each in prints]),
        np.concatenate([each.thumbnails for each in prints]),
        np.concatenate([each.is_flat for each in prints]),
    )


def _name_of(index: AnnotationIndex, image: int) -> str:
    return PurePosixPath(index.file_name(image)).name.casefold()


def _equal_pairs(prints: Fingerprints, paths: list[str]) -> dict[tuple[int, int], str]:
    """Pairs of one file or of one content: of many copies, each with the first."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    for image, digest in enumerate(prints.digests):
        if digest:
            groups[digest].append(image)
    return {
        (images[0], other): SAME_FILE if paths[images[0]] == paths[other] else SAME_BYTES
        for images in groups.values()
        for other in images[1:]
    }


def _namesakes(names: list[str], places: list[tuple[str, int]]) -> list[tuple[int, int]]:
    """Pairs of different splits whose files are called alike."""
    groups: dict[str, list[int]] = defaultdict(list)
    for image, name in enumerate(names):
        groups[name].append(image)
    return [
        (one, other)
        for images in groups.values()
        if len(images) <= 10
        for one, other in combinations(images, 2)
        if places[one][0] != places[other][0]
    ]


def _record(
    indices: dict[str, AnnotationIndex],
    one: tuple[str, int],
    other: tuple[str, int],
    reason: str,
) -> Record:
    called = [f"{split}: {name_image(indices[split], image)}" for split, image in (one, other)]
    split, image = other
    remedy = f"remove {name_image(indices[split], image)} from {split}"
    if reason == NEAR and one[0] == other[0]:
        remedy = None
    return Record(called[0], f"{reason} as {called[1]}", remedy, (Spot(*one), Spot(*other)))
