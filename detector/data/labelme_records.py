"""The JSON files of Labelme, checked shape by shape, as an annotation index."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detector.data.index import AnnotationIndex
from detector.data.index_builder import IndexBuilder, Part
from detector.data.outlines import circle, trace_bitmap
from detector.data.problems import DamagedRecord

_FIX_FILE = "restore the file or remove it"
_FIX_SHAPE = "correct the shape or remove it"


def parse_files(names: list[str], classes: Sequence[str] | None, folder: Path) -> AnnotationIndex:
    """Checks and flattens files of a folder. Damaged records end in ``index.skipped``."""
    builder = IndexBuilder(classes)
    taken: dict[str, str] = {}
    for name in names:
        with builder.listing("image", f"image of {name}"):
            data = _read_file(folder / name)
            image = _image_file(data, name)
            if image in taken:
                raise DamagedRecord(f"{taken[image]} annotates {image} too", "remove one of them")
            size = _read_size(data)
            shapes = data.get("shapes")
            if not isinstance(shapes, list):
                raise DamagedRecord('there is no list "shapes"', _FIX_FILE)
            builder.add_image(image, size)
            taken[image] = name
            for numbers in _groups(shapes):
                title = f"{name}, shape {' and '.join(str(number + 1) for number in numbers)}"
                with builder.listing("annotation", title):
                    _add_object(builder, title, [shapes[number] for number in numbers], size)
    return builder.build("labelme", folder, folder)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise DamagedRecord(f"it is no JSON ({error})", _FIX_FILE) from error
    if not isinstance(data, dict):
        raise DamagedRecord("it is no Labelme file", _FIX_FILE)
    return data


def _image_file(data: dict[str, Any], name: str) -> str:
    path = data.get("imagePath")
    if not isinstance(path, str) or not path:
        raise DamagedRecord("it names no imagePath", "write the image's file name there")
    # Files made on Windows have its separators.
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), path.replace("\\", "/")))


def _read_size(data: dict[str, Any]) -> tuple[int, int]:
    width, height = data.get("imageWidth"), data.get("imageHeight")
    if type(width) is not int or type(height) is not int:
        raise DamagedRecord(
            f"imageWidth is {width!r} and imageHeight {height!r}", "set the size in pixels"
        )
    return width, height


def _groups(shapes: list[Any]) -> list[list[int]]:
    """Positions of the shapes of each object."""
    groups: dict[Any, list[int]] = {}
    for number, shape in enumerate(shapes):
        group = shape.get("group_id") if isinstance(shape, dict) else None
        label = shape.get("label") if isinstance(shape, dict) else None
        joined = isinstance(group, int | str) and isinstance(label, str)
        groups.setdefault((label, group) if joined else number, []).append(number)
    return list(groups.values())


def _add_object(
    builder: IndexBuilder, title: str, shapes: list[Any], size: tuple[int, int]
) -> None:
    outlines = [_outline(shape, size) for shape in shapes]
    label = shapes[0].get("label")
    flags = [shape.get("flags") for shape in shapes]
    crowd = any(isinstance(flag, dict) and flag.get("crowd") is True for flag in flags)
    parts = [part for outline in outlines for part in outline[1]]
    boxes = np.array([outline[0] for outline in outlines if outline[0] is not None])
    if len(boxes) and parts:
        raise DamagedRecord("a rectangle is grouped with polygons", "give them other group_ids")
    box = [*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)] if len(boxes) else None
    builder.add_object(
        title, label.strip() if isinstance(label, str) else "", box, parts or None, crowd
    )


def _outline(shape: Any, size: tuple[int, int]) -> tuple[list[float] | None, list[Part]]:
    """The box of a rectangle, or the parts of another shape."""
    if not isinstance(shape, dict):
        raise DamagedRecord("it is no JSON object", _FIX_SHAPE)
    kind = shape.get("shape_type") or "polygon"
    points = _read_points(shape.get("points"))
    if kind == "polygon":
        return None, [[value for point in points for value in point]]
    if kind == "rectangle" and len(points) in (2, 4):
        x, y = zip(*points, strict=True)
        return [min(x), min(y), max(x), max(y)], []
    if kind == "circle" and len(points) == 2:
        return None, [circle(points[0], math.dist(*points))]
    if kind == "mask" and len(points) == 2:
        return None, _trace_mask(shape.get("mask"), points[0], size)
    raise DamagedRecord(
        f"it is a {kind} of {len(points)} points",
        "draw polygons, rectangles, circles of two points or masks, or remove it",
    )


def _read_points(points: Any) -> list[list[float]]:
    good = isinstance(points, list) and all(
        isinstance(point, list)
        and len(point) == 2
        and all(type(value) in (int, float) and abs(value) < 1e30 for value in point)
        for point in points
    )
    if not good:
        raise DamagedRecord("its points are not pairs of finite numbers", _FIX_SHAPE)
    return points


def _trace_mask(text: Any, corner: list[float], size: tuple[int, int]) -> list[Part]:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            # What the whole image could hold; a damaged header may claim anything.
            if image.width > size[0] + 1 or image.height > size[1] + 1:
                raise DamagedRecord("its mask is larger than the image", _FIX_SHAPE)
            bitmap = np.asarray(image.convert("L")) > 0
    except DamagedRecord:
        raise
    except (binascii.Error, TypeError, ValueError) as error:
        raise DamagedRecord(f"its mask is no base64 ({error})", _FIX_SHAPE) from error
    except Exception as error:  # Pillow's readers raise many kinds for damaged files
        raise DamagedRecord("its mask is no image", _FIX_SHAPE) from error
    if not bitmap.any():
        raise DamagedRecord("its mask is empty", _FIX_SHAPE)
    return [(ring + corner).ravel().tolist() for ring in trace_bitmap(bitmap)]
