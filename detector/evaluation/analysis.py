"""What an evaluation tells beyond its numbers: curves, confusion, errors, and where to look."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.evaluation.curves import ClassCurve, all_curves, confusion_matrix
from detector.evaluation.detection_table import DetectionTable
from detector.evaluation.errors import KINDS, error_kinds, gains, interpolated_ap
from detector.evaluation.matching import Matches, match

IMAGES_LISTED = 12
ERRORS_LISTED = 20


@dataclass(frozen=True)
class ErrorRecord:
    """One error; what there is not (the object of a background error, say) is ``None``.

    Attributes:
        box, label, score: of the detection, ``(x, y, width, height)`` in pixels of the image file;
            of a missed object ``None``.
        iou: with the object.
        object_box, object_label: the object that was meant.
    """

    box: list[float] | None
    label: int | None
    score: float | None
    iou: float | None
    object_box: list[float] | None
    object_label: int | None


@dataclass(frozen=True)
class ImageErrors:
    """The errors of a kind in an image, best-scored first, at most :data:`ERRORS_LISTED`.

    Attributes:
        image_id: the dataset's.
        num_errors: of the kind, listed or not.
        weight: the sum of their scores, 1 for each missed object: by what images are ordered.
        errors: which.
    """

    image_id: int
    num_errors: int
    weight: float
    errors: list[ErrorRecord]


@dataclass(frozen=True)
class ImageScore:
    """An image as a whole: F1 of its detections at :attr:`ErrorAnalysis.score_threshold`."""

    image_id: int
    num_objects: int
    num_detections: int
    F1: float


@dataclass(frozen=True)
class ErrorAnalysis:
    """Boxes' or masks' curves, confusion and errors at IoU .5; plain values but for its parts.

    Attributes:
        kind: ``"box"``, ``"mask"``, or ``"voc"``: boxes by VOC's rules.
        class_names: K names.
        score_threshold: of the confusion matrix and of ``images``.
        gains: by error kind and oracle, what AP50 would gain, see
            :mod:`detector.evaluation.errors`.
        counts: by error kind, how many.
        counts_per_class: K of the same; errors count for the detection's class.
        overall: of all classes' detections together.
        curves: K of them.
        confusion: K + 1 rows (objects) of K + 1 columns (detections), see
            :func:`detector.evaluation.curves.confusion_matrix`.
        worst: by error kind, the images with most of it.
        images: ``"best"``, ``"typical"`` (around the median) and ``"worst"`` ones with objects.
    """

    kind: str
    class_names: list[str]
    score_threshold: float
    gains: dict[str, float]
    counts: dict[str, int]
    counts_per_class: list[dict[str, int]]
    overall: ClassCurve
    curves: list[ClassCurve]
    confusion: list[list[int]]
    worst: dict[str, list[ImageErrors]]
    images: dict[str, list[ImageScore]]

    def to_json(self) -> dict[str, Any]:
        """Dicts, lists, numbers and strings."""
        return dataclasses.asdict(self)


def analyse(
    kind: str,
    truth: dict[str, list[dict[str, Any]]],
    table: DetectionTable,
    score_threshold: float = 0.5,
    ap: Callable[[np.ndarray, int], float] = interpolated_ap,
) -> ErrorAnalysis:
    """Analyses the detections of every image, the 100 best-scored of each (of VOC all).

    Args:
        kind: ``"box"``, ``"mask"`` or ``"voc"``.
        truth: see :func:`detector.evaluation.matching.match`.
        table: the detections, images in the order of ``truth``.
        score_threshold: of the confusion matrix and of the images as a whole.
        ap: of what gains are, see :func:`detector.evaluation.errors.gains`.
    """
    matches = match(kind, truth, table)
    kinds, missed = error_kinds(matches)
    num_classes = len(truth["categories"])
    per_class = {
        name: np.bincount(matches.labels[kinds == number], minlength=num_classes).tolist()
        for number, name in enumerate(KINDS[:-1])
    }
    per_class["missed"] = np.bincount(matches.object_labels[missed], minlength=num_classes).tolist()
    overall, curves = all_curves(matches, num_classes)
    return ErrorAnalysis(
        kind=kind,
        class_names=[category["name"] for category in truth["categories"]],
        score_threshold=score_threshold,
        gains=gains(matches, kinds, missed, ap),
        counts={name: sum(numbers) for name, numbers in per_class.items()},
        counts_per_class=[
            {name: numbers[k] for name, numbers in per_class.items()} for k in range(num_classes)
        ],
        overall=overall,
        curves=curves,
        confusion=confusion_matrix(matches, num_classes, score_threshold).tolist(),
        worst=_worst_images(matches, kinds, missed, truth, table),
        images=_image_scores(matches, table, score_threshold),
    )


def _worst_images(
    matches: Matches,
    kinds: np.ndarray,
    missed: np.ndarray,
    truth: dict[str, list[dict[str, Any]]],
    table: DetectionTable,
) -> dict[str, list[ImageErrors]]:
    num_images = len(table.image_ids)
    worst = {}
    for number, name in enumerate(KINDS):
        if name == "missed":
            which, images = np.flatnonzero(missed), matches.object_images[missed]
            weights = np.ones(len(which))
        else:
            which = np.flatnonzero(kinds == number)
            images, weights = matches.images[which], matches.scores[which]
        total = np.bincount(images, weights, minlength=num_images)
        first = [i for i in np.argsort(-total, kind="stable")[:IMAGES_LISTED] if total[i] > 0]
        worst[name] = []
        for i in first:
            own = which[images == i]
            errors = [
                _describe_missed(matches, place, truth)
                if name == "missed"
                else _describe_error(matches, name, place, truth, table)
                for place in own[:ERRORS_LISTED]
            ]
            worst[name].append(
                ImageErrors(int(table.image_ids[i]), len(own), float(total[i]), errors)
            )
    return worst


def _describe_error(
    matches: Matches,
    name: str,
    place: int,
    truth: dict[str, list[dict[str, Any]]],
    table: DetectionTable,
) -> ErrorRecord:
    of_other = name == "classification" or (
        name in ("both", "background") and matches.other_iou[place] > matches.own_iou[place]
    )
    iou = (matches.other_iou if of_other else matches.own_iou)[place]
    meant = int((matches.other_object if of_other else matches.own_object)[place])
    row = matches.detections[place]
    box, label = _object(matches, meant, truth) if meant >= 0 else (None, None)
    return ErrorRecord(
        table.boxes[row].tolist(),
        int(table.labels[row]),
        float(table.scores[row]),
        float(iou) if meant >= 0 else None,
        box,
        label,
    )


def _describe_missed(
    matches: Matches, place: int, truth: dict[str, list[dict[str, Any]]]
) -> ErrorRecord:
    return ErrorRecord(None, None, None, None, *_object(matches, int(place), truth))


def _object(
    matches: Matches, place: int, truth: dict[str, list[dict[str, Any]]]
) -> tuple[list[float], int]:
    annotation = truth["annotations"][matches.object_places[place]]
    return [float(value) for value in annotation["bbox"]], int(matches.object_labels[place])


def _image_scores(
    matches: Matches, table: DetectionTable, score_threshold: float
) -> dict[str, list[ImageScore]]:
    num_images = len(table.image_ids)
    kept = ~matches.ignored & (matches.scores >= score_threshold)
    num_kept = np.bincount(matches.images[kept], minlength=num_images)
    num_right = np.bincount(matches.images[kept & (matches.found >= 0)], minlength=num_images)
    num_objects = np.bincount(matches.object_images, minlength=num_images)
    f1 = 2 * num_right / np.maximum(num_kept + num_objects, 1)
    shown = np.flatnonzero(num_objects)
    # Of equal ones the image with more objects says more, whether good or bad.
    best_first = shown[np.lexsort((-num_objects[shown], -f1[shown]))]
    worst_first = shown[np.lexsort((-num_objects[shown], f1[shown]))]
    middle = max(0, (len(shown) - IMAGES_LISTED) // 2)
    chosen = {
        "best": best_first[:IMAGES_LISTED],
        "typical": best_first[middle : middle + IMAGES_LISTED],
        "worst": worst_first[:IMAGES_LISTED],
    }
    return {
        name: [
            ImageScore(int(table.image_ids[i]), int(num_objects[i]), int(num_kept[i]), float(f1[i]))
            for i in images
        ]
        for name, images in chosen.items()
    }
