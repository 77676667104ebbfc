"""Evaluates a checkpoint on a dataset.

python tools/evaluate.py checkpoint=runs/shapes/.../checkpoints/best.pt
python tools/evaluate.py checkpoint=PATH data=coco data.root=/data/coco
python tools/evaluate.py detections=FILE annotations=FILE output=DIR
python tools/evaluate.py detections=FILE data=voc data.root=DIR output=DIR
torchrun --nproc-per-node=8 tools/evaluate.py checkpoint=PATH    each image on one of 8 GPUs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from detector.commands.report import comparison_folder, write_report
from detector.commands.score import score_detections, write_evaluation
from detector.data.loader import build_eval_loader
from detector.engine import assembly
from detector.engine.augmented_detection import with_augmentation
from detector.engine.checkpoint import (
    check_classes,
    checkpoint_config,
    checkpoint_file,
    load_checkpoint,
    load_weights,
)
from detector.engine.distributed import Ranks, check_alone, open_ranks
from detector.engine.inference import evaluate_model
from detector.engine.label_map import Relabelled, label_map
from detector.engine.profiler import build_profiler
from detector.engine.progress import open_console, track
from detector.evaluation.table import evaluation_table
from detector.setting_values import fit_value

TIMEOUT = 1800.0  # seconds that the first of several processes may take to sum up


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Prints a table and writes ``evaluation.json`` and ``detections.json`` (COCO results).

    With ``detections`` no model is run, see :func:`detector.commands.score.score_detections`.

    Args:
        cfg: composed from ``configs/evaluate.yaml``.

    Returns:
        The metrics, as written to ``evaluation.json``.

    Raises:
        ValueError, FileNotFoundError: a checkpoint or dataset that cannot be used.
    """
    if cfg.detections is not None:
        check_alone("detections=FILE")
        return score_detections(cfg)
    on_gpu = assembly.build(cfg.runtime).torch_device.type == "cuda"
    with open_ranks(TIMEOUT, on_gpu) as ranks:
        return _evaluate(cfg, ranks)


def _evaluate(cfg: DictConfig, ranks: Ranks) -> dict[str, Any]:
    path = checkpoint_file(str(cfg.checkpoint))
    checkpoint = load_checkpoint(path)
    config = override(checkpoint_config(checkpoint, cfg.allow_code), cfg)
    runtime = ranks.place(assembly.build(cfg.runtime))
    runtime.apply()

    dataset = ranks.in_turn(lambda: assembly.build_dataset(config.data, "val"))
    names = dataset.index.category_names
    labels = label_map(checkpoint["class_names"], names)
    if labels is None:
        check_classes(path, checkpoint, names, dataset.index.source_file)
    loader = build_eval_loader(
        dataset,
        batch_size=config.data.val_batch_size,
        num_workers=config.data.num_workers,
        buckets=assembly.plain(config.data.buckets),
        pin_memory=runtime.torch_device.type == "cuda",
        rank=ranks.rank,
        num_ranks=ranks.size,
    )
    model = assembly.build(config.model)
    assembly.check_proposals(model, dataset)
    load_weights(model, checkpoint["model"], path)
    model = runtime.place(model)
    evaluator = assembly.build_evaluator(config.evaluation, dataset, model)

    ranks.start()
    ranks.waiting_for = "the end of the evaluation"
    console = open_console(quiet=not ranks.is_first)
    console.print(
        f"{path}, step {checkpoint['step']}: {assembly.describe_model(model)}", soft_wrap=True
    )
    console.print(assembly.describe_dataset(dataset), soft_wrap=True)
    batches = track(loader, len(loader), "evaluating", "batches", console)
    tta = assembly.plain(config.evaluation.get("tta"))
    detector = with_augmentation(model, tta, dataset.index.keypoint_flip)
    if labels is not None:
        detector = Relabelled(detector, labels).to(runtime.torch_device)
    output = Path(str(cfg.output)) if cfg.output is not None else default_output(path)
    profiled = cfg.get("profiler") if ranks.is_first else None
    folder = output / "profile"
    with build_profiler(profiled, folder, runtime.torch_device, console.print, "batch") as profiler:
        batches = profiler.over(batches)
        found = evaluate_model(detector, batches, evaluator, runtime, ranks=ranks)
    if not ranks.is_first:
        return found.metrics
    console.print(evaluation_table(found))

    written = write_evaluation(found, output)
    if cfg.report:
        index = dataset.index if model.has_classes else dataset.index.as_one_class()
        compare = comparison_folder(cfg, output, evaluate)
        written += f", and {write_report(found, index, output, run_name(path), compare)}"
    console.print(f"written to {output}/{written}", soft_wrap=True)
    return found.metrics


def override(config: DictConfig, cfg: DictConfig) -> DictConfig:
    """The checkpoint's configuration with what ``cfg`` sets (is not null) in data and evaluation.

    Interpolations are kept, so that a new ``data.root`` moves the paths below it.
    """
    given = OmegaConf.to_container(cfg, resolve=False)
    kept = {key: _without_none(given[key]) for key in ("data", "evaluation")}
    if OmegaConf.select(cfg, "data.val._target_") is not None:  # a whole dataset was chosen
        kept["data"] = given["data"]
        config.data = {}
    elif "root" in kept["data"] or kept["data"]["val"]:  # it must be there already
        config.data.prepare = None
    former = OmegaConf.to_container(config, resolve=False)
    kept = {key: fit_value(key, value, former.get(key)) for key, value in kept.items()}
    merged = OmegaConf.merge(config, kept)
    assert isinstance(merged, DictConfig)
    return merged


def _without_none(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_none(child) for key, child in value.items() if child is not None}


def run_name(checkpoint: Path) -> str:
    """``"shapes/2026-01-31_12-00-00, best.pt"``: what a page calls a checkpoint."""
    folder = checkpoint.resolve().parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    return f"{'/'.join(folder.parts[-2:])}, {checkpoint.name}"


def default_output(checkpoint: Path) -> Path:
    """``evaluation/`` in the checkpoint's run directory, or beside a checkpoint that left it."""
    folder = checkpoint.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "evaluation"
