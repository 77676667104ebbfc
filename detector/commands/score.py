"""Scores a file of detections against ground truth, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from detector.commands.report import comparison_folder, write_report
from detector.data.coco import read_coco
from detector.data.index import AnnotationIndex
from detector.data.json_files import read_json
from detector.data.lvis import read_lvis
from detector.engine.assembly import plain
from detector.engine.atomic_file import atomic_write, write_json
from detector.engine.progress import open_console
from detector.evaluation.coco import CocoEvaluator, Evaluation
from detector.evaluation.collector import DetectionCollector
from detector.evaluation.lvis import LVISEvaluator
from detector.evaluation.results_file import ResultsFile, read_results
from detector.evaluation.table import evaluation_table
from detector.evaluation.voc import VOCEvaluator


def score_detections(cfg: DictConfig) -> dict[str, Any]:
    """Prints a table and writes ``evaluation.json``, ``errors.json`` and ``detections.json``.

    Args:
        cfg: composed from ``configs/evaluate.yaml``, with ``detections`` and ``annotations``.

    Returns:
        The metrics, as written to ``evaluation.json``.

    Raises:
        ValueError, FileNotFoundError: files that are not what they should be; a setting that is
            for checkpoints, or none.
    """
    if cfg.annotations is None:
        raise ValueError(
            f"detections={cfg.detections} are compared with ground truth: give "
            "annotations=FILE.json, in COCO's or LVIS's format"
        )
    if cfg.evaluation.tta is not None:
        raise ValueError(
            "evaluation.tta looks at images anew: it needs checkpoint=, no detections="
        )
    file = Path(str(cfg.detections))
    output = Path(str(cfg.output)) if cfg.output is not None else file.parent / "evaluation"
    index = read_ground_truth(Path(str(cfg.annotations)))
    results = read_results(file, index)
    evaluator = choose_evaluator(cfg.evaluation, index, results)
    evaluator.merge(results.found)
    found = evaluator.summarize()
    skipped = [f"{len(index.skipped)} damaged records of {index.source_file} are left out."]
    found.notes.extend(results.notes + (skipped if index.skipped else []))

    console = open_console()
    console.print(
        f"{file}: {len(found.results)} detections in {len(index)} images, "
        f"{index.num_annotations} objects of {index.source_file}",
        soft_wrap=True,
    )
    console.print(evaluation_table(found))
    written = write_evaluation(found, output)
    if cfg.report:
        if cfg.images is not None:
            index.image_root = Path(str(cfg.images))
        compare = comparison_folder(cfg, output)
        name = Path(str(cfg.detections)).name
        written += f", and {write_report(found, index, output, name, compare)}"
    console.print(f"written to {output}/{written}", soft_wrap=True)
    return found.metrics


def read_ground_truth(annotations: Path) -> AnnotationIndex:
    """The index of a COCO or LVIS file; image files are not looked at, damaged records left out."""
    if not annotations.is_file():
        raise FileNotFoundError(f"{annotations}: no such file; give annotations=FILE.json")
    content = read_json(annotations)
    images = content.get("images") if isinstance(content, dict) else None
    is_lvis = isinstance(images, list) and any(
        isinstance(image, dict) and "neg_category_ids" in image for image in images[:1]
    )
    read = read_lvis if is_lvis else read_coco
    return read(annotations, annotations.parent, "skip", check_files=False)


def choose_evaluator(
    evaluation: DictConfig, index: AnnotationIndex, results: ResultsFile
) -> DetectionCollector:
    """The evaluator of what the results hold, by ``evaluation.metric`` or the file's own.

    Raises:
        ValueError: there is no such metric, or the results do not go with it.
    """
    metric = evaluation.metric or ("lvis" if index.federated is not None else "coco")
    analysed = evaluation.errors is None or evaluation.errors
    threshold = evaluation.score_threshold
    threshold = (0.5 if threshold is None else threshold) if analysed else None
    if metric == "voc":
        return VOCEvaluator(index, threshold)
    backend = evaluation.backend or "faster_coco_eval"
    if metric == "lvis":
        kinds = [kind for kind in results.kinds if kind != "keypoint"]
        return LVISEvaluator(index, kinds, backend, threshold)
    if metric != "coco":
        raise ValueError(f"evaluation.metric={metric}; it must be coco, lvis, voc or null")
    kinds = results.kinds + (
        ["boundary"] if evaluation.boundary and "mask" in results.kinds else []
    )
    limits = plain(evaluation.max_detections) or (1, 10, 100)
    return CocoEvaluator(index, kinds, limits, backend, threshold)


def write_evaluation(found: Evaluation, output: Path) -> str:
    """Writes what was found to a folder; the names of the files, for a message."""
    write_json(output / "evaluation.json", found.metrics)
    with atomic_write(output / "detections.json") as file:
        found.results.write_json(file)
    if not found.errors:
        return "evaluation.json and detections.json"
    errors = {kind: analysis.to_json() for kind, analysis in found.errors.items()}
    write_json(output / "errors.json", errors)
    return "evaluation.json, errors.json and detections.json"
