"""Average precision and recall as COCO defines them, by one of two backends.

Lin et al., Microsoft COCO: Common Objects in Context, and https://cocodataset.org/#detection-eval:
AP is the mean precision over 101 recalls, ten IoU thresholds from .50 to .95 and the classes; AR
the recall at a given number of detections per image, averaged likewise. A number without ground
truth behind it is -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from detector.evaluation.backends import accumulate, check_backend
from detector.evaluation.collector import DetectionCollector
from detector.evaluation.detection_table import DetectionTable
from detector.evaluation.ground_truth import load_ground_truth
from detector.evaluation.keypoints import MAX_DETECTIONS, oks_sigmas, ten_numbers
from detector.structures import Batch, Detections

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex

IOU_TYPES = ("box", "mask", "keypoint")
UNDEFINED = -1.0


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: ``{"box": {"AP": ..., ...}, "mask": {...}, "per_class": {name: {"box_AP": ...,
            "mask_AP": ...}}}``, plain floats in 0..1, -1 where undefined. The twelve numbers are
            AP, AP50, AP75, APs, APm, APl, three ARs named by their number of detections (AR1, AR10,
            AR100 by default), ARs, ARm, ARl. "keypoint", where evaluated, has the ten of
            :mod:`detector.evaluation.keypoints`.
        results: the detections; as a sequence, records in COCO results format.
        notes: statements on what was left out, and why.
    """

    metrics: dict[str, dict[str, Any]]
    results: DetectionTable
    notes: list[str] = field(default_factory=list)


class CocoEvaluator(DetectionCollector):
    """Collects detections batch by batch and compares them with the dataset's own JSON.

    Each batch is turned at once into boxes and run-length encodings in the pixels of the image
    files. Processes that share a dataset hand their :meth:`state` to one that merges them.

    Args:
        index: the dataset; every image of it has to be seen before :meth:`summarize`.
        iou_types: of ``"box"``, ``"mask"`` and ``"keypoint"`` (by OKS instead of IoU); masks and
            keypoints are left out, and a note says so, when the dataset or the model has none.
        max_detections: three ascending numbers of detections per image and class. AP and the ARs by
            size use the last one, so that a dataset with more than 100 instances in an image can
            raise it. Keypoints have COCO's 20.
        backend: who computes: ``"faster_coco_eval"`` or ``"pycocotools"``, slower, the same.

    Raises:
        ValueError: numbers or types that are none, or keypoints whose sigmas are not known.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        iou_types: Sequence[str] = ("box", "mask"),
        max_detections: Sequence[int] = (1, 10, 100),
        backend: str = "faster_coco_eval",
    ) -> None:
        limits = tuple(int(limit) for limit in max_detections)
        if len(limits) != 3 or sorted({*limits, 0})[1:] != list(limits):
            raise ValueError(
                f"max_detections must be three ascending positive numbers, got {limits}:"
                " write for example [1, 10, 200]"
            )
        if not iou_types or not set(iou_types) <= set(IOU_TYPES):
            raise ValueError(f"iou_types must be among {IOU_TYPES}, got {tuple(iou_types)}")
        check_backend(backend)
        super().__init__(index)
        self._backend = backend
        self._max_detections = limits
        self._iou_types = [kind for kind in IOU_TYPES if kind in iou_types]
        self._notes: list[str] = []
        self._ground_truth: dict[str, list[dict[str, Any]]] | None = None
        if not index.has_masks:
            self._leave_out("mask", f"{index.source_file} has boxes without segmentation")
        if not index.has_keypoints:
            self._leave_out("keypoint", f"{index.source_file} has none")
        self._sigmas = oks_sigmas(index) if "keypoint" in self._iou_types else []

    def update(self, batch: Batch, detections: Detections) -> None:
        """Take in the detections of a batch; an image that was seen before is passed over."""
        if detections.masks is None:
            self._leave_out("mask", "the model finds boxes only")
        if detections.keypoints is None:
            self._leave_out("keypoint", "the model finds none")
        super().update(batch, detections)

    def summarize(self) -> Evaluation:
        """The numbers of each kind and the AP of each class.

        Raises:
            ValueError: when images of the dataset were not seen, naming them.
        """
        table = self.table()
        metrics: dict[str, dict[str, Any]] = {}
        names = self._index.category_names
        per_class: dict[str, dict[str, float]] = {name: {} for name in names}
        for kind in self._iou_types:
            precision, recall = self._accumulate(kind, table)
            if kind == "keypoint":
                metrics[kind] = ten_numbers(precision, recall)
            else:
                metrics[kind] = twelve_numbers(precision, recall, self._max_detections)
            for k, numbers in enumerate(per_class.values()):
                numbers[f"{kind}_AP"] = _mean_defined(precision[:, :, k, 0, -1])
        return Evaluation({**metrics, "per_class": per_class}, table, list(self._notes))

    def _accumulate(self, kind: str, table: DetectionTable) -> tuple[np.ndarray, np.ndarray]:
        """Precision (T, R, K, A, M) and recall (T, K, A, M) of a kind."""
        if self._ground_truth is None:
            self._ground_truth = load_ground_truth(self._index).dataset
        limits = (MAX_DETECTIONS,) if kind == "keypoint" else self._max_detections
        return accumulate(self._backend, kind, self._ground_truth, table, limits, self._sigmas)

    def _leave_out(self, kind: str, reason: str) -> None:
        if kind in self._iou_types:
            self._iou_types.remove(kind)
            self._notes.append(f"{kind.capitalize()}s are not evaluated: {reason}.")


def twelve_numbers(
    precision: np.ndarray, recall: np.ndarray, max_detections: Sequence[int]
) -> dict[str, float]:
    """COCO's twelve numbers for any limits, where ``COCOeval.summarize`` presumes 100 for AP.

    Args:
        precision: ``(T, R, K, A, M)`` of ``COCOeval.eval``: IoU thresholds .50:.05:.95, recalls,
            classes, areas (all, small, medium, large), limits.
        recall: ``(T, K, A, M)`` likewise.
        max_detections: the M limits, ascending.
    """
    half, three_quarters = 0, 5
    everywhere, small, medium, large = range(4)
    numbers = {
        "AP": _mean_defined(precision[:, :, :, everywhere, -1]),
        "AP50": _mean_defined(precision[half, :, :, everywhere, -1]),
        "AP75": _mean_defined(precision[three_quarters, :, :, everywhere, -1]),
        "APs": _mean_defined(precision[:, :, :, small, -1]),
        "APm": _mean_defined(precision[:, :, :, medium, -1]),
        "APl": _mean_defined(precision[:, :, :, large, -1]),
    }
    for m, limit in enumerate(max_detections):
        numbers[f"AR{limit}"] = _mean_defined(recall[:, :, everywhere, m])
    for size, a in (("s", small), ("m", medium), ("l", large)):
        numbers[f"AR{size}"] = _mean_defined(recall[:, :, a, -1])
    return numbers


def _mean_defined(values: np.ndarray) -> float:
    """Mean of what is not -1, COCO's mark of a setting without ground truth."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else UNDEFINED
