"""An evaluation as a page needs it: numbers, analysis of errors, detections."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.data.json_files import read_json
from detector.evaluation.coco import Evaluation
from detector.evaluation.collector import DetectionCollector
from detector.evaluation.results_file import read_results

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex
    from detector.evaluation.detection_table import DetectionTable

KINDS = ("box", "mask", "boundary", "keypoint", "voc")


@dataclass(frozen=True)
class Scored:
    """What was scored.

    Attributes:
        name: of the model or the file.
        metrics: as in ``evaluation.json``, see :class:`detector.evaluation.coco.Evaluation`.
        errors: as in ``errors.json``, by kind, see
            :class:`detector.evaluation.analysis.ErrorAnalysis`; may be empty.
        results: the detections; ``None`` where there is no file of them.
        notes: what was left out.
    """

    name: str
    metrics: dict[str, dict[str, Any]]
    errors: dict[str, dict[str, Any]]
    results: DetectionTable | None
    notes: list[str] = field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """Of ``"box"``, ``"mask"``, ``"boundary"``, ``"keypoint"`` and ``"voc"`` those measured."""
        return [kind for kind in KINDS if kind in self.metrics]


def scored(name: str, found: Evaluation) -> Scored:
    """From an evaluation that was just made."""
    errors = {kind: analysis.to_json() for kind, analysis in found.errors.items()}
    return Scored(name, found.metrics, errors, found.results, list(found.notes))


def read_scored(path: Path, index: AnnotationIndex) -> Scored:
    """From the files that an evaluation wrote.

    Args:
        path: ``evaluation.json`` or its folder; ``errors.json`` and ``detections.json`` beside it
            are read where they are.
        index: the dataset that was evaluated on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no evaluation, or of other classes.
    """
    file = path / "evaluation.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file; compare=PATH is an evaluation.json, its folder, or a checkpoint"
        )
    metrics = read_json(file)
    if not isinstance(metrics, dict) or not isinstance(metrics.get("per_class"), dict):
        raise ValueError(
            f"{file}: not an evaluation; compare= takes what tools/evaluate.py wrote as "
            "evaluation.json"
        )
    if list(metrics["per_class"]) != list(index.category_names):
        different = sorted(set(metrics["per_class"]) ^ set(index.category_names))
        raise ValueError(
            f"{file}: its classes are not those of {index.source_file}, they differ in "
            f"{different[:5] or 'their order'}; compare evaluations of one dataset"
        )
    errors_file, results_file = file.with_name("errors.json"), file.with_name("detections.json")
    errors = read_json(errors_file) if errors_file.is_file() else {}
    results = None
    if results_file.is_file():
        collector = DetectionCollector(index)
        collector.merge(read_results(results_file, index).found)
        results = collector.table()
    return Scored(file.parent.name if file.parent.name != "evaluation" else
                  file.parent.parent.name, metrics, errors, results)  # fmt: skip
