"""The whole examination of a dataset's splits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from detector.data.dataset import DetectionDataset
from detector.data.doctor.anchor_fit import AnchorFit, AnchorTable, check_anchors, fit_anchors
from detector.data.doctor.classes import check_classes
from detector.data.doctor.damage import check_damage
from detector.data.doctor.findings import Finding, in_order
from detector.data.doctor.fingerprints import fingerprint
from detector.data.doctor.images import check_repeated_images
from detector.data.doctor.objects import check_objects
from detector.data.doctor.statistics import SplitStatistics, describe_split
from detector.data.index import AnnotationIndex

Progress = Callable[[Iterable, int, str], Iterable]


@dataclass(frozen=True)
class Diagnosis:
    """What an examination found.

    Attributes:
        indices: of the splits, by name.
        statistics: likewise.
        findings: errors first.
        fit: of the split trained on; ``None`` without anchors.
    """

    indices: dict[str, AnnotationIndex]
    statistics: dict[str, SplitStatistics]
    findings: list[Finding]
    fit: AnchorFit | None

    def to_json(self) -> dict[str, Any]:
        """Plain values; places are named by files and ids."""
        return {
            "splits": {name: each.to_json() for name, each in self.statistics.items()},
            "findings": [finding.to_json(self.indices) for finding in self.findings],
            "anchors": None if self.fit is None else _fit_json(self.fit),
        }


def examine(
    datasets: dict[str, DetectionDataset], anchors: AnchorTable | None, progress: Progress
) -> Diagnosis:
    """Examines the splits of a dataset, ``"train"`` and ``"val"`` or one of them.

    Args:
        datasets: by split, read with damaged records skipped.
        anchors: of the model to be trained; ``None``: it has none.
        progress: passes items on under a bar, given their number and what is done.
    """
    indices = {split: dataset.index for split, dataset in datasets.items()}
    findings = [f for split, index in indices.items() for f in check_damage(split, index)]
    prints = {
        split: fingerprint(index, lambda items, n, s=split: progress(items, n, f"looking at {s}"))
        for split, index in indices.items()
    }
    findings += check_repeated_images(indices, prints)
    findings += check_classes(indices)
    for split, index in indices.items():
        findings += check_objects(split, index)
    fit = None
    if anchors is not None:
        split = "train" if "train" in datasets else "val"
        fit = fit_anchors(
            datasets[split], anchors, lambda items, n: progress(items, n, "trying the anchors")
        )
        findings += check_anchors(split, fit, anchors, indices[split].category_names)
    statistics = {split: describe_split(index) for split, index in indices.items()}
    return Diagnosis(indices, statistics, in_order(findings), fit)


def _fit_json(fit: AnchorFit) -> dict[str, Any]:
    return {
        "num_images": fit.num_images,
        "num_objects": len(fit.boxes),
        "mean_best_iou": float(fit.best.mean()) if len(fit.best) else None,
        "anchors": [
            {"size": size, "aspect_ratio": ratio, "stride": stride, "best_for": best,
             "positive_for": positive}
            for size, ratio, stride, best, positive in fit.anchors
        ],
    }  # fmt: skip
