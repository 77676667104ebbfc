"""Checks image files before the first step: there, whole, and of the size the annotations say."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from detector.data.index import AnnotationIndex, cache_directory
from detector.data.problems import Problem

# Part of the cache's name: raise it when a check becomes stricter.
_VERSION = 1

_EXIF_ORIENTATION = 0x0112
_RESTORE = "restore the file, or remove it from the annotations"


def check_images(index: AnnotationIndex) -> tuple[np.ndarray, list[Problem]]:
    """Checks every image file of a dataset.

    A JPEG is whole when its end marker follows its first scan, a PNG when its chunks have the right
    checksums up to the last; other formats are decoded. Files that passed are remembered by size
    and modification time, so that the next start only asks the file system.

    Returns:
        good: ``(N,)`` bool.
        problems: one per image that is not good.
    """
    paths = [str(index.path(i)) for i in range(len(index))]
    stamps = np.array([_stamp(path) for path in paths], dtype=np.int64).reshape(-1, 2)
    sizes = np.stack([index.widths, index.heights], axis=1).astype(np.int64)
    state = np.concatenate([stamps, sizes], axis=1)

    cache = _cache_file(index)
    good = _passed_before(cache, state)
    todo = np.flatnonzero(~good)
    problems: list[Problem] = []
    if len(todo) == 0:
        return good, problems

    def check(i: int) -> str | None:
        return find_image_fault(paths[i], int(index.widths[i]), int(index.heights[i]))

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for i, fault in zip(todo, pool.map(check, todo, chunksize=64), strict=True):
            if fault is None:
                good[i] = True
            else:
                record = f"image {index.image_ids[i]} ({index.file_name(i)})"
                what, remedy = fault.split("; ", 1)
                problems.append(Problem("image", record, what, remedy))
    _remember(cache, state, good)
    return good, problems


def find_image_fault(path: str | Path, width: int, height: int) -> str | None:
    """What is wrong with an image file, as ``"what; remedy"``, or ``None``.

    Args:
        path: the image file.
        width: expected pixels, after EXIF rotation.
        height: likewise.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return f"no file {path}; check data.root and the images folder"
    try:
        # Only the header is decoded here.
        with Image.open(io.BytesIO(data)) as image:
            file_width, file_height = image.size
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
            image_format = image.format
    except (OSError, SyntaxError, ValueError) as error:
        detail = "it is empty" if not data else str(error).split(" <")[0]
        return f"{path} is not a readable image ({detail}); {_RESTORE}"
    turned = orientation in (5, 6, 7, 8)
    if turned:
        file_width, file_height = file_height, file_width
    if not _is_whole(data, image_format):
        return f"{path} is truncated or damaged; {_RESTORE}"
    if (file_width, file_height) != (width, height):
        if turned and (file_height, file_width) == (width, height):
            return (
                f"{path} is {file_width}x{file_height} after its EXIF rotation but the annotations "
                f"say {width}x{height}; annotate the upright image, or remove its orientation tag "
                "if the annotations were made without it"
            )
        return (
            f"{path} is {file_width}x{file_height} but the annotations say {width}x{height}; "
            "correct width and height in the annotations, or restore the annotated file"
        )
    return None


def _is_whole(data: bytes, image_format: str | None) -> bool:
    if image_format in ("JPEG", "MPO"):
        return _is_whole_jpeg(data)
    if image_format == "PNG":
        return _is_whole_png(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _is_whole_jpeg(data: bytes) -> bool:
    # Segments carry their length, so a thumbnail's own end marker is stepped over. In the coded
    # data after the first scan header, FF D9 can only be the end.
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return False
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 2
            continue
        if marker == 0xDA:
            return data.rfind(b"\xff\xd9", position) >= 0
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    return False


def _is_whole_png(data: bytes) -> bool:
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            return False
        (stored,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != stored:
            return False
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position = end
    return False


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
        temporary.unlink(missing_ok=True)
