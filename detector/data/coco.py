"""Reads COCO instance annotations into the annotation index, and checks them on the way."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from detector.cache import cache_directory
from detector.data.coco_records import parse_dataset
from detector.data.image_check import check_images
from detector.data.index import AnnotationIndex
from detector.data.problems import OnError, settle_problems

# Part of the cache's key: raise it whenever reading the same file gives another index.
_READER_VERSION = 2

_logger = logging.getLogger(__name__)


def read_coco(
    annotations: Path | str,
    images: Path | str,
    on_error: OnError = "raise",
    check_files: bool = True,
) -> AnnotationIndex:
    """Reads a COCO ``instances`` file and checks every record and every image file.

    The result is cached by the file's content: a second call maps arrays and parses nothing.

    Args:
        annotations: the JSON file.
        images: the folder that holds the files it names.
        on_error: ``"raise"`` refuses damaged records, all in one message; ``"skip"`` leaves them
            out, names them once in the log and keeps them in ``index.skipped``.
        check_files: whether to look at the image files too.

    Returns:
        The index. Categories may have any ids; labels are their ranks.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: the file is not COCO JSON, the dataset is empty, or records are damaged.
    """
    annotations, images = Path(annotations), Path(images)
    if not annotations.is_file():
        raise FileNotFoundError(
            f"{annotations}: no such annotation file; check data.root and the annotations path"
        )
    if not images.is_dir():
        raise FileNotFoundError(
            f"{images}: no such image folder; check data.root and the images path"
        )
    with open(annotations, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    directory = cache_directory() / "index" / f"coco-v{_READER_VERSION}-{digest[:32]}"
    index = _load(directory, annotations, images)
    if index is None:
        index = parse_dataset(_parse_json(annotations), annotations, images)
        index = _store(index, directory)

    problems = list(index.skipped)
    if check_files:
        good, faults = check_images(index)
        problems += faults
        if not good.all() and on_error == "skip":
            index = index.keep_images(good)
    index.skipped = problems
    settle_problems(annotations, problems, on_error)
    if len(index) == 0:
        raise ValueError(f"{annotations}: empty dataset, no usable image; add images")
    if not (~index.crowd).any():
        raise ValueError(
            f"{annotations}: empty dataset, no usable annotation that is not a crowd region; "
            "annotate at least one object"
        )
    return index


def _parse_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{file}: not a JSON file ({error}); check that it was copied whole"
        ) from error


def _load(directory: Path, annotations: Path, images: Path) -> AnnotationIndex | None:
    try:
        return AnnotationIndex.load(directory, annotations, images)
    except (OSError, EOFError, ValueError, KeyError):
        # Never written, or damaged since, by a full disk for example.
        shutil.rmtree(directory, ignore_errors=True)
        return None


def _store(index: AnnotationIndex, directory: Path) -> AnnotationIndex:
    try:
        index.save(directory)
    except OSError as error:
        _logger.warning(
            "The annotation index cannot be cached in %s (%s), so reading starts anew each time; "
            "set DETECTOR_CACHE to a writable folder.",
            directory.parent,
            error,
        )
        return index
    return AnnotationIndex.load(directory, index.source_file, index.image_root)
