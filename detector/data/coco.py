"""Reads COCO annotations, instances or keypoints, into the annotation index, and checks them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from detector.data.coco_records import parse_dataset
from detector.data.coco_text import RecordScanner
from detector.data.file_digests import digest_files
from detector.data.index import AnnotationIndex
from detector.data.json_files import (
    NotRecords,
    find_records,
    no_garbage_collection,
    parse_json,
    read_content,
    read_records,
)
from detector.data.problems import OnError
from detector.data.reading import cache_name, cached_index, check_index, check_paths
from detector.data.slow_work import slow_work

# Part of the cache's key: raise it whenever reading the same file gives another index.
_READER_VERSION = 6


_WORTH_SAYING = 100_000_000  # bytes; some seconds

_logger = logging.getLogger(__name__)


def read_coco(
    annotations: Path | str,
    images: Path | str,
    on_error: OnError = "raise",
    check_files: bool = True,
    keypoint_flip: Sequence[Sequence[str]] | None = None,
) -> AnnotationIndex:
    """Reads a COCO ``instances`` or ``person_keypoints`` file, checks its records and image files.

    The result is cached by the file's content: a second call maps arrays and parses nothing.

    Args:
        annotations: the JSON file.
        images: the folder that holds the files it names.
        on_error: ``"raise"`` refuses damaged records, all in one message; ``"skip"`` leaves them
            out, names them once in the log and keeps them in ``index.skipped``.
        check_files: whether to look at the image files too.
        keypoint_flip: pairs of names of keypoints that change places in a mirror; by default
            ``left_*`` and ``right_*``.

    Returns:
        The index. Categories may have any ids; labels are their ranks.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: the file is not COCO JSON, the dataset is empty, or records are damaged.
    """
    annotations, images = check_paths(annotations, images)
    index = cached_index(
        cache_name("coco", _READER_VERSION, digest_files([annotations]), keypoint_flip),
        annotations,
        images,
        lambda: _parse(annotations, images, keypoint_flip),
    )
    return check_index(index, on_error, check_files)


def _parse(
    annotations: Path, images: Path, keypoint_flip: Sequence[Sequence[str]] | None
) -> AnnotationIndex:
    content = read_content(annotations)
    if len(content) >= _WORTH_SAYING:
        _logger.info("Reading %s (%d MB), once", annotations, len(content) / 1e6)
    with (
        no_garbage_collection(),
        slow_work(f"reading {annotations.name}", len(content), "bytes") as advance,
    ):
        try:
            data, start, stop = find_records(content, "annotations")
            advance(len(content) - (stop - start))
            pieces = read_records(content, start, stop, RecordScanner(), advance)
            return parse_dataset(data, annotations, images, keypoint_flip, pieces)
        except (NotRecords, ValueError):
            # What is wrong, if anything is, shows in the whole.
            data = parse_json(bytes(content), annotations)
        return parse_dataset(data, annotations, images, keypoint_flip)
