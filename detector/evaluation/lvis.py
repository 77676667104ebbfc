"""Average precision of a federated dataset, as LVIS defines it.

Gupta, Dollar, Girshick: LVIS, A Dataset for Large Vocabulary Instance Segmentation, 2019, section
2.2. It is COCO's, with three differences: of an image the 300 best detections count, over all
classes; detections of a class that was not looked for in the image, neither found nor known to be
absent, do not count; and where a class is not annotated to its last object, detections that find
none are not wrong. The last is what a crowd region of the whole image says in COCO's rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from detector.evaluation.backends import mask_areas
from detector.evaluation.coco import CocoEvaluator, mean_defined, twelve_numbers
from detector.evaluation.detection_table import DetectionTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detector.data.index import AnnotationIndex

MAX_DETECTIONS = 300


class LVISEvaluator(CocoEvaluator):
    """Collects detections batch by batch and compares them with an LVIS file.

    Each kind's numbers are AP, AP50, AP75, APs, APm, APl, of classes rare, common and frequent in
    the training set APr, APc, APf, then AR300, ARs, ARm, ARl. Boundary AP needs no crowd regions
    and is not evaluated here.

    Args:
        index: of an LVIS file; every image of it has to be seen before :meth:`summarize`.
        iou_types: of ``"box"`` and ``"mask"``.
        backend, error_threshold: see :class:`CocoEvaluator`. Errors are analysed of the detections
            that count.

    Raises:
        ValueError: the dataset does not say which classes were looked for; or types or a backend
            that are none.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        iou_types: Sequence[str] = ("box", "mask"),
        backend: str = "faster_coco_eval",
        error_threshold: float | None = None,
    ) -> None:
        if index.federated is None:
            raise ValueError(
                f"{index.source_file} does not say which classes were looked for in which image "
                "(neg_category_ids), as LVIS files do; leave evaluation.metric out"
            )
        if not set(iou_types) <= {"box", "mask"}:
            raise ValueError(f"LVIS evaluates boxes and masks, not {tuple(iou_types)}")
        # The limits of COCO's numbers, of which the last alone is used.
        limits = (1, 10, MAX_DETECTIONS)
        super().__init__(index, iou_types, limits, backend, error_threshold)

    def truth(self) -> dict[str, list[dict[str, Any]]]:
        """The file's, with a crowd region for each class not annotated to its last object."""
        if self._ground_truth is None:
            truth = super().truth()
            truth["annotations"] = truth["annotations"] + self._whole_images(truth)
        return self._ground_truth

    def _counted(self, kind: str, table: DetectionTable) -> DetectionTable:
        table = table.select(best_of_images(table) & self._looked_for(table))
        # The authors' evaluation leaves empty ones out, as COCO's does not.
        if kind == "mask":
            return table.select(mask_areas(table.rles(np.arange(len(table)))) > 0)
        return table.select(table.boxes[:, 2:].prod(1) > 0)

    def _numbers(self, kind: str, precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
        numbers = twelve_numbers(precision, recall, self._max_detections)
        found = {key: value for key, value in numbers.items() if not key.startswith("AR")}
        frequencies = np.array(self._index.federated.frequencies or [""] * precision.shape[2])
        for letter in "rcf":
            found[f"AP{letter}"] = mean_defined(precision[:, :, frequencies == letter, 0, -1])
        kept = (f"AR{MAX_DETECTIONS}", "ARs", "ARm", "ARl")
        return found | {key: numbers[key] for key in kept}

    def _looked_for(self, table: DetectionTable) -> np.ndarray:
        index, federated = self._index, self._index.federated
        present = _pairs(index.annotation_offsets, index.labels, index.num_classes)
        absent = _pairs(federated.negative_offsets, federated.negative_labels, index.num_classes)
        asked = _pairs(table.offsets, table.labels, index.num_classes)
        return np.isin(asked, np.concatenate([present, absent]))

    def _whole_images(self, truth: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        regions = []
        for i, image in enumerate(truth["images"]):
            height, width = image["height"], image["width"]
            for label in self._index.federated.not_exhaustive(i).tolist():
                regions.append(
                    {
                        "id": len(truth["annotations"]) + len(regions) + 1,
                        "image_id": image["id"],
                        "category_id": truth["categories"][label]["id"],
                        "iscrowd": 1,
                        "bbox": [0, 0, width, height],
                        "area": width * height,
                        "segmentation": [[0, 0, width, 0, width, height, 0, height]],
                    }
                )
        return regions


def best_of_images(table: DetectionTable, limit: int = MAX_DETECTIONS) -> np.ndarray:
    """``(n,)`` bool, the ``limit`` best-scored detections of each image, of equal ones the first.

    Args:
        table: n detections.
        limit: of an image.
    """
    images = table.images()
    best_first = np.lexsort((-table.scores, images))  # stable, as the ranks of equal scores must be
    rank = np.empty(len(table), dtype=np.int64)
    rank[best_first] = np.arange(len(table)) - table.offsets[images]
    return rank < limit


def _pairs(offsets: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """A number for each pair of image and class."""
    images = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return images * num_classes + labels
