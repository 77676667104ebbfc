"""What every reader does around parsing: caches the index, checks the images, settles problems."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from detector.cache import cache_directory
from detector.data.file_digests import stamp_files
from detector.data.image_check import check_images
from detector.data.index import AnnotationIndex
from detector.data.problems import OnError, settle_problems

_STAMPS = "image_stamps.npy"

_logger = logging.getLogger(__name__)


def check_paths(
    annotations: Path | str, images: Path | str, what: str = "annotation file"
) -> tuple[Path, Path]:
    """An annotation file and a folder of images that are there.

    Raises:
        FileNotFoundError: one is not; the file is called ``what``.
    """
    annotations, images = Path(annotations), Path(images)
    if not annotations.is_file():
        raise FileNotFoundError(
            f"{annotations}: no such {what}; check data.root and the annotations path"
        )
    if not images.is_dir():
        raise FileNotFoundError(
            f"{images}: no such image folder; check data.root and the images path"
        )
    return annotations, images


def cache_name(reader: str, version: int, *content: Any) -> str:
    """What :func:`cached_index` calls an index.

    Args:
        reader: such as ``coco``.
        version: of the reader, raised whenever the same files give another index.
        content: all that the index follows from, as JSON takes it: settings, and digests of files.
    """
    key = json.dumps(content, default=list).encode("utf-8", "surrogateescape")
    return f"{reader}-v{version}-{hashlib.sha256(key).hexdigest()[:32]}"


def cached_index(
    name: str,
    source_file: Path,
    image_root: Path,
    parse: Callable[[], AnnotationIndex],
    sizes_from_images: bool = False,
) -> AnnotationIndex:
    """The index of the content that ``name`` stands for, parsed once and mapped ever after.

    Args:
        name: of the cache's folder, see :func:`cache_name`.
        source_file, image_root: of the index; they may differ between datasets of one content.
        parse: makes the index where the cache has none.
        sizes_from_images: whether ``parse`` took the sizes of images from their files, so that the
            index is good only as long as these stay as they are.
    """
    directory = cache_directory() / "index" / name
    index = _load(directory, source_file, image_root)
    if index is not None and sizes_from_images and not _images_stayed(index, directory):
        shutil.rmtree(directory, ignore_errors=True)
        index = None
    if index is not None:
        return index
    index = _store(parse(), directory)
    if sizes_from_images and index.directory is not None:
        np.save(directory / _STAMPS, stamp_files(index.paths()))
    return index


def check_index(index: AnnotationIndex, on_error: OnError, check_files: bool) -> AnnotationIndex:
    """The index of the usable images, after its problems were refused or named.

    Args:
        index: as parsed, with the damaged records in ``index.skipped``.
        on_error: ``"raise"`` or ``"skip"``.
        check_files: whether to look at the image files too.

    Raises:
        ValueError: records are damaged, or nothing is left to learn from.
    """
    problems = list(index.skipped)
    if check_files:
        good, faults = check_images(index)
        problems += faults
        if not good.all() and on_error == "skip":
            index = index.keep_images(good)
    index.skipped = problems
    settle_problems(index.source_file, problems, on_error)
    if len(index) == 0:
        raise ValueError(f"{index.source_file}: empty dataset, no usable image; add images")
    if not (~index.crowd).any():
        raise ValueError(
            f"{index.source_file}: empty dataset, no usable annotation that is not a crowd region "
            "or difficult; annotate at least one object"
        )
    return index


def _images_stayed(index: AnnotationIndex, directory: Path) -> bool:
    if index.skipped:  # an image may have been restored
        return False
    try:
        stamps = np.load(directory / _STAMPS)
    except (OSError, EOFError, ValueError):
        return False
    return np.array_equal(stamps, stamp_files(index.paths()))


def _load(directory: Path, source_file: Path, image_root: Path) -> AnnotationIndex | None:
    try:
        return AnnotationIndex.load(directory, source_file, image_root)
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
