"""Reads datasets in the layout of the YOLO tools into the annotation index.

A YAML file names the classes and where images are:

    path: .                 # folder of the dataset; relative to the YAML file
    train: images/train     # a folder, a text file with one image per line, or a list of these
    val: images/val
    names: [cat, dog]       # or {0: cat, 1: dog}

The labels of ``images/train/a.jpg`` are in ``labels/train/a.txt`` (the last folder called
``images`` becomes ``labels``), one object per line, in fractions of the image's width and height:

    class cx cy w h                  a box
    class x1 y1 x2 y2 x3 y3 ...      a polygon, whose extent is the box

An image without such a file, or with an empty one, has no objects.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from detector.data.class_names import choose_classes
from detector.data.dataset import DetectionDataset
from detector.data.file_digests import digest_files, stamp_files
from detector.data.image_sizes import read_image_sizes
from detector.data.index import AnnotationIndex
from detector.data.problems import OnError
from detector.data.reading import cache_name, cached_index, check_index
from detector.data.yolo_records import YOLOImage, parse_images

# Part of the cache's key: raise it whenever reading the same files gives another index.
_READER_VERSION = 1

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".dng", ".jpeg", ".jpg", ".jp2", ".mpo", ".png", ".tif", ".tiff", ".webp")
)


class YOLODataset(DetectionDataset):
    """A YOLO dataset's images and annotations as augmented samples.

    Args:
        annotations: the YAML file, absolute or relative to ``root``.
        split: which of its splits, ``train``, ``val`` or another key.
        augment, on_error, seed, root, keep_empty, proposals, max_proposals: see
            :class:`DetectionDataset`.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_yolo`.
    """

    def __init__(
        self,
        annotations: Path | str,
        split: str,
        augment: Sequence[Any] | None = None,
        on_error: OnError = "raise",
        seed: int = 0,
        root: Path | str | None = None,
        keep_empty: bool = True,
        proposals: Path | str | None = None,
        max_proposals: int = 2000,
    ):
        base = Path(root) if root is not None else Path()
        index = read_yolo(base / annotations, split, on_error)
        self._use(index, augment, seed, keep_empty, proposals, max_proposals)


def read_yolo(
    annotations: Path | str, split: str, on_error: OnError = "raise", check_files: bool = True
) -> AnnotationIndex:
    """Reads one split of a YOLO dataset and checks every line and every image file.

    Category ids are the classes' numbers plus 1. The result is cached by the content of the label
    files: a second call parses nothing.

    Args:
        annotations: the YAML file.
        split: the key of the split in it.
        on_error: ``"raise"`` refuses damaged records, all in one message; ``"skip"`` leaves them
            out, names them once in the log and keeps them in ``index.skipped``.
        check_files: whether to look at the image files too.

    Raises:
        FileNotFoundError: the YAML file, or what it names, does not exist.
        ValueError: the YAML file makes no sense, there are no labels, or records are damaged.
    """
    file = Path(annotations)
    settings = _read_settings(file)
    names = _read_names(settings, file)
    paths = _list_images(settings, split, file)
    root = Path(os.path.commonpath([path.parent for path in paths]))
    labels = [label_file(path) for path in paths]
    if not any(path.is_file() for path in labels):
        raise FileNotFoundError(
            f"{labels[0]}: no such label file, nor one for any other image of {split}; labels lie "
            "in a folder labels beside images, under the images' names"
        )
    # Sizes come from the images, so these count too.
    files = [str(path) for path in paths]
    content = (names, files, digest_files(labels), stamp_files(files).tobytes().hex())

    def parse() -> AnnotationIndex:
        sizes = read_image_sizes(paths)
        images = [
            YOLOImage(path.relative_to(root).as_posix(), size, label)
            for path, size, label in zip(paths, sizes, labels, strict=True)
        ]
        return parse_images(images, names, file, root)

    name = cache_name("yolo", _READER_VERSION, *content)
    return check_index(cached_index(name, file, root, parse), on_error, check_files)


def label_file(image: Path) -> Path:
    """Where the labels of an image are."""
    parts = list(image.parts)
    for place in reversed(range(len(parts) - 1)):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such YAML file; it names the classes and the folders of a YOLO dataset"
        )
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: not a YAML file ({reason}); correct it") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: holds no settings; write path, train, val and names")
    if settings.get("kpt_shape") is not None:
        raise ValueError(
            f"{file}: has keypoints (kpt_shape), which are not read from this format; convert the "
            "dataset to COCO's"
        )
    return settings


def _read_names(settings: dict[str, Any], file: Path) -> list[str]:
    names = settings.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise ValueError(
                f"{file}: names has the numbers {list(names)[:20]}; number the classes from 0 on"
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise ValueError(f"{file}: there is no list names; name the classes: names: [cat, dog]")
    try:
        names = choose_classes([str(name) for name in names], file.parent)
    except ValueError as error:
        raise ValueError(f"{file}: names: {error}") from None
    if settings.get("nc", len(names)) != len(names):
        raise ValueError(
            f"{file}: nc is {settings['nc']!r} but there are {len(names)} names; correct one"
        )
    return names


def _list_images(settings: dict[str, Any], split: str, file: Path) -> list[Path]:
    sources = settings.get(split)
    if sources is None:
        there = [key for key in ("train", "val", "test") if settings.get(key) is not None]
        raise ValueError(
            f"{file}: there is no {split}; it has {', '.join(there) or 'no split'}. Name the "
            "folder of its images"
        )
    sources = sources if isinstance(sources, list) else [sources]
    if not sources or not all(isinstance(source, str) and source for source in sources):
        raise ValueError(f"{file}: {split} is {settings[split]!r}; name a folder of images")
    path = settings.get("path") or "."
    if not isinstance(path, str):
        raise ValueError(f"{file}: path is {path!r}; name the folder of the dataset")
    base = Path(os.path.abspath(file.parent / path))
    images: list[Path] = []
    for source in sources:
        images += _list_source(_absolute(base, source), base)
    if not images:
        raise ValueError(f"{file}: empty dataset, {split} has no image; add images")
    return list(dict.fromkeys(images))


def _list_source(source: Path, base: Path) -> list[Path]:
    try:
        if source.is_dir():
            return sorted(
                path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
            )
        if source.is_file():
            lines = source.read_text(encoding="utf-8-sig").splitlines()
            lines = [line.strip() for line in lines if line.strip()]
            # "./" in such a list means the list's own folder, as in the tools that write it.
            return [
                _absolute(source.parent if line.startswith("./") else base, line) for line in lines
            ]
    except (ValueError, OSError) as error:
        raise ValueError(f"{source}: not a list of images ({error}); correct it") from error
    raise FileNotFoundError(
        f"{source}: no such folder or list of images; check path, train and val of the YAML file"
    )


def _absolute(base: Path, path: str) -> Path:
    return Path(os.path.abspath(base / path))
