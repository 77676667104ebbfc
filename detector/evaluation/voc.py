"""Average precision as PASCAL VOC defines it, by the rules of its development kit.

Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, 2010, section 4.2, and the
function VOCevaldet of the devkits of 2007 and 2010. What differs from COCO: a detection is compared
with the one object that it overlaps most, even if that is taken already; all detections count,
whatever their number; precision is read at 11 recalls (2007) or at every one (since 2010).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from detector.data.rings import ranges
from detector.evaluation.analysis import analyse
from detector.evaluation.coco import UNDEFINED, Evaluation
from detector.evaluation.collector import DetectionCollector
from detector.evaluation.voc_boxes import inclusive_iou, to_inclusive
from detector.structures import Batch, Detections

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex

IOU_THRESHOLDS = np.arange(50, 100, 5) / 100
NUMBERS = ("AP50", "AP50_11point", "AP75", "AP")


class VOCEvaluator(DetectionCollector):
    """Collects detections batch by batch and compares their boxes with the annotation index.

    Its methods are those of :class:`detector.evaluation.coco.CocoEvaluator`. The metrics are
    ``{"voc": {"AP50", "AP50_11point", "AP75", "AP"}, "per_class": {name: {"voc_AP50", ...}}}``:
    AP50 is the area under the precision-recall curve at IoU .50 (VOC since 2010), AP50_11point the
    mean precision at 11 recalls (VOC 2007), AP the mean area at IoU .50:.05:.95; -1 where a class
    has no object to find. Difficult objects and crowd regions are neither to be found nor wrong.

    With errors analysed, "voc_errors" has what AP50 would gain by kind, and each class
    "voc_threshold", the score of its best F1, and "voc_F1".

    Args:
        index: the dataset; every image of it has to be seen before :meth:`summarize`.
        error_threshold: the score from which detections count in the confusion matrix of an
            analysis of errors; ``None`` for no analysis.
    """

    def __init__(self, index: AnnotationIndex, error_threshold: float | None = None) -> None:
        super().__init__(index)
        self._error_threshold = error_threshold
        self._notes: list[str] = []

    def update(self, batch: Batch, detections: Detections) -> None:
        """Take in the boxes of a batch; an image that was seen before is passed over."""
        for kind, found in (("Masks", detections.masks), ("Keypoints", detections.keypoints)):
            note = f"{kind} are not evaluated: VOC's numbers here are those of boxes."
            if found is not None and note not in self._notes:
                self._notes.append(note)
        super().update(batch, dataclasses.replace(detections, masks=None, keypoints=None))

    def summarize(self) -> Evaluation:
        """The numbers over all classes and of each; the results tell the image files too.

        Raises:
            ValueError: when images of the dataset were not seen, naming them.
        """
        index = self._index
        names = [index.file_name(i) for i in range(len(index))]
        table = dataclasses.replace(self.table(), file_names=names)
        corners = table.boxes.copy()
        corners[:, 2:] += corners[:, :2]
        area, eleven_point = average_precision(
            to_inclusive(corners),
            table.scores,
            table.labels.astype(np.int64),
            table.images(),
            to_inclusive(index.boxes),
            np.asarray(index.labels, dtype=np.int64),
            np.repeat(np.arange(len(index)), np.diff(index.annotation_offsets)),
            np.asarray(index.crowd),
            index.num_classes,
        )
        per_class = {
            name: {f"voc_{key}": value for key, value in _numbers(area[k], eleven_point[k]).items()}
            for k, name in enumerate(index.category_names)
        }
        defined = area[:, 0] >= 0
        if defined.any():
            total = _numbers(area[defined].mean(0), eleven_point[defined].mean(0))
        else:
            total = dict.fromkeys(NUMBERS, UNDEFINED)
        metrics, errors = {"voc": total, "per_class": per_class}, {}
        if self._error_threshold is not None:
            analysis = analyse("voc", self._truth(), table, self._error_threshold, area_ap)
            errors, metrics["voc_errors"] = {"voc": analysis}, analysis.gains
            for numbers, curve in zip(per_class.values(), analysis.curves, strict=True):
                numbers["voc_threshold"] = curve.best_threshold
                numbers["voc_F1"] = curve.best_F1
        return Evaluation(metrics, table, list(self._notes), errors)

    def _truth(self) -> dict[str, list[dict[str, Any]]]:
        """The index as an analysis of errors reads it; what is difficult is marked as a crowd."""
        index = self._index
        low, high = np.split(np.asarray(index.boxes, dtype=np.float64), 2, axis=1)
        image_ids = np.asarray(index.image_ids)
        columns = zip(
            np.repeat(image_ids, np.diff(index.annotation_offsets)).tolist(),
            np.asarray(index.category_ids)[index.labels].tolist(),
            np.concatenate([low, high - low], axis=1).tolist(),
            np.asarray(index.crowd).astype(int).tolist(),
            strict=True,
        )
        names = ("image_id", "category_id", "bbox", "iscrowd")
        categories = zip(index.category_ids, index.category_names, strict=True)
        return {
            "images": [{"id": image_id} for image_id in image_ids.tolist()],
            "annotations": [dict(zip(names, column, strict=True)) for column in columns],
            "categories": [{"id": int(i), "name": name} for i, name in categories],
        }


def average_precision(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    images: np.ndarray,
    gt_boxes: np.ndarray,
    gt_labels: np.ndarray,
    gt_images: np.ndarray,
    difficult: np.ndarray,
    num_classes: int,
    thresholds: np.ndarray = IOU_THRESHOLDS,
) -> tuple[np.ndarray, np.ndarray]:
    """AP of K classes at T thresholds, by area and at 11 points, of n detections and m objects.

    Args:
        boxes: ``(n, 4)`` in VOC's inclusive pixels, see :func:`to_inclusive`.
        scores: ``(n,)``; of equal ones, the earlier counts as the better.
        labels: ``(n,)`` int64 in ``0..K-1``.
        images: ``(n,)`` int64, any numbering of the images.
        gt_boxes, gt_labels, gt_images: ``(m, 4)``, ``(m,)``, ``(m,)`` likewise.
        difficult: ``(m,)`` bool, the objects that do not count.
        num_classes: K.
        thresholds: ``(T,)``, the least IoU of a right detection, above 0.

    Returns:
        Two arrays ``(K, T)``, -1 for a class without objects that count.
    """
    overlaps, objects = best_objects(
        boxes, images * num_classes + labels, gt_boxes, gt_images * num_classes + gt_labels
    )
    area = np.full((num_classes, len(thresholds)), UNDEFINED)
    eleven_point = area.copy()
    best_first = np.argsort(-scores, kind="stable")
    for k in range(num_classes):
        num_objects = np.count_nonzero((gt_labels == k) & ~difficult)
        if not num_objects:
            continue
        of_class = best_first[labels[best_first] == k]
        for t, threshold in enumerate(thresholds):
            right, wrong = _judge(overlaps[of_class], objects[of_class], difficult, threshold)
            num_right, num_wrong = np.cumsum(right), np.cumsum(wrong)
            recall = num_right / num_objects
            precision = num_right / np.maximum(num_right + num_wrong, 1)
            area[k, t] = area_under_curve(recall, precision)
            eleven_point[k, t] = mean_at_eleven_recalls(recall, precision)
    return area, eleven_point


def area_ap(right: np.ndarray, num_objects: int) -> float:
    """AP by area of a class's detections, best first, ``(n,)`` bool; 0 without objects."""
    if not num_objects:
        return 0.0
    num_right = np.cumsum(right)
    return area_under_curve(num_right / num_objects, num_right / np.arange(1, len(right) + 1))


def best_objects(
    boxes: np.ndarray, groups: np.ndarray, gt_boxes: np.ndarray, gt_groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The object of its own group (image and class) that each detection overlaps most.

    Args:
        boxes: ``(n, 4)`` inclusive pixels.
        groups: ``(n,)`` int64.
        gt_boxes, gt_groups: ``(m, 4)``, ``(m,)`` likewise.

    Returns:
        overlaps: ``(n,)`` IoU, 0 where nothing is overlapped.
        objects: ``(n,)`` int64, the first of the best, -1 where the group has no object.
    """
    overlaps, objects = np.zeros(len(boxes)), np.full(len(boxes), -1)
    by_group = np.argsort(gt_groups, kind="stable")
    start = np.searchsorted(gt_groups[by_group], groups, "left")
    count = np.searchsorted(gt_groups[by_group], groups, "right") - start
    compared = np.flatnonzero(count)
    if len(compared) == 0:
        return overlaps, objects
    pair_box = np.repeat(np.arange(len(boxes)), count)
    pair_object = by_group[ranges(start, count)]
    iou = inclusive_iou(boxes[pair_box], gt_boxes[pair_object])
    first_pair = (np.cumsum(count) - count)[compared]
    overlaps[compared] = np.maximum.reduceat(iou, first_pair)
    best_pairs = np.flatnonzero(iou == overlaps[pair_box])
    _, first = np.unique(pair_box[best_pairs], return_index=True)
    objects[compared] = pair_object[best_pairs[first]]
    return overlaps, objects


def area_under_curve(recall: np.ndarray, precision: np.ndarray) -> float:
    """The area under the precision-recall curve, made monotone from the right (VOC since 2010).

    Args:
        recall: ``(n,)`` after each detection, ascending.
        precision: ``(n,)``.
    """
    highest_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * highest_from_here).sum())


def mean_at_eleven_recalls(recall: np.ndarray, precision: np.ndarray) -> float:
    """The mean of the highest precisions at recalls of at least 0, .1, ..., 1 (VOC 2007).

    Args:
        recall: ``(n,)`` after each detection, ascending.
        precision: ``(n,)``.
    """
    highest_from_here = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(highest_from_here[np.searchsorted(recall, np.arange(11) / 10)].mean())


def _judge(
    overlaps: np.ndarray, objects: np.ndarray, difficult: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of a class, best first, are right and which wrong; two ``(n,)`` bool."""
    hits = np.flatnonzero(overlaps >= threshold)
    wrong = np.ones(len(overlaps), dtype=bool)
    wrong[hits[difficult[objects[hits]]]] = False
    hits = hits[~difficult[objects[hits]]]
    _, first = np.unique(objects[hits], return_index=True)
    right = np.zeros(len(overlaps), dtype=bool)
    right[hits[first]] = True  # later ones of the same object are duplicates
    return right, wrong & ~right


def _numbers(area: np.ndarray, eleven_point: np.ndarray) -> dict[str, float]:
    """The numbers from the APs ``(T,)`` at :data:`IOU_THRESHOLDS`."""
    values = (area[0], eleven_point[0], area[5], area.mean())
    return dict(zip(NUMBERS, map(float, values), strict=True))
