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

from detector.evaluation.analysis import ErrorAnalysis, analyse
from detector.evaluation.backends import accumulate, check_backend
from detector.evaluation.collector import DetectionCollector
from detector.evaluation.detection_table import DetectionTable
from detector.evaluation.ground_truth import load_ground_truth
from detector.evaluation.keypoints import MAX_DETECTIONS, oks_sigmas, ten_numbers
from detector.structures import Batch, Detections

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex

IOU_TYPES = ("box", "mask", "boundary", "keypoint")
UNDEFINED = -1.0


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: ``{"box": {"AP": ..., ...}, "mask": {...}, "per_class": {name: {"box_AP": ...,
            "mask_AP": ...}}}``, plain floats in 0..1, -1 where undefined. The twelve numbers are
            AP, AP50, AP75, APs, APm, APl, three ARs named by their number of detections (AR1, AR10,
            AR100 by default), ARs, ARm, ARl. "keypoint", where evaluated, has the ten of
            :mod:`detector.evaluation.keypoints`. With errors analysed, "box_errors" and
            "mask_errors" have what AP50 would gain by kind, and each class "box_threshold", the
            score of its best F1, and "box_F1" (likewise of masks).
        results: the detections; as a sequence, records in COCO results format.
        notes: statements on what was left out, and why.
        errors: the analysis of boxes and masks, where asked for.
    """

    metrics: dict[str, dict[str, Any]]
    results: DetectionTable
    notes: list[str] = field(default_factory=list)
    errors: dict[str, ErrorAnalysis] = field(default_factory=dict)


class CocoEvaluator(DetectionCollector):
    """Collects detections batch by batch and compares them with the dataset's own JSON.

    Each batch is turned at once into boxes and run-length encodings in the pixels of the image
    files. Processes that share a dataset hand their :meth:`state` to one that merges them.

    Args:
        index: the dataset; every image of it has to be seen before :meth:`summarize`.
        iou_types: of ``"box"``, ``"mask"``, ``"boundary"`` (masks by the smaller of mask IoU and
            boundary IoU: Cheng et al., Boundary IoU, 2021) and ``"keypoint"`` (by OKS instead of
            IoU); what the dataset or the model has not is left out, and a note says so.
        max_detections: three ascending numbers of detections per image and class. AP and the ARs by
            size use the last one, so that a dataset with more than 100 instances in an image can
            raise it. Keypoints have COCO's 20.
        backend: who computes: ``"faster_coco_eval"`` or ``"pycocotools"``, slower, the same.
        error_threshold: the score from which detections count in the confusion matrix of an
            analysis of errors; ``None`` for no analysis.

    Raises:
        ValueError: numbers, types or a backend that are none, or keypoints whose sigmas are not
            known.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        iou_types: Sequence[str] = ("box", "mask"),
        max_detections: Sequence[int] = (1, 10, 100),
        backend: str = "faster_coco_eval",
        error_threshold: float | None = None,
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
        if "boundary" in iou_types and backend == "pycocotools":
            raise ValueError(
                "evaluation.backend=pycocotools has no boundary AP; leave the backend out, or set "
                "evaluation.boundary=false"
            )
        super().__init__(index)
        self._backend = backend
        self._error_threshold = error_threshold
        self._max_detections = limits
        self._iou_types = [kind for kind in IOU_TYPES if kind in iou_types]
        self._notes: list[str] = []
        self._ground_truth: dict[str, list[dict[str, Any]]] | None = None
        if not index.has_masks:
            for kind in ("mask", "boundary"):
                self._leave_out(kind, f"{index.source_file} has boxes without segmentation")
        if not index.has_keypoints:
            self._leave_out("keypoint", f"{index.source_file} has none")
        self._sigmas = oks_sigmas(index) if "keypoint" in self._iou_types else []

    def update(self, batch: Batch, detections: Detections) -> None:
        """Take in the detections of a batch; an image that was seen before is passed over."""
        if detections.masks is None:
            for kind in ("mask", "boundary"):
                self._leave_out(kind, "the model finds boxes only")
        if detections.keypoints is None:
            self._leave_out("keypoint", "the model finds none")
        super().update(batch, detections)

    def summarize(self) -> Evaluation:
        """The numbers of each kind and the AP of each class.

        Raises:
            ValueError: when images of the dataset were not seen, naming them.
        """
        whole, truth = self.table(), self.truth()
        metrics: dict[str, dict[str, Any]] = {}
        per_class: dict[str, dict[str, float]] = {name: {} for name in self._index.category_names}
        for kind in self._iou_types:
            limits = (MAX_DETECTIONS,) if kind == "keypoint" else self._max_detections
            counted = self._counted(kind, whole)
            found = accumulate(self._backend, kind, truth, counted, limits, self._sigmas)
            metrics[kind] = self._numbers(kind, *found)
            for k, numbers in enumerate(per_class.values()):
                numbers[f"{kind}_AP"] = mean_defined(found[0][:, :, k, 0, -1])
        errors = self._analyse(truth, whole)
        for kind, analysis in errors.items():
            metrics[f"{kind}_errors"] = analysis.gains
            for numbers, curve in zip(per_class.values(), analysis.curves, strict=True):
                numbers[f"{kind}_threshold"] = curve.best_threshold
                numbers[f"{kind}_F1"] = curve.best_F1
        metrics["per_class"] = per_class
        return Evaluation(metrics, whole, list(self._notes), errors)

    def truth(self) -> dict[str, list[dict[str, Any]]]:
        """``images``, ``categories`` in the order of the labels and ``annotations`` of the file."""
        if self._ground_truth is None:
            self._ground_truth = load_ground_truth(self._index).dataset
        return self._ground_truth

    def _counted(self, kind: str, table: DetectionTable) -> DetectionTable:
        """The detections that count in the evaluation of a kind."""
        return table

    def _numbers(self, kind: str, precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
        if kind == "keypoint":
            return ten_numbers(precision, recall)
        return twelve_numbers(precision, recall, self._max_detections)

    def _analyse(
        self, truth: dict[str, list[dict[str, Any]]], table: DetectionTable
    ) -> dict[str, ErrorAnalysis]:
        if self._error_threshold is None:
            return {}
        kinds = [kind for kind in ("box", "mask") if kind in self._iou_types]
        return {
            kind: analyse(kind, truth, self._counted(kind, table), self._error_threshold)
            for kind in kinds
        }

    def _leave_out(self, kind: str, reason: str) -> None:
        if kind in self._iou_types:
            self._iou_types.remove(kind)
            what = "Boundaries" if kind == "boundary" else f"{kind.capitalize()}s"
            self._notes.append(f"{what} are not evaluated: {reason}.")


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
        "AP": mean_defined(precision[:, :, :, everywhere, -1]),
        "AP50": mean_defined(precision[half, :, :, everywhere, -1]),
        "AP75": mean_defined(precision[three_quarters, :, :, everywhere, -1]),
        "APs": mean_defined(precision[:, :, :, small, -1]),
        "APm": mean_defined(precision[:, :, :, medium, -1]),
        "APl": mean_defined(precision[:, :, :, large, -1]),
    }
    for m, limit in enumerate(max_detections):
        numbers[f"AR{limit}"] = mean_defined(recall[:, :, everywhere, m])
    for size, a in (("s", small), ("m", medium), ("l", large)):
        numbers[f"AR{size}"] = mean_defined(recall[:, :, a, -1])
    return numbers


def mean_defined(values: np.ndarray) -> float:
    """Mean of what is not -1, COCO's mark of a setting without ground truth."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else UNDEFINED
