"""Precision, recall and F1 over confidence, and which class is taken for which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.evaluation.errors import precision_at_recalls
from detector.evaluation.matching import Matches

UNDEFINED = -1.0
CONFIDENCES = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class ClassCurve:
    """How a class is found at IoU .5; numbers are -1 where the class has no object.

    Attributes:
        num_objects: to be found, crowd regions not counted.
        num_detections: that are right or wrong.
        AP50: mean of ``precision_at_recall``.
        best_threshold: the score from which detections are kept for the highest F1; -1 where none
            is right.
        best_F1, best_precision, best_recall: there.
        precision_at_recall: 101 numbers, at recalls 0, .01, ..., 1, interpolated as COCO does.
        precision, recall, F1: 101 numbers each, of the detections with scores of at least 0, .01,
            ..., 1. Of no detections the precision is 1.
    """

    num_objects: int
    num_detections: int
    AP50: float
    best_threshold: float
    best_F1: float
    best_precision: float
    best_recall: float
    precision_at_recall: list[float]
    precision: list[float]
    recall: list[float]
    F1: list[float]


def class_curve(scores: np.ndarray, right: np.ndarray, num_objects: int) -> ClassCurve:
    """The curve of detections, ``(n,)`` scores and bools in any order, that look for m objects."""
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    if not num_objects:
        undefined = [UNDEFINED] * 101
        return ClassCurve(0, len(scores), *[UNDEFINED] * 5, *[undefined] * 4)
    num_right = np.concatenate([[0], np.cumsum(right)])
    # From each score downwards: of equal scores all are kept or none.
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)[: len(scores)]
    f1 = 2 * num_right[last + 1] / (last + 1 + num_objects)
    best = int(f1.argmax()) if num_right[-1] else -1
    kept_best = int(last[best]) + 1 if num_right[-1] else 0
    kept = np.searchsorted(-scores, -CONFIDENCES, side="right")
    at_recall = precision_at_recalls(right, num_objects)
    return ClassCurve(
        num_objects=num_objects,
        num_detections=len(scores),
        AP50=float(at_recall.mean()),
        best_threshold=float(scores[kept_best - 1]) if kept_best else UNDEFINED,
        best_F1=float(f1[best]) if kept_best else 0.0,
        best_precision=float(num_right[kept_best] / kept_best) if kept_best else 0.0,
        best_recall=float(num_right[kept_best] / num_objects),
        precision_at_recall=at_recall.tolist(),
        precision=np.where(kept, num_right[kept] / np.maximum(kept, 1), 1.0).tolist(),
        recall=(num_right[kept] / num_objects).tolist(),
        F1=(2 * num_right[kept] / (kept + num_objects)).tolist(),
    )


def all_curves(matches: Matches, num_classes: int) -> tuple[ClassCurve, list[ClassCurve]]:
    """The curve of all classes' detections together, and of each class."""
    counted = ~matches.ignored
    scores, right = matches.scores[counted], matches.found[counted] >= 0
    labels = matches.labels[counted]
    num_objects = np.bincount(matches.object_labels, minlength=num_classes).tolist()
    each = [
        class_curve(scores[labels == k], right[labels == k], num_objects[k])
        for k in range(num_classes)
    ]
    return class_curve(scores, right, sum(num_objects)), each


def confusion_matrix(
    matches: Matches, num_classes: int, score_threshold: float, iou_threshold: float = 0.5
) -> np.ndarray:
    """How often an object of one class is found as one of another.

    Of an image's detections with at least the score, and objects, the pair with the highest IoU is
    joined first, whatever the classes; then the next of what is left, down to the threshold. Of
    equal IoUs the better-scored detection goes first. What lies in a crowd region and is joined to
    no object does not count.

    Returns:
        ``(K + 1, K + 1)`` int64: rows are the objects' classes, columns the detections'; the last
        row counts detections of nothing, the last column objects that are not found.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    num_images = len(matches.ious)
    first_detection = np.searchsorted(matches.images, np.arange(num_images))
    first_object = np.searchsorted(matches.object_images, np.arange(num_images))
    for i, iou in enumerate(matches.ious):
        own = slice(first_detection[i], first_detection[i] + iou.shape[0])
        labels = matches.labels[own]
        gt_labels = matches.object_labels[first_object[i] : first_object[i] + iou.shape[1]]
        num_kept = np.count_nonzero(matches.scores[own] >= score_threshold)  # they stand best first
        detection, object_ = np.nonzero(iou[:num_kept] >= iou_threshold)
        is_free = np.ones(num_kept, dtype=bool), np.ones(len(gt_labels), dtype=bool)
        for pair in np.argsort(-iou[detection, object_], kind="stable"):
            d, g = detection[pair], object_[pair]
            if is_free[0][d] and is_free[1][g]:
                is_free[0][d] = is_free[1][g] = False
                matrix[gt_labels[g], labels[d]] += 1
        alone = is_free[0] & ~matches.in_crowd[own][:num_kept]
        np.add.at(matrix, (num_classes, labels[:num_kept][alone]), 1)
        np.add.at(matrix, (gt_labels[is_free[1]], num_classes), 1)
    return matrix
