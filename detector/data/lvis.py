"""Reads LVIS annotations into the annotation index.

Gupta, Dollar, Girshick, LVIS: A Dataset for Large Vocabulary Instance Segmentation, 2019. The files
are COCO's but for what a federated dataset adds: images say which classes are not in them
(``neg_category_ids``) and which are not annotated to the last object
(``not_exhaustive_category_ids``), categories how frequent they are, and images may have a
``coco_url`` in place of a file name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from detector.data.coco_records import parse_dataset
from detector.data.dataset import DetectionDataset
from detector.data.federated import FederatedLabels
from detector.data.file_digests import digest_files
from detector.data.index import AnnotationIndex
from detector.data.json_files import no_garbage_collection, read_json
from detector.data.problems import OnError
from detector.data.reading import cache_name, cached_index, check_index, check_paths
from detector.data.rings import offsets_of

# Part of the cache's key: raise it whenever reading the same file gives another index.
_READER_VERSION = 1


class LVISDataset(DetectionDataset):
    """LVIS annotations and COCO's images as augmented samples.

    Args:
        annotations: the JSON file, absolute or relative to ``root``.
        images: the folder that holds ``train2017`` and ``val2017``, likewise.
        augment, on_error, seed, root, keep_empty, proposals, max_proposals: see
            :class:`DetectionDataset`.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_lvis`.
    """

    metric = "lvis"

    def __init__(
        self,
        annotations: Path | str,
        images: Path | str,
        augment: Sequence[Any] | None = None,
        on_error: OnError = "raise",
        seed: int = 0,
        root: Path | str | None = None,
        keep_empty: bool = True,
        proposals: Path | str | None = None,
        max_proposals: int = 2000,
    ):
        base = Path(root) if root is not None else Path()
        index = read_lvis(base / annotations, base / images, on_error)
        self._use(index, augment, seed, keep_empty, proposals, max_proposals)


def read_lvis(
    annotations: Path | str,
    images: Path | str,
    on_error: OnError = "raise",
    check_files: bool = True,
) -> AnnotationIndex:
    """Reads an LVIS file as :func:`detector.data.coco.read_coco` reads COCO's.

    The file of an image without ``file_name`` is called as the last two parts of its ``coco_url``,
    such as ``train2017/000000391895.jpg``.

    Returns:
        The index, with :attr:`AnnotationIndex.federated`.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: the file is not LVIS JSON, the dataset is empty, or records are damaged.
    """
    annotations, images = check_paths(annotations, images)
    return check_index(
        cached_index(
            cache_name("lvis", _READER_VERSION, digest_files([annotations])),
            annotations,
            images,
            lambda: _parse(annotations, images),
        ),
        on_error,
        check_files,
    )


def _parse(annotations: Path, images: Path) -> AnnotationIndex:
    with no_garbage_collection():
        return parse_lvis(read_json(annotations), annotations, images)


def parse_lvis(data: Any, source_file: Path, image_root: Path) -> AnnotationIndex:
    """Checks and flattens a parsed LVIS file, see :func:`parse_dataset`."""
    records = data.get("images") if isinstance(data, dict) else None
    for record in records if isinstance(records, list) else ():
        if isinstance(record, dict) and "file_name" not in record:
            record["file_name"] = _file_name(record.get("coco_url"))
    index = parse_dataset(data, source_file, image_root)
    index.federated = _read_federated(data, index, source_file)
    return index


def _file_name(url: Any) -> str | None:
    try:
        parts = urlparse(url).path.split("/") if isinstance(url, str) else []
    except ValueError:
        return None
    return "/".join(parts[-2:]) or None


def _read_federated(data: dict, index: AnnotationIndex, file: Path) -> FederatedLabels:
    label_of = {identifier: label for label, identifier in enumerate(index.category_ids.tolist())}
    record_of: dict[int, dict] = {}
    for record in data["images"]:
        if isinstance(record, dict) and type(record.get("id")) is int:
            record_of.setdefault(record["id"], record)
    columns = {}
    for kind, key in (
        ("negative", "neg_category_ids"),
        ("not_exhaustive", "not_exhaustive_category_ids"),
    ):
        labels, lengths = [], []
        for identifier in index.image_ids.tolist():
            categories = record_of[identifier].get(key)
            try:
                found = [label_of[category] for category in categories]
            except (TypeError, KeyError):
                raise ValueError(
                    f"{file}: image {identifier}: {key} is {categories!r}, no list of category "
                    "ids; LVIS files have it for every image. Read other COCO files with data=coco"
                ) from None
            labels += found
            lengths.append(len(found))
        columns[f"{kind}_offsets"] = offsets_of(np.array(lengths, dtype=np.int64))
        columns[f"{kind}_labels"] = np.array(labels, dtype=np.int32)
    by_id = {record["id"]: record.get("frequency") for record in data["categories"]}
    frequencies = [by_id[identifier] for identifier in index.category_ids.tolist()]
    if any(frequency not in ("r", "c", "f") for frequency in frequencies):
        frequencies = []
    return FederatedLabels(**columns, frequencies=frequencies)
