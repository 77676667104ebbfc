"""The two evaluators of COCO's protocol: ``faster_coco_eval`` (C++) and ``pycocotools``.

Their numbers are equal; the tests compare them. Either is given some classes at a time, since no
class knows of another in this protocol: what exists as Python objects at any time is bounded, and
of LVIS's 1203 classes no table over all images and classes is made.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.evaluation.detection_table import DetectionTable
from detector.evaluation.keypoints import keypoint_areas

BACKENDS = ("faster_coco_eval", "pycocotools")
# Classes are evaluated together up to this many detections.
DETECTIONS_AT_ONCE = 50_000

_IOU_TYPES = {"box": "bbox", "mask": "segm", "boundary": "boundary", "keypoint": "keypoints"}


def check_backend(backend: str) -> None:
    """Raises a ValueError for a name that is none, or a package that is not installed."""
    if backend not in BACKENDS:
        raise ValueError(f"evaluation.backend={backend}; it must be {' or '.join(BACKENDS)}")
    if backend == "faster_coco_eval":
        try:
            importlib.import_module("faster_coco_eval")
        except ImportError as error:
            raise ValueError(
                f"evaluation.backend=faster_coco_eval cannot be imported ({error}); pip install "
                "faster-coco-eval, or set evaluation.backend=pycocotools: the same numbers, slower"
            ) from error


def accumulate(
    backend: str,
    kind: str,
    truth: dict[str, list[dict[str, Any]]],
    table: DetectionTable,
    max_detections: Sequence[int],
    sigmas: Sequence[float] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of every class as ``COCOeval.accumulate`` defines them.

    Args:
        backend: of :data:`BACKENDS`.
        kind: ``"box"``, ``"mask"``, ``"boundary"`` (masks, by the smaller of the IoUs of masks and
            of their boundaries; ``faster_coco_eval`` only) or ``"keypoint"``.
        truth: ``images``, ``categories`` in the order of the labels, and ``annotations``.
        table: the detections.
        max_detections: M ascending limits per image and class.
        sigmas: of the keypoints.

    Returns:
        precision: ``(T, R, K, A, M)``: IoU thresholds .50:.05:.95, recalls 0:.01:1, classes, areas
            (all, small, medium, large; of keypoints all, medium, large), limits; -1 without truth.
        recall: ``(T, K, A, M)``.
    """
    evaluate = _faster_coco_eval if backend == "faster_coco_eval" else _pycocotools
    of_category = defaultdict(list)
    for annotation in truth["annotations"]:
        of_category[annotation["category_id"]].append(annotation)
    by_class = np.argsort(table.labels, kind="stable")
    ends = np.cumsum(np.bincount(table.labels, minlength=len(table.category_ids)))
    parts = []
    for start, stop in _class_chunks(np.diff(ends, prepend=0)):
        categories = truth["categories"][start:stop]
        own_truth = [gt for category in categories for gt in of_category[category["id"]]]
        # In the order of the images: of equal scores the first counts as the better.
        which = np.sort(by_class[ends[start - 1] if start else 0 : ends[stop - 1]])
        own = {**truth, "categories": categories, "annotations": own_truth}
        with _without_collecting():
            parts.append(evaluate(kind, own, table, which, list(max_detections), np.array(sigmas)))
    precision, recall = zip(*parts, strict=True)
    return np.concatenate(precision, axis=2), np.concatenate(recall, axis=1)


def as_coco(
    images: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
) -> COCO:
    """A pycocotools object from records in memory, made without its messages on stdout."""
    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    with quiet():
        coco.createIndex()
    return coco


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _pycocotools(
    kind: str,
    truth: dict[str, Any],
    table: DetectionTable,
    which: np.ndarray,
    max_detections: list[int],
    sigmas: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    found = truth | {"annotations": _records(kind, table, which)}
    with quiet():
        evaluation = COCOeval(as_coco(**truth), as_coco(**found), _IOU_TYPES[kind])
        evaluation.params.maxDets = max_detections
        evaluation.params.catIds = [category["id"] for category in truth["categories"]]
        if kind == "keypoint":
            evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _faster_coco_eval(
    kind: str,
    truth: dict[str, Any],
    table: DetectionTable,
    which: np.ndarray,
    max_detections: list[int],
    sigmas: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    from detector.evaluation import fast_backend  # the other backend does without its package

    overlaps = None
    if kind in ("box", "mask"):
        overlaps = fast_backend.Overlaps(kind, truth, table, which)
    records = _records(kind, table, which, compared=overlaps is None)
    return fast_backend.evaluate(kind, truth, records, max_detections, sigmas, overlaps)


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """No search for cycles while a hundred thousand dicts are made, which takes as long again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _class_chunks(num_detections: np.ndarray) -> Iterator[tuple[int, int]]:
    """Neighbouring classes, at least one, up to :data:`DETECTIONS_AT_ONCE` where they fit."""
    start = total = 0
    for label, count in enumerate(num_detections.tolist()):
        if label > start and total + count > DETECTIONS_AT_ONCE:
            yield start, label
            start, total = label, 0
        total += count
    yield start, len(num_detections)


def _records(
    kind: str, table: DetectionTable, which: np.ndarray, compared: bool = True
) -> list[dict[str, Any]]:
    """Detections as the evaluators compare them, numbered from 1.

    The area, which decides about small, medium and large, is that of what is compared: of the box
    in box evaluation, of the mask in mask evaluation, of the extent of the keypoints in theirs.
    Without ``compared``, that itself is left out.
    """
    if len(which) == 0:  # then there need be neither masks nor keypoints
        return []
    if kind == "keypoint":
        key, values = "keypoints", table.keypoints[which].tolist()
        areas = keypoint_areas(table.keypoints[which])
    elif kind == "box":
        key, values = "bbox", table.boxes[which].tolist() if compared else None
        areas = table.boxes[which, 2] * table.boxes[which, 3]
    else:
        key, values = "segmentation", table.rles(which)
        areas = mask_areas(values)
    images = np.searchsorted(table.offsets, which, side="right") - 1
    columns = zip(
        table.image_ids[images].tolist(),
        table.category_ids[table.labels[which]].tolist(),
        table.scores[which].tolist(),
        areas.tolist(),
        strict=True,
    )
    records = [
        {"id": number, "image_id": image_id, "category_id": category_id, "score": score,
         "area": area, "iscrowd": 0}
        for number, (image_id, category_id, score, area) in enumerate(columns, start=1)
    ]  # fmt: skip
    if compared:
        for record, value in zip(records, values, strict=True):
            record[key] = value
    return records


def mask_areas(rles: list[dict[str, Any]]) -> np.ndarray:
    """Pixels of each mask, ``(n,)`` float64."""
    if not rles:
        return np.zeros(0)
    # pycocotools 2.0.11 puts the length of the list into a byte.
    parts = [coco_mask.area(rles[start : start + 255]) for start in range(0, len(rles), 255)]
    return np.concatenate(parts).astype(np.float64)
