"""Why detections are wrong, and what each reason costs.

Bolya, Foley, Hays, Hoffman: TIDE: A General Toolbox for Identifying Object Detection Errors, 2020,
section 2. With t_f = .5 and t_b = .1, a detection that finds no object has made, in this order, an
error of

    localisation     its IoU with an object of its class is between t_b and t_f;
    classification   its IoU with an object of another class is at least t_f;
    duplicate        the object of its class that it overlaps by more than t_f has been found;
    background       its IoU with every object is at most t_b;
    both             what is left: the wrong class, and not well placed either.

An object that nobody finds, and that no error of localisation or classification would find if it
were mended, is missed. What mending a kind of error gains is the AP50 without these errors, where
all else stays, less the AP50. Detections in crowd regions of their class are no errors here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detector.evaluation.matching import Matches

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
ORACLES = ("false_positive", "false_negative")
FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.1

_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND = range(5)
NO_ERROR = -1


def error_kinds(
    matches: Matches,
    foreground: float = FOREGROUND_IOU,
    background: float = BACKGROUND_IOU,
) -> tuple[np.ndarray, np.ndarray]:
    """The kind of each detection's error, and which objects are missed.

    Returns:
        kinds: ``(n,)`` int64 into :data:`KINDS`, -1 for right and for ignored detections.
        missed: ``(m,)`` bool.
    """
    own, other = matches.own_iou, matches.other_iou
    kinds = np.select(
        [
            (matches.found >= 0) | matches.ignored,
            (own >= background) & (own <= foreground),
            other >= foreground,
            own >= foreground,
            np.maximum(own, other) <= background,
        ],
        [NO_ERROR, _LOCALISATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND],
        _BOTH,
    )
    mended = np.zeros(len(matches.finders), dtype=bool)
    mended[_targets(matches, kinds)[1]] = True
    return kinds, (matches.finders < 0) & ~mended


def interpolated_ap(right: np.ndarray, num_objects: int) -> float:
    """COCO's AP at one IoU threshold: the mean of the highest precisions at 101 recalls.

    Args:
        right: ``(n,)`` bool, the detections of a class, best first.
        num_objects: of the class; of none the AP is 0.
    """
    return float(precision_at_recalls(right, num_objects).mean())


def precision_at_recalls(right: np.ndarray, num_objects: int) -> np.ndarray:
    """The highest precision at recalls of at least 0, .01, ..., 1: ``(101,)``."""
    if not num_objects:
        return np.zeros(101)
    num_right = np.cumsum(right)
    precision = num_right / np.arange(1, len(right) + 1)
    highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return highest[np.searchsorted(num_right / num_objects, np.linspace(0, 1, 101), side="left")]


def gains(
    matches: Matches,
    kinds: np.ndarray,
    missed: np.ndarray,
    ap: Callable[[np.ndarray, int], float] = interpolated_ap,
) -> dict[str, float]:
    """What AP50 gains where all errors of a kind are mended, by :data:`KINDS` and :data:`ORACLES`.

    An error of classification gets the right class and one of localisation the right place, where
    it is the best-scored one for a free object; else it goes, as the other errors do. A missed
    object is no longer asked for. The oracles: every wrong detection goes behind every right one;
    no object that was not found is asked for. A gain is never negative, and 0 of nothing.

    ``ap`` is the AP of a class, see :func:`interpolated_ap`.
    """
    counted = ~matches.ignored
    right = matches.found >= 0
    objects = np.bincount(matches.object_labels)
    labels, scores = matches.labels, matches.scores

    def mean_ap(
        labels: np.ndarray, scores: np.ndarray, right: np.ndarray, objects: np.ndarray
    ) -> float:
        values = []
        for k in np.flatnonzero(np.bincount(matches.object_labels)):
            own = np.flatnonzero(labels == k)
            if objects[k] or len(own):
                own = own[np.argsort(-scores[own], kind="stable")]
                values.append(ap(right[own], int(objects[k])))
        return float(np.mean(values)) if values else 0.0

    base = mean_ap(labels[counted], scores[counted], right[counted], objects)
    found: dict[str, float] = {}
    menders, targets = _targets(matches, kinds)
    for number, kind in enumerate(KINDS[:-1]):
        is_kind = kinds == number
        mended = is_kind[menders]
        now_right, now_labels = right.copy(), labels.copy()
        now_right[menders[mended]] = True
        now_labels[menders[mended]] = matches.object_labels[targets[mended]]
        kept = counted & (~is_kind | now_right)
        found[kind] = mean_ap(now_labels[kept], scores[kept], now_right[kept], objects)
    fewer = objects - np.bincount(matches.object_labels[missed], minlength=len(objects))
    found["missed"] = mean_ap(labels[counted], scores[counted], right[counted], fewer)
    ideal = right.astype(np.float64)
    found["false_positive"] = mean_ap(labels[counted], ideal[counted], right[counted], objects)
    unfound = matches.object_labels[matches.finders < 0]
    fewer = objects - np.bincount(unfound, minlength=len(objects))
    found["false_negative"] = mean_ap(labels[counted], scores[counted], right[counted], fewer)
    return {kind: max(value - base, 0.0) for kind, value in found.items()}


def _targets(matches: Matches, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best-scored errors of class or place for free objects, and these objects."""
    target = np.select(
        [kinds == _LOCALISATION, kinds == _CLASSIFICATION],
        [matches.own_object, matches.other_object],
        -1,
    )
    candidates = np.flatnonzero(target >= 0)
    candidates = candidates[matches.finders[target[candidates]] < 0]
    # Detections of an image stand best first, so the first of each object is the best.
    objects, first = np.unique(target[candidates], return_index=True)
    return candidates[first], objects
