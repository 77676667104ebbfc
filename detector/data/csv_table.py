"""Reads a plain table of objects (CSV) into the annotation index.

The first line names the columns, in any order; others are passed over:

    image      the image file, relative to the folder of the images
    x1,y1,x2,y2    the box in continuous pixels: left, top, right and bottom edge
    label      the name of the class
    polygon    optional: x y pairs with blanks between, parts of one mask with ; between
    crowd      optional: 1 for a region that is neither a target nor a false positive

One line per object. An image without objects stands on a line whose other fields are empty. With a
polygon the four fields of the box may be empty: the polygon's extent is the box.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from detector.data.class_names import choose_classes
from detector.data.dataset import DetectionDataset
from detector.data.file_digests import digest_files
from detector.data.image_sizes import read_image_sizes
from detector.data.index import AnnotationIndex
from detector.data.index_builder import IndexBuilder
from detector.data.problems import DamagedRecord, OnError
from detector.data.reading import cache_name, cached_index, check_index, check_paths

# Part of the cache's key: raise it whenever reading the same files gives another index.
_READER_VERSION = 2

BOX_COLUMNS = ("x1", "y1", "x2", "y2")
COLUMNS = ("image", *BOX_COLUMNS, "label")
OPTIONAL_COLUMNS = ("polygon", "crowd")
_FIX_LINE = "correct the line or remove it"

Row = tuple[int, dict[str, str]]
"""A line's number, and its fields by column."""


class CSVDataset(DetectionDataset):
    """A table's images and objects as augmented samples.

    Args:
        annotations: the CSV file, absolute or relative to ``root``.
        images: the folder of the images, likewise.
        classes: the names in the order of the labels, or a file with one per line; by default
            ``classes.txt`` in ``root`` where there is one, else the table's, sorted.
        augment, on_error, seed, root, keep_empty, proposals, max_proposals: see
            :class:`DetectionDataset`.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_csv`.
    """

    def __init__(
        self,
        annotations: Path | str,
        images: Path | str,
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
        names = choose_classes(classes, base)
        index = read_csv(base / annotations, base / images, names, on_error)
        self._use(index, augment, seed, keep_empty, proposals, max_proposals)


def read_csv(
    annotations: Path | str,
    images: Path | str,
    classes: Sequence[str] | None = None,
    on_error: OnError = "raise",
    check_files: bool = True,
) -> AnnotationIndex:
    """Reads a table of objects and checks every line and every image file.

    The result is cached by the file's content: a second call parses nothing.

    Args:
        annotations: the CSV file in UTF-8.
        images: the folder that holds the files it names.
        classes: the names in the order of the labels; by default those of the table, sorted.
        on_error: ``"raise"`` refuses damaged records, all in one message; ``"skip"`` leaves them
            out, names them once in the log and keeps them in ``index.skipped``.
        check_files: whether to look at the image files too.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        ValueError: the table lacks columns, is empty, or records are damaged.
    """
    file, folder = check_paths(annotations, images, "table")
    content = (classes, str(folder.resolve()), digest_files([file]))
    return check_index(
        cached_index(
            cache_name("csv", _READER_VERSION, *content),
            file,
            folder,
            lambda: _parse_rows(_read_rows(file), classes, file, folder),
            sizes_from_images=True,
        ),
        on_error,
        check_files,
    )


def _read_rows(file: Path) -> list[Row]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        header = [(name or "").strip() for name in reader.fieldnames or []]
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise ValueError(
                f"{file}: its first line names no column {', '.join(missing)}; it must name "
                f"{','.join(COLUMNS)}"
            )
        reader.fieldnames = header
        return [
            (reader.line_num, {name: value for name, value in row.items() if name in _KNOWN})
            for row in reader
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: not a CSV file in UTF-8 ({error}); correct it") from error


_KNOWN = frozenset(COLUMNS + OPTIONAL_COLUMNS)


def _parse_rows(
    rows: list[Row], classes: Sequence[str] | None, file: Path, folder: Path
) -> AnnotationIndex:
    groups: dict[str, list[Row]] = {}
    for number, fields in rows:
        groups.setdefault(str(PurePosixPath(fields["image"].strip())), []).append((number, fields))
    builder = IndexBuilder(classes)
    sizes = read_image_sizes([folder / name for name in groups])
    for (name, rows), size in zip(groups.items(), sizes, strict=True):
        with builder.listing("image", f"image {name} (line {rows[0][0]})"):
            if name == ".":
                raise DamagedRecord("no image file", "write its name into the column image")
            if isinstance(size, DamagedRecord):
                raise size
            builder.add_image(name, size)
            for number, fields in rows:
                if any(fields.get(column, "").strip() for column in (*BOX_COLUMNS, "label")):
                    title = f"line {number}, image {name}"
                    with builder.listing("annotation", title):
                        _add_object(builder, title, fields)
    return builder.build("csv", file, folder)


def _add_object(builder: IndexBuilder, title: str, fields: dict[str, str]) -> None:
    words = [fields[column].strip() for column in BOX_COLUMNS]
    polygon = fields.get("polygon", "").strip()
    parts = [_numbers(part.split(), "polygon") for part in polygon.split(";")] if polygon else None
    box = None if parts is not None and not any(words) else _numbers(words, "box")
    crowd = fields.get("crowd", "").strip() or "0"
    if crowd not in ("0", "1"):
        raise DamagedRecord(f'crowd is "{crowd}"', "set it to 0 or 1")
    builder.add_object(title, fields["label"].strip(), box, parts, crowd == "1")


def _numbers(words: list[str], what: str) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError:
        shown = ", ".join(word or "nothing" for word in words[:8])
        raise DamagedRecord(f"its {what} ({shown}) is not made of numbers", _FIX_LINE) from None
