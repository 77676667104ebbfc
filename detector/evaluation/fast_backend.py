"""``faster_coco_eval`` with the IoUs taken from the flat table of detections.

Its C++ decides and counts; given every mask as a Python object it would spend most of its time on
reading them. Only those are read here that meet an object of their class in their image.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import faster_coco_eval
import numpy as np
from pycocotools import mask as coco_mask

from detector.evaluation.detection_table import DetectionTable
from detector.evaluation.matching import to_rle

# It says what it does at each call, as information.
logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)

IOU_TYPES = {"box": "bbox", "mask": "segm", "boundary": "boundary", "keypoint": "keypoints"}


class _WithOverlaps(faster_coco_eval.COCOeval_faster):
    """Asks for the IoUs of an image and a class instead of finding them."""

    def __init__(self, *sides: Any, overlaps: Overlaps) -> None:
        super().__init__(*sides, iouType="bbox")
        self._overlaps = overlaps

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray:
        return self._overlaps(imgId, catId, self.params.maxDets[-1])


class Overlaps:
    """IoUs of boxes or masks, image by image and class by class, as pycocotools has them.

    Args:
        kind: ``"box"`` or ``"mask"``.
        truth: ``images`` and ``annotations``; masks are polygons or run lengths.
        table: the detections.
        which: ``(n,)`` ints, those that are looked at.
    """

    def __init__(
        self, kind: str, truth: dict[str, list[dict]], table: DetectionTable, which: np.ndarray
    ) -> None:
        self._kind, self._table = kind, table
        self._sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
        self._objects = defaultdict(list)
        for annotation in truth["annotations"]:
            self._objects[annotation["image_id"], annotation["category_id"]].append(annotation)
        # By image and class, best first; of equal scores the first stays the first.
        images = np.searchsorted(table.offsets, which, side="right") - 1
        groups = images * len(table.category_ids) + table.labels[which]
        order = np.lexsort((-table.scores[which], groups))
        self._best_first = which[order]
        found, starts = np.unique(groups[order], return_index=True)
        ends = np.append(starts[1:], len(order))[: len(starts)]
        image_ids = table.image_ids[found // len(table.category_ids)].tolist()
        category_ids = table.category_ids[found % len(table.category_ids)].tolist()
        self._ranges = dict(
            zip(
                zip(image_ids, category_ids, strict=True),
                zip(starts.tolist(), ends.tolist(), strict=True),
                strict=True,
            )
        )

    def __call__(self, image_id: int, category_id: int, limit: int) -> np.ndarray:
        """``(d, g)`` of the ``limit`` best detections and the objects in their order.

        Empty where there are none of either.
        """
        objects = self._objects[image_id, category_id]
        start, end = self._ranges.get((image_id, category_id), (0, 0))
        if start == end or not objects:
            return np.zeros((0, 0))
        which = self._best_first[start : min(end, start + limit)]
        crowd = [int(annotation["iscrowd"]) for annotation in objects]
        if self._kind == "box":
            boxes = np.array([annotation["bbox"] for annotation in objects], dtype=np.float64)
            return coco_mask.iou(self._table.boxes[which], boxes, crowd)
        size = self._sizes[image_id]
        rles = [to_rle(annotation["segmentation"], *size) for annotation in objects]
        return coco_mask.iou(self._table.rles(which), rles, crowd)


def evaluate(
    kind: str,
    truth: dict[str, Any],
    records: list[dict[str, Any]],
    max_detections: Sequence[int],
    sigmas: np.ndarray,
    overlaps: Overlaps | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall, see :func:`detector.evaluation.backends.accumulate`.

    Args:
        kind: what is compared.
        truth: of some classes.
        records: their detections; with ``overlaps`` they need not hold what is compared.
        max_detections: ascending limits.
        sigmas: of keypoints.
        overlaps: of boxes or masks; ``None``: ``faster_coco_eval`` finds them.
    """
    sides = [faster_coco_eval.COCO(), faster_coco_eval.COCO()]
    for coco, dataset in zip(sides, (truth, truth | {"annotations": records}), strict=True):
        coco.dataset = dataset
        coco.createIndex()
    if overlaps is None:
        evaluation = faster_coco_eval.COCOeval_faster(*sides, iouType=IOU_TYPES[kind])
    else:
        evaluation = _WithOverlaps(*sides, overlaps=overlaps)
    evaluation.params.maxDets = list(max_detections)
    evaluation.params.catIds = [category["id"] for category in truth["categories"]]
    if kind == "keypoint":
        evaluation.params.kpt_oks_sigmas = sigmas
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])
