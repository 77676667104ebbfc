"""Reads folders of Labelme files into the annotation index.

Labelme writes one JSON file beside each image:

    {"imagePath": "a.jpg", "imageWidth": 640, "imageHeight": 480, "imageData": null,
     "shapes": [{"label": "cat", "shape_type": "polygon", "points": [[x, y], ...],
                 "group_id": null, "flags": {}}, ...]}

Polygons, circles and mask shapes are objects with masks, rectangles are boxes. Shapes with one
``group_id`` and label are parts of one object. A shape with the flag ``crowd`` is a crowd region.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.data.class_names import choose_classes
from detector.data.dataset import DetectionDataset
from detector.data.file_digests import digest_files
from detector.data.index import AnnotationIndex
from detector.data.labelme_records import parse_files
from detector.data.problems import OnError
from detector.data.reading import cache_name, cached_index, check_index

# Part of the cache's key: raise it whenever reading the same files gives another index.
_READER_VERSION = 2


class LabelmeDataset(DetectionDataset):
    """A folder of Labelme files and their images as augmented samples.

    Args:
        annotations: the folder of the JSON files, absolute or relative to ``root``.
        classes: the names in the order of the labels, or a file with one per line; by default
            ``classes.txt`` or ``labels.txt`` in ``root`` where there is one, else the names that
            the shapes have, sorted.
        augment, on_error, seed, root, keep_empty, proposals, max_proposals: see
            :class:`DetectionDataset`.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_labelme`.
    """

    def __init__(
        self,
        annotations: Path | str,
        classes: Sequence[str] | str | None = None,
        augment: Sequence[Any] | None = None,
        on_error: OnError = "raise",
        seed: int = 0,
        root: Path | str | None = None,
        keep_empty: bool = True,
        proposals: Path | str | None = None,
        max_proposals: int = 2000,
    ):
        base = Path(root) if root is not None else Path()
        index = read_labelme(base / annotations, choose_classes(classes, base), on_error)
        self._use(index, augment, seed, keep_empty, proposals, max_proposals)


def read_labelme(
    annotations: Path | str,
    classes: Sequence[str] | None = None,
    on_error: OnError = "raise",
    check_files: bool = True,
) -> AnnotationIndex:
    """Reads all JSON files below a folder and checks every shape and every image file.

    The result is cached by the files' content: a second call parses nothing.

    Args:
        annotations: the folder.
        classes: the names in the order of the labels; by default those of the shapes, sorted.
        on_error: ``"raise"`` refuses damaged records, all in one message; ``"skip"`` leaves them
            out, names them once in the log and keeps them in ``index.skipped``.
        check_files: whether to look at the image files too.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it holds no JSON file, or records are damaged.
    """
    folder = Path(annotations)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder of Labelme files; check data.root and the annotations path"
        )
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise ValueError(f"{folder}: empty dataset, it holds no JSON file; annotate its images")
    names = [file.relative_to(folder).as_posix() for file in files]
    return check_index(
        cached_index(
            cache_name("labelme", _READER_VERSION, classes, names, digest_files(files)),
            folder,
            folder,
            lambda: parse_files(names, classes, folder),
        ),
        on_error,
        check_files,
    )
