"""Scores a file of detections against ground truth, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from detector.commands.report import comparison_folder, write_report
from detector.data.coco import read_coco
from detector.data.index import AnnotationIndex
from detector.data.json_files import read_json
from detector.data.lvis import read_lvis
from detector.engine.assembly import build_dataset, choose_metric, plain
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
        cfg: composed from ``configs/evaluate.yaml``, with ``detections``, and with ``annotations``
            or a dataset in ``data``.

    Returns:
        The metrics, as written to ``evaluation.json``.

    Raises:
        ValueError, FileNotFoundError: files that are not what they should be; a setting that is
            for checkpoints, or none.
    """
    if cfg.evaluation.tta is not None:
        raise ValueError(
            "evaluation.tta looks at images anew: it needs checkpoint=, no detections="
        )
    file = Path(str(cfg.detections))
    output = Path(str(cfg.output)) if cfg.output is not None else file.parent / "evaluation"
    index, metric = read_truth(cfg)
    results = read_results(file, index)
    evaluator = choose_evaluator(cfg.evaluation, metric, index, results)
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
        compare = comparison_folder(cfg, output)
        name = Path(str(cfg.detections)).name
        written += f", and {write_report(found, index, output, name, compare)}"
    console.print(f"written to {output}/{written}", soft_wrap=True)
    return found.metrics


def read_truth(cfg: DictConfig) -> tuple[AnnotationIndex, str]:
    """The ground truth of ``cfg.annotations`` or of ``cfg.data``, and what it is measured by.

    Raises:
        ValueError, FileNotFoundError: neither is given, or both; they cannot be read.
    """
    chosen = OmegaConf.select(cfg, "data.val._target_") is not None
    if chosen == (cfg.annotations is not None):
        raise ValueError(
            f"detections={cfg.detections} are compared with ground truth: give "
            "annotations=FILE.json, in COCO's or LVIS's format, or for any other format data=NAME "
            "and data.root=FOLDER as for training" + (", not both" if chosen else "")
        )
    if not chosen:
        index = read_ground_truth(Path(str(cfg.annotations)))
        if cfg.images is not None:
            index.image_root = Path(str(cfg.images))
        return index, cfg.evaluation.metric or ("lvis" if index.federated is not None else "coco")
    if cfg.images is not None:
        raise ValueError(
            f"images={cfg.images} goes with annotations=; with data= the dataset says where its "
            "images are"
        )
    # What only a training reads may refer to a whole configuration, which is not here.
    for key, value in (("augment", None), ("seed", 0), ("keep_empty", True), ("proposals", None)):
        if key in cfg.data.val:
            cfg.data.val[key] = value
    dataset = build_dataset(cfg.data, "val")
    return dataset.index, choose_metric(cfg.evaluation, dataset)


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
    evaluation: DictConfig, metric: str, index: AnnotationIndex, results: ResultsFile
) -> DetectionCollector:
    """The evaluator of what the results hold: ``"coco"``, ``"lvis"`` or ``"voc"``.

    Raises:
        ValueError: there is no such metric, or the results do not go with it.
    """
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
