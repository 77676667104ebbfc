"""Reads PASCAL VOC annotations into the annotation index, and checks them on the way.

Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, 2010. A folder such as
``VOCdevkit/VOC2007`` holds

    Annotations/<name>.xml    the objects of one image
    ImageSets/Main/<split>.txt    the names of the images of a split, one per line
    JPEGImages/<name>.jpg
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.data.dataset import DetectionDataset
from detector.data.index import AnnotationIndex
from detector.data.problems import OnError
from detector.data.reading import cached_index, check_index
from detector.data.voc_records import Entry, parse_entries

# Part of the cache's key: raise it whenever reading the same files gives another index.
_READER_VERSION = 3

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


class VOCDataset(DetectionDataset):
    """PASCAL VOC annotations and their images as augmented samples; boxes only.

    Difficult objects are never targets, and neither right nor wrong in evaluation.

    Args:
        splits: pairs ``(folder, split)`` to read one after another, such as
            ``[("VOC2007", "trainval"), ("VOC2012", "trainval")]``.
        classes: the names in the order of the labels; by default the 20 of the challenge.
        augment, on_error, seed, keep_empty, proposals, max_proposals: see
            :class:`DetectionDataset`.
        root: folder that the folders of ``splits`` are relative to.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_voc`.
    """

    metric = "voc"

    def __init__(
        self,
        splits: Sequence[Sequence[str]],
        classes: Sequence[str] | None = None,
        augment: Sequence[Any] | None = None,
        on_error: OnError = "raise",
        seed: int = 0,
        root: Path | str | None = None,
        keep_empty: bool = True,
        proposals: Path | str | None = None,
        max_proposals: int = 2000,
    ):
        base = Path(root) if root is not None else Path()
        pairs = [(base / folder, name) for folder, name in _check_splits(splits)]
        index = read_voc(pairs, classes, on_error)
        self._use(index, augment, seed, keep_empty, proposals, max_proposals)


def read_voc(
    splits: Sequence[tuple[Path | str, str]],
    classes: Sequence[str] | None = None,
    on_error: OnError = "raise",
    check_files: bool = True,
) -> AnnotationIndex:
    """Reads splits of VOC folders and checks every record and every image file.

    VOC numbers pixels from 1 and counts both ends in; boxes of the index are continuous:
    ``(xmin - 1, ymin - 1, xmax, ymax)``. Difficult objects are marked in ``index.crowd``. An image
    has the id that its name spells (``000012`` 12, ``2008_000002`` 2008000002), any other name a
    number of 16 digits made from it; it is the same in every split.

    The result is cached by the content of all files: a second call parses nothing.

    Args:
        splits: pairs ``(folder, split)``.
        classes: the names in the order of the labels; by default the 20 of the challenge.
        on_error: ``"raise"`` refuses damaged records, all in one message; ``"skip"`` leaves them
            out, names them once in the log and keeps them in ``index.skipped``.
        check_files: whether to look at the image files too.

    Raises:
        FileNotFoundError: a folder or a split does not exist.
        ValueError: the list of splits or classes makes no sense, the dataset is empty, or records
            are damaged.
    """
    names = _check_classes(VOC_CLASSES if classes is None else classes)
    splits = _check_splits(splits)
    folders = [Path(os.path.abspath(folder)) for folder, _ in splits]
    root = Path(os.path.commonpath(folders))
    files = [_split_file(Path(folder), split) for folder, split in splits]
    entries: list[Entry] = []
    for folder, file in zip(folders, files, strict=True):
        entries += _read_split(file, folder, root)

    source_file = Path(" + ".join(map(str, files)))
    digest = hashlib.sha256(json.dumps([len(entries), names]).encode())
    for entry in entries:
        for part in (entry.folder.encode(), entry.name.encode(), entry.content or b""):
            digest.update(b"%d:" % len(part) + part)
    return check_index(
        cached_index(
            f"voc-v{_READER_VERSION}-{digest.hexdigest()[:32]}",
            source_file,
            root,
            lambda: parse_entries(entries, names, source_file, root),
        ),
        on_error,
        check_files,
    )


def _check_splits(splits: Any) -> list[tuple[Path | str, str]]:
    example = "write for example [[VOC2007, trainval], [VOC2012, trainval]]"
    if not isinstance(splits, list | tuple) or not splits:
        raise ValueError(f"splits is {splits!r}; {example}")
    for pair in splits:
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or not isinstance(pair[0], str | Path)
        ):
            raise ValueError(f"splits holds {pair!r}, which is no [folder, split]; {example}")
    return [(folder, str(split)) for folder, split in splits]


def _check_classes(classes: Any) -> list[str]:
    if not isinstance(classes, list | tuple) or not classes:
        raise ValueError(f"classes is {classes!r}; list the names, such as [cat, dog]")
    for name in classes:
        if not isinstance(name, str) or not name:
            raise ValueError(f"classes holds {name!r}, which is no name; write it in quotes")
        if list(classes).count(name) > 1:
            raise ValueError(f'classes holds "{name}" twice; remove one')
    return list(classes)


def _split_file(folder: Path, split: str) -> Path:
    for part in (folder, folder / "Annotations", folder / "JPEGImages"):
        if not part.is_dir():
            raise FileNotFoundError(
                f"{part}: no such folder; check data.root and the splits, whose folders hold "
                "Annotations, ImageSets/Main and JPEGImages"
            )
    file = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        there = sorted(path.stem for path in file.parent.glob("*.txt"))
        raise FileNotFoundError(
            f'{file}: no such split; "{folder.name}" has {", ".join(there[:20]) or "none"}'
        )
    return file


def _read_split(file: Path, folder: Path, root: Path) -> list[Entry]:
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not a text file ({error}); fetch it again") from error
    names = [name for name in names if name]
    if not names:
        raise ValueError(f"{file}: empty split; write one image name per line")
    relative = folder.relative_to(root).as_posix()
    prefix = "" if relative == "." else f"{relative}/"
    return [Entry(prefix, name, _read_bytes(folder, name)) for name in names]


def _read_bytes(folder: Path, name: str) -> bytes | None:
    try:
        return (folder / "Annotations" / f"{name}.xml").read_bytes()
    except (OSError, ValueError):  # ValueError: no file can have the name
        return None  # listed with the damaged records
