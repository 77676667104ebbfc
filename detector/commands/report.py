"""Writes the page of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from detector.data.index import AnnotationIndex
from detector.engine.atomic_file import atomic_write
from detector.evaluation.coco import Evaluation
from detector.report.evaluation_page import evaluation_page
from detector.report.scored import Scored, read_scored, scored

PAGE = "report.html"


def comparison_folder(
    cfg: DictConfig, output: Path, evaluate: Callable[[DictConfig], Any] | None = None
) -> Path | None:
    """Where the evaluation lies that ``cfg.compare`` names; a checkpoint is evaluated first.

    Args:
        cfg: composed from ``configs/evaluate.yaml``.
        output: of the evaluation at hand; a checkpoint's goes to a folder in it.
        evaluate: evaluates a checkpoint with the same settings; ``None``: only files are compared.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it is a checkpoint, and there is nothing to evaluate it with.
    """
    if cfg.compare is None:
        return None
    path = Path(str(cfg.compare))
    if not path.exists():
        raise FileNotFoundError(
            f"compare={path}: there is none; give an evaluation.json, its folder, or a checkpoint"
        )
    if path.suffix == ".json" or (path / "evaluation.json").is_file():
        return path
    if evaluate is None:
        raise ValueError(
            f"compare={path}: a file of detections is compared with the evaluation.json of another"
        )
    other = cfg.copy()
    folder = output / "compared" / (path.name if path.is_dir() else path.stem)
    other.update(checkpoint=str(path), output=str(folder), report=False, compare=None)
    evaluate(other)
    return folder


def write_report(
    found: Evaluation, index: AnnotationIndex, output: Path, name: str, compare: Path | None
) -> str:
    """Writes ``report.html`` to a folder; its name, for a message.

    Args:
        found: the evaluation.
        index: the dataset, whose images are drawn where they can be read.
        output: the folder.
        name: of what was evaluated.
        compare: ``evaluation.json`` of another one, or its folder; ``None`` for a page of one.

    Raises:
        FileNotFoundError, ValueError: see :func:`detector.report.scored.read_scored`.
    """
    own = scored(name, found)
    other: Scored | None = None if compare is None else read_scored(compare, index)
    with atomic_write(output / PAGE) as file:
        file.write(evaluation_page(index, own, other).encode())
    return PAGE
