"""Classes that are one under two names, that nobody can learn, or that cannot be measured."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict

import numpy as np

from detector.data.doctor.findings import Finding, Record
from detector.data.index import AnnotationIndex

# Fewer objects than these hardly teach a class.
FEW_OBJECTS = 10


def check_classes(indices: dict[str, AnnotationIndex]) -> list[Finding]:
    """What is odd about the classes of the splits."""
    return [*_variants(indices), *_different(indices), *_without_objects(indices), *_rare(indices)]


def count_objects(index: AnnotationIndex) -> np.ndarray:
    """Objects of each class, crowd regions not counted, ``(K,)`` int64."""
    return np.bincount(index.labels[~index.crowd], minlength=index.num_classes)


def same_spelling(name: str) -> str:
    """What a name has in common with its variants of case, blanks, punctuation and number."""
    plain = re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())
    return plain[:-1] if len(plain) > 3 and plain.endswith("s") else plain


def _variants(indices: dict[str, AnnotationIndex]) -> list[Finding]:
    records = []
    seen: set[tuple[str, ...]] = set()
    for split, index in indices.items():
        groups: dict[str, list[int]] = defaultdict(list)
        for label, name in enumerate(index.category_names):
            groups[same_spelling(name)].append(label)
        counts = count_objects(index)
        for key, labels in groups.items():
            names = [index.category_names[label] for label in labels]
            odd = len(names) > 1 or names[0] != names[0].strip()
            if not odd or not key or tuple(names) in seen:
                continue
            seen.add(tuple(names))
            main = labels[int(np.argmax(counts[labels]))]
            shown = ", ".join(f'"{index.category_names[k]}" ({counts[k]} objects)' for k in labels)
            others = [f'"{index.category_names[label]}"' for label in labels if label != main]
            remedy = f'rename "{names[0]}" to "{names[0].strip()}"'
            if others:
                goal = index.category_names[main].strip()
                remedy = f'make {", ".join(others)} into "{goal}" in {index.source_file}'
            records.append(Record(f"{split}: {index.source_file}", shown, remedy))
    if not records:
        return []
    return [
        Finding(
            "class_name_variants",
            "warning",
            "Classes whose names differ only in case, blanks, punctuation or number",
            "They are learnt as different classes, and each detection of one counts as an error of "
            "the other.",
            "Give them one name and one category id, or rename them so that they tell apart.",
            records,
        )
    ]


def _different(indices: dict[str, AnnotationIndex]) -> list[Finding]:
    if len(indices) < 2:
        return []
    (first, one), (second, other) = indices.items()
    if list(one.category_names) == list(other.category_names):
        return []
    records = []
    for split, index, rest in ((first, one, other), (second, other, one)):
        for name in sorted(set(index.category_names) - set(rest.category_names)):
            records.append(Record(f"{split}: {index.source_file}", f'only here: "{name}"'))
    if not records:
        records.append(Record(f"{one.source_file}, {other.source_file}", "another order"))
    return [
        Finding(
            "classes_differ",
            "error",
            "The splits have different classes",
            "Labels would mean one thing in training and another in validation; training refuses "
            "them.",
            "Give both files the same 'categories', or write them anew with action=convert.",
            records,
        )
    ]


def _without_objects(indices: dict[str, AnnotationIndex]) -> list[Finding]:
    counts = {
        split: dict(zip(index.category_names, count_objects(index).tolist(), strict=True))
        for split, index in indices.items()
    }
    findings = []
    train, val = counts.get("train", {}), counts.get("val", {})
    never = [name for name, count in train.items() if not count]
    if never:
        file = indices["train"].source_file
        findings.append(
            Finding(
                "class_never_learnt",
                "warning",
                "Classes without an object to learn from",
                "The model has an output for them that no example ever trains; where val has some, "
                "they are all missed.",
                "Annotate some, or remove the categories from both splits.",
                [
                    Record(
                        f"train: {file}",
                        f'"{name}": no object' + (f", {val[name]} in val" if val.get(name) else ""),
                    )
                    for name in never
                ],
            )
        )
    unmeasured = [name for name, count in val.items() if not count and train.get(name)]
    if unmeasured:
        findings.append(
            Finding(
                "class_not_measured",
                "note",
                "Classes that validation cannot measure",
                "Without an object their AP is undefined, and the mean goes over the others only.",
                "Move some images of them to val: action=split stratify=true does.",
                [
                    Record(
                        f"val: {indices['val'].source_file}",
                        f'"{name}": no object, {train[name]} in train',
                    )
                    for name in unmeasured
                ],
            )
        )
    return findings


def _rare(indices: dict[str, AnnotationIndex]) -> list[Finding]:
    if "train" not in indices:
        return []
    index = indices["train"]
    counts = count_objects(index)
    records = [
        Record(f"train: {index.source_file}", f'"{index.category_names[k]}": {counts[k]} objects')
        for k in np.argsort(counts, kind="stable")
        if 0 < counts[k] < FEW_OBJECTS
    ]
    if not records:
        return []
    return [
        Finding(
            "rare_class",
            "note",
            f"Classes of fewer than {FEW_OBJECTS} objects",
            "A few examples hardly make a class, and its AP changes much from run to run.",
            "Annotate more, or show their images more often: data.sampler=class_balanced.",
            records,
        )
    ]
