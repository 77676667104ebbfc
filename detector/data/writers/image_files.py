"""Brings a dataset's images to where a format wants them."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath

from detector.data.index import AnnotationIndex

WAYS = ("hardlink", "copy", "reference")


def placed_names(index: AnnotationIndex) -> list[str]:
    """Names for the images in one folder, which differ in more than their suffix.

    The files' own names where these do; else with the folders before them, joined by ``__``.

    Raises:
        ValueError: two images would still have one name.
    """
    paths = [PurePosixPath(index.file_name(image)) for image in range(len(index))]
    names = [path.name for path in paths]
    if _most_common(names) > 1:
        names = [
            "__".join(part for part in path.parts if part not in ("/", "..")) for path in paths
        ]
    if _most_common(names) > 1:
        counts = Counter(map(_stem, names))
        double = next(name for name in names if counts[_stem(name)] > 1)
        raise ValueError(
            f"{index.source_file}: two images would be called {PurePosixPath(double).stem}; rename "
            "one, labels go by an image's name without its suffix"
        )
    return names


def place_images(index: AnnotationIndex, names: list[str], folder: Path, way: str) -> int:
    """Links or copies the image files into a folder.

    Args:
        index: the dataset.
        names: of its images in ``folder``.
        folder: made if it is not there.
        way: ``"hardlink"`` (a copy where the file system cannot) or ``"copy"``.

    Returns:
        How many were copied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_copied = 0
    for source, name in zip(index.paths(), names, strict=True):
        # A link to a link would break when its folder moves.
        num_copied += _place(os.path.realpath(source), folder / name, way)
    return num_copied


def _place(source: str, target: Path, way: str) -> bool:
    if way == "hardlink":
        try:
            os.link(source, target)
            return False
        except FileExistsError:
            raise
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
    return True


def _stem(name: str) -> str:
    return PurePosixPath(name).stem.lower()  # some file systems do not tell a from A


def _most_common(names: list[str]) -> int:
    return max(Counter(map(_stem, names)).values(), default=0)
