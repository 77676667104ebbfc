"""The label files of a YOLO dataset, checked line by line, as an annotation index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detector.data.index import AnnotationIndex
from detector.data.index_builder import IndexBuilder
from detector.data.problems import DamagedRecord

_FIX_LINE = "write class cx cy w h, or class x1 y1 x2 y2 x3 y3 ..., in fractions of the image"


@dataclass(frozen=True)
class YOLOImage:
    """One image of a split.

    Attributes:
        name: of the file, relative to the image root.
        size: ``(width, height)``, or what is wrong with the file.
        labels: its label file, which need not exist.
    """

    name: str
    size: tuple[int, int] | DamagedRecord
    labels: Path


def parse_images(
    images: list[YOLOImage], classes: list[str], source_file: Path, image_root: Path
) -> AnnotationIndex:
    """Checks and flattens the labels of all images. Damaged records end in ``index.skipped``."""
    builder = IndexBuilder(classes)
    for image in images:
        with builder.listing("image", f"image {image.name}"):
            if isinstance(image.size, DamagedRecord):
                raise image.size
            lines = _read_lines(image.labels)
            builder.add_image(image.name, image.size)
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    title = f"{image.labels}, line {number}"
                    with builder.listing("annotation", title):
                        _add_line(builder, title, line.split(), classes, image.size)
    return builder.build("yolo", source_file, image_root)


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedRecord(f"{file} is not a text file ({error})", "restore it") from error


def _add_line(
    builder: IndexBuilder, title: str, words: list[str], classes: list[str], size: tuple[int, int]
) -> None:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise DamagedRecord("it is not made of numbers", _FIX_LINE) from None
    if len(numbers) < 5 or len(numbers) % 2 == 0:
        raise DamagedRecord(f"it has {len(numbers)} numbers", _FIX_LINE)
    if numbers[0] not in range(len(classes)):
        raise DamagedRecord(
            f"no class {words[0]}", f"number the classes from 0 to {len(classes) - 1}"
        )
    name = classes[int(numbers[0])]
    width, height = size
    if len(numbers) > 5:
        scales = (width, height) * (len(numbers) // 2)
        part = [value * scale for value, scale in zip(numbers[1:], scales, strict=True)]
        builder.add_object(title, name, parts=[part])
        return
    centre_x, centre_y, box_width, box_height = numbers[1:]
    box = (
        (centre_x - box_width / 2) * width,
        (centre_y - box_height / 2) * height,
        (centre_x + box_width / 2) * width,
        (centre_y + box_height / 2) * height,
    )
    builder.add_object(title, name, box)
