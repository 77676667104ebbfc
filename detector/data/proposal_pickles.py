"""Detectron2's files of proposals: a pickle of four lists, read without running it.

ids                  of N images, numbers or texts; ``indexes`` in Detectron's files
boxes                N arrays (p, 4)
objectness_logits    N arrays (p,), in any order; ``scores`` in Detectron's files
bbox_mode            0 for (x1, y1, x2, y2), as without it, or 1 for (x, y, width, height)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.rings import offsets_of
from detector.interop.restricted_pickle import ForbiddenName, load_pickle

XYXY, XYWH = 0, 1
# By their own name, too: the mode is an enumeration there, and may have been written as such.
ENUMERATION = ("detectron2.structures.boxes", "BoxMode")
REMEDY = "write it with Detectron2, or with tools/propose.py"


def is_pickle(path: Path) -> bool:
    """Whether the file is a pickle, as against our archives, which are zip files."""
    with path.open("rb") as file:
        return path.suffix in (".pkl", ".pickle") or file.read(1) == b"\x80"


def read_proposal_pickle(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image ids, offsets, boxes and scores as :mod:`detector.data.proposals` has them.

    Raises:
        ValueError: it is cut off, wants more than arrays and containers, or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = load_pickle(file, {ENUMERATION: int})
    except ForbiddenName as error:
        raise ValueError(
            f"{path}: refused, since reading it would use {error}; a file of proposals needs "
            "arrays and lists only"
        ) from error
    except Exception as error:  # malformed bytes make the unpickler raise nearly anything
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{path} is no file of proposals ({reason}); {REMEDY}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no file of proposals, but a {type(content).__name__}")
    ids = _get(content, ("ids", "indexes"), path)
    boxes = _get(content, ("boxes",), path)
    scores = _get(content, ("objectness_logits", "scores"), path)
    if not len(ids) == len(boxes) == len(scores):
        raise ValueError(
            f"{path} is damaged: it has {len(ids)} images, boxes of {len(boxes)} and scores of "
            f"{len(scores)}; {REMEDY}"
        )
    mode = content.get("bbox_mode", XYXY)
    if not isinstance(mode, int | np.integer) or mode not in (XYXY, XYWH):
        shown = mode if isinstance(mode, int | np.integer) else type(mode).__name__
        raise ValueError(
            f"{path}: bbox_mode is {shown}; 0 (x1, y1, x2, y2) and 1 (x, y, width, height) are read"
        )
    image_ids = _image_ids(ids, path)
    rows, values = [], []
    for image_id, own, given in zip(image_ids, boxes, scores, strict=True):
        own, given = np.asarray(own), np.asarray(given)
        if own.size == 0 and given.size == 0:
            own, given = np.zeros((0, 4)), np.zeros(0)
        if own.dtype.kind not in "iuf" or own.shape != (len(given), 4) or given.ndim != 1:
            raise ValueError(
                f"{path} is damaged: image {image_id} has boxes of shape {own.shape} and scores of "
                f"{given.shape}; {REMEDY}"
            )
        best_first = np.argsort(-given, kind="stable")
        rows.append(own[best_first].astype(np.float32))
        values.append(given[best_first].astype(np.float32))
    every = np.concatenate([np.zeros((0, 4), np.float32), *rows])
    if mode == XYWH:
        every[:, 2:] += every[:, :2]
    offsets = offsets_of(np.array([len(own) for own in rows], np.int64))
    return image_ids, offsets, every, np.concatenate([np.zeros(0, np.float32), *values])


def _get(content: dict[Any, Any], keys: Sequence[str], path: Path) -> Sequence[Any] | np.ndarray:
    key = next((key for key in keys if key in content), None)
    if key is None:
        there = ", ".join(map(str, list(content)[:8]))
        raise ValueError(f"{path} is no file of proposals: it has no {keys[0]}, it has {there}")
    if not isinstance(content[key], list | tuple | np.ndarray):
        raise ValueError(f"{path}: {key} is a {type(content[key]).__name__}, expected a list")
    return content[key]


def _image_ids(ids: Sequence[Any] | np.ndarray, path: Path) -> np.ndarray:
    try:
        return np.array([int(each) for each in ids], np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}: image ids must be whole numbers, as the dataset's are ({error})"
        ) from error
