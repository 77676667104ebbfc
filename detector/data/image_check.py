"""Checks image files before the first step: there, whole, and of the size the annotations say."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from detector.cache import cache_directory
from detector.data.image_integrity import is_whole
from detector.data.index import AnnotationIndex
from detector.data.problems import Problem
from detector.data.slow_work import slow_work

_logger = logging.getLogger(__name__)

# Part of the cache's name: raise it when a check becomes stricter.
_VERSION = 1

_WORTH_SAYING = 5000  # files; some seconds
_EXIF_ORIENTATION = 0x0112
_RESTORE = "restore the file, or remove it from the annotations"


def check_images(index: AnnotationIndex) -> tuple[np.ndarray, list[Problem]]:
    """Checks every image file of a dataset.

    Files that passed are remembered by size and modification time, so that the next start only
    asks the file system for these.

    Returns:
        good: ``(N,)`` bool.
        problems: one per image that is not good.
    """
    paths = index.paths()
    stamps = np.array([_stamp(path) for path in paths], dtype=np.int64).reshape(-1, 2)
    sizes = np.stack([index.widths, index.heights], axis=1).astype(np.int64)
    state = np.concatenate([stamps, sizes], axis=1)

    cache = _cache_file(index)
    good = _passed_before(cache, state)
    todo = np.flatnonzero(~good)
    problems: list[Problem] = []
    if len(todo) == 0:
        return good, problems

    if len(todo) >= _WORTH_SAYING:
        _logger.info("Checking %d image files of %s, once", len(todo), index.source_file)

    def check(i: int) -> tuple[str, str] | None:
        return find_image_fault(paths[i], int(index.widths[i]), int(index.heights[i]))

    with (
        slow_work("checking images", len(todo), "files") as advance,
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
    ):
        for i, fault in zip(todo, pool.map(check, todo, chunksize=64), strict=True):
            advance(1)
            if fault is None:
                good[i] = True
            else:
                record = f"image {index.image_ids[i]} ({index.file_name(i)})"
                problems.append(Problem("image", record, *fault))
    _remember(cache, state, good)
    return good, problems


def find_image_fault(path: str | Path, width: int, height: int) -> tuple[str, str] | None:
    """What is wrong with an image file and the remedy, or ``None``.

    Args:
        path: the image file.
        width: expected pixels, after EXIF rotation.
        height: likewise.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return f"no file {path}", "check data.root and the images folder"
    try:
        # Only the header is decoded here.
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except Image.DecompressionBombError:
        return f"{path} has too many pixels", "cut it into tiles"
    except Exception as error:  # Pillow's readers raise many kinds for damaged files
        detail = "it is empty" if not data else str(error).split(" <")[0]
        return f"{path} is not a readable image ({detail})", _RESTORE
    if not is_whole(data):
        return f"{path} is truncated or damaged", _RESTORE
    upright = size[::-1] if turned else size
    if upright == (width, height):
        return None
    said = f"but the annotations say {width}x{height}"
    if turned and size == (width, height):
        return (
            f"{path} is {upright[0]}x{upright[1]} after its EXIF rotation {said}",
            "annotate the upright image, or remove its orientation tag if the annotations were "
            "made without it",
        )
    return (
        f"{path} is {upright[0]}x{upright[1]} {said}",
        "correct width and height in the annotations, or restore the annotated file",
    )


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _cache_file(index: AnnotationIndex) -> Path:
    names = hashlib.sha256(np.ascontiguousarray(index.file_name_bytes).tobytes())
    names.update(np.ascontiguousarray(index.file_name_offsets).tobytes())
    names.update(str(index.image_root.resolve()).encode())
    return cache_directory() / "images" / f"v{_VERSION}-{names.hexdigest()[:32]}.npy"


def _passed_before(cache: Path, state: np.ndarray) -> np.ndarray:
    """Which images are as they were when they passed, ``(N,)`` bool."""
    try:
        known = np.load(cache)
    except (OSError, ValueError):
        return np.zeros(len(state), dtype=bool)
    if known.shape != state.shape:
        return np.zeros(len(state), dtype=bool)
    return (known == state).all(axis=1) & (state[:, 0] >= 0)


def _remember(cache: Path, state: np.ndarray, good: np.ndarray) -> None:
    known = np.where(good[:, None], state, -1)
    temporary = cache.with_name(f"{cache.stem}.{os.getpid()}.tmp.npy")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(temporary, known)
        os.replace(temporary, cache)
    except OSError:
        # Only time is lost: the next start checks again.
        with contextlib.suppress(OSError):
            temporary.unlink()
