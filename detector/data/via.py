"""Reads annotations of the VGG Image Annotator (VIA 2) into the annotation index.

Dutta and Zisserman, The VIA Annotation Software for Images, Audio and Video, 2019. Its projects,
its exported JSON and its exported CSV are read alike. Polygons, polylines of three points or more,
circles and ellipses are objects with masks, rectangles are boxes. The class of a region is one of
its attributes. A region with the attribute ``crowd`` set to 1 or true is a crowd region.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.data.class_names import choose_classes
from detector.data.dataset import DetectionDataset
from detector.data.file_digests import digest_files
from detector.data.index import AnnotationIndex
from detector.data.problems import OnError
from detector.data.reading import cache_name, cached_index, check_index, check_paths
from detector.data.via_records import parse_file

# Part of the cache's key: raise it whenever reading the same files gives another index.
_READER_VERSION = 2


class VIADataset(DetectionDataset):
    """A VIA project's images and regions as augmented samples.

    Args:
        annotations: the project, or the JSON or CSV exported from it, absolute or relative to
            ``root``.
        images: the folder of the images, likewise.
        classes: the names in the order of the labels, or a file with one per line; by default
            ``classes.txt`` in ``root`` where there is one, else the regions', sorted.
        attribute: the attribute of a region that names its class; by default the only one there
            is. With one class, regions need none.
        augment, on_error, seed, root, keep_empty, proposals, max_proposals: see
            :class:`DetectionDataset`.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_via`.
    """

    def __init__(
        self,
        annotations: Path | str,
        images: Path | str,
        classes: Sequence[str] | str | None = None,
        attribute: str | None = None,
        augment: Sequence[Any] | None = None,
        on_error: OnError = "raise",
        seed: int = 0,
        root: Path | str | None = None,
        keep_empty: bool = True,
        proposals: Path | str | None = None,
        max_proposals: int = 2000,
    ):
        base = Path(root) if root is not None else Path()
        names = choose_classes(classes, base)
        index = read_via(base / annotations, base / images, names, attribute, on_error)
        self._use(index, augment, seed, keep_empty, proposals, max_proposals)


def read_via(
    annotations: Path | str,
    images: Path | str,
    classes: Sequence[str] | None = None,
    attribute: str | None = None,
    on_error: OnError = "raise",
    check_files: bool = True,
) -> AnnotationIndex:
    """Reads a file of VIA and checks every region and every image file.

    The result is cached by the file's content: a second call parses nothing.

    Args:
        annotations: the project, or the JSON or CSV exported from it.
        images: the folder that holds the files it names.
        classes: the names in the order of the labels; by default those of the regions, sorted.
        attribute: see :class:`VIADataset`.
        on_error: ``"raise"`` refuses damaged records, all in one message; ``"skip"`` leaves them
            out, names them once in the log and keeps them in ``index.skipped``.
        check_files: whether to look at the image files too.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: the file is not VIA's, which attribute names the class is open, or records are
            damaged.
    """
    file, folder = check_paths(annotations, images, "VIA file")
    content = (classes, attribute, str(folder.resolve()), digest_files([file]))
    return check_index(
        cached_index(
            cache_name("via", _READER_VERSION, *content),
            file,
            folder,
            lambda: parse_file(file, folder, classes, attribute),
            sizes_from_images=True,
        ),
        on_error,
        check_files,
    )
