"""Several datasets as one; their classes are matched by name."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detector.data.dataset import DetectionDataset
from detector.data.index import AnnotationIndex
from detector.data.rings import offsets_of, ranges

_logger = logging.getLogger(__name__)


class ConcatDataset(DetectionDataset):
    """The images of several datasets one after another, as augmented samples.

    Args:
        datasets: the datasets by a name for messages; their own augmentation has no effect.
        classes: the names in the order of the labels; by default all that the datasets have, in
            the order in which they are found.
        rename: other names for classes of the datasets, such as ``{"automobile": "car"}``; several
            may become one.
        drop: classes (as the datasets call them) whose objects are left out.
        augment, seed, keep_empty, proposals, max_proposals: see :class:`DetectionDataset`.

    Raises:
        ValueError: there is no dataset, or the classes do not fit together.
    """

    def __init__(
        self,
        datasets: Mapping[str, DetectionDataset],
        classes: Sequence[str] | None = None,
        rename: Mapping[str, str] | None = None,
        drop: Sequence[str] = (),
        augment: Sequence[Any] | None = None,
        seed: int = 0,
        keep_empty: bool = True,
        proposals: Path | str | None = None,
        max_proposals: int = 2000,
    ):
        if not datasets:
            raise ValueError("datasets is empty; name at least one dataset to read")
        self.metric = "voc" if all(each.metric == "voc" for each in datasets.values()) else "coco"
        indices = {name: dataset.index for name, dataset in datasets.items()}
        index = concatenate(indices, classes, rename or {}, drop or ())
        self._use(index, augment, seed, keep_empty, proposals, max_proposals)


def concatenate(
    indices: Mapping[str, AnnotationIndex],
    classes: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
) -> AnnotationIndex:
    """One index of several, in memory; the arguments are :class:`ConcatDataset`'s.

    Images and annotations keep their ids where these are unique, else all are numbered anew from
    1. Keypoints remain where all datasets have the same. What a federated dataset has not looked
    for is not kept, since the other classes would be unknown in it.

    Raises:
        ValueError: a class is in no dataset, or in a dataset but neither in ``classes`` nor in
            ``drop``; or nothing is left to learn from.
    """
    rename, drop = dict(rename or {}), list(drop or ())
    names = _class_names(indices, classes, rename, drop)
    label_of = {name: label for label, name in enumerate(names)}
    parts = []
    for index in indices.values():
        kept = [name not in drop for name in index.category_names]
        mapped = [
            label_of[rename.get(name, name)] if keep else 0
            for name, keep in zip(index.category_names, kept, strict=True)
        ]
        part = index
        if not all(kept):
            part = _keep_annotations(index, np.array(kept)[index.labels])
        parts.append((part, np.array(mapped, dtype=np.int32)[part.labels]))
    joined = _join([part for part, _ in parts], [labels for _, labels in parts], names)
    if not (~joined.crowd).any():
        raise ValueError(f"{joined.source_file}: no object is left; drop fewer classes")
    return joined


def _class_names(
    indices: Mapping[str, AnnotationIndex],
    classes: Sequence[str] | None,
    rename: dict[str, str],
    drop: list[str],
) -> list[str]:
    there = [name for index in indices.values() for name in index.category_names]
    for setting, given in (("rename", rename), ("drop", drop)):
        for name in given:
            if name not in there:
                raise ValueError(
                    f'{setting} names "{name}", which no dataset has; they have '
                    f"{', '.join(dict.fromkeys(there))}"
                )
    for name in drop:
        if name in rename:
            raise ValueError(f'"{name}" is in both rename and drop; choose one')
    found: dict[str, str] = {}  # by dataset, for messages
    for dataset, index in indices.items():
        for name in index.category_names:
            if name not in drop:
                found.setdefault(rename.get(name, name), dataset)
    if classes is None:
        if not found:
            raise ValueError("drop leaves no class; drop fewer")
        return list(found)
    names = list(classes)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'classes holds "{name}" twice; remove one')
        if name not in found:
            raise ValueError(
                f'classes holds "{name}", which no dataset has; they have {", ".join(found)}'
            )
    for name, dataset in found.items():
        if name not in names:
            raise ValueError(
                f'dataset "{dataset}" has the class "{name}", which is not in classes; add it, '
                "rename it, or leave its objects out with drop"
            )
    return names


def _keep_annotations(index: AnnotationIndex, keep: np.ndarray) -> AnnotationIndex:
    """An index in memory of the annotations where ``keep``, ``(M,)`` bool, is true."""
    rows = np.flatnonzero(keep)
    rings_per_row = np.diff(index.ring_offsets)[rows]
    rings = ranges(index.ring_offsets[rows], rings_per_row)
    lengths = np.diff(index.vertex_offsets)[rings]
    before = np.concatenate([[0], np.cumsum(keep)])
    return dataclasses.replace(
        index,
        annotation_offsets=before[index.annotation_offsets],
        annotation_ids=index.annotation_ids[rows],
        boxes=index.boxes[rows],
        labels=index.labels[rows],
        crowd=index.crowd[rows],
        ring_offsets=offsets_of(rings_per_row),
        vertex_offsets=offsets_of(lengths),
        vertices=index.vertices[ranges(index.vertex_offsets[rings], lengths)],
        keypoints=index.keypoints[rows],
        directory=None,
    )


def _join(
    parts: list[AnnotationIndex], labels: list[np.ndarray], names: list[str]
) -> AnnotationIndex:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    def offsets(name: str) -> np.ndarray:
        return offsets_of(np.concatenate([np.diff(getattr(part, name)) for part in parts]))

    root, files = _file_names(parts)
    first = parts[0]
    described = [(part.keypoint_names, part.keypoint_flip) for part in parts]
    same_keypoints = all(each == described[0] for each in described)
    if not same_keypoints:
        _logger.warning("The datasets have different keypoints, which are left out.")
    return AnnotationIndex(
        image_ids=_unique(joined("image_ids"), "image"),
        widths=joined("widths"),
        heights=joined("heights"),
        file_name_bytes=np.frombuffer(b"".join(files), dtype=np.uint8),
        file_name_offsets=offsets_of(np.array([len(file) for file in files], dtype=np.int64)),
        annotation_offsets=offsets("annotation_offsets"),
        annotation_ids=_unique(joined("annotation_ids"), "annotation"),
        boxes=joined("boxes"),
        labels=np.concatenate(labels),
        crowd=joined("crowd"),
        ring_offsets=offsets("ring_offsets"),
        vertex_offsets=offsets("vertex_offsets"),
        vertices=joined("vertices"),
        category_ids=np.arange(1, len(names) + 1),
        category_names=names,
        source_file=Path(" + ".join(str(part.source_file) for part in parts)),
        image_root=root,
        keypoints=joined("keypoints") if same_keypoints else None,
        keypoint_names=first.keypoint_names if same_keypoints else [],
        keypoint_flip=first.keypoint_flip if same_keypoints else [],
        skeleton=first.skeleton if same_keypoints else [],
        keypoint_sigmas=first.keypoint_sigmas if same_keypoints else None,
        source_format="concat",
        skipped=[problem for part in parts for problem in part.skipped],
    )


def _file_names(parts: list[AnnotationIndex]) -> tuple[Path, list[bytes]]:
    """A folder that holds the images of all parts, and their names in it."""
    roots = [os.path.abspath(part.image_root) for part in parts]
    try:
        common = os.path.commonpath(roots)
    except ValueError:  # on several drives
        common = ""
    files = []
    for part, root in zip(parts, roots, strict=True):
        prefix = Path(os.path.relpath(root, common) if common else root).as_posix()
        start = b"" if prefix == "." else f"{prefix}/".encode()
        names, ends = bytes(part.file_name_bytes), part.file_name_offsets.tolist()
        for image in range(len(part)):
            name = names[ends[image] : ends[image + 1]]
            files.append(name if os.path.isabs(name) else start + name)
    return Path(common), files


def _unique(ids: np.ndarray, what: str) -> np.ndarray:
    if len(np.unique(ids)) == len(ids):
        return ids
    _logger.info("Several datasets use the same %s ids; all are numbered anew.", what)
    return np.arange(1, len(ids) + 1)
