"""The regions of a VIA file, checked one by one, as an annotation index."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from detector.data.columns import HUGE
from detector.data.image_sizes import read_image_sizes
from detector.data.index import AnnotationIndex
from detector.data.index_builder import IndexBuilder, Part
from detector.data.outlines import circle, ellipse
from detector.data.problems import DamagedRecord

_FIX_REGION = "correct the region or remove it"
_CROWD = "crowd"
_CSV_COLUMNS = ("filename", "region_shape_attributes", "region_attributes")


@dataclass(frozen=True)
class _Entry:
    """One image: its file, and its regions as the file gives them."""

    name: Any
    regions: list[Any]


def parse_file(
    file: Path, folder: Path, classes: Sequence[str] | None, attribute: str | None
) -> AnnotationIndex:
    """Checks and flattens a VIA file. Damaged records end in ``index.skipped``.

    Raises:
        ValueError: the file as a whole cannot be used.
    """
    entries = _read_entries(file)
    if not entries:
        raise ValueError(f"{file}: empty dataset, it names no image; add images to the project")
    if attribute is None:
        attribute = _find_attribute(entries, classes, file)
    builder = IndexBuilder(classes)
    names = [entry.name if isinstance(entry.name, str) else "" for entry in entries]
    sizes = read_image_sizes([folder / name.replace("\0", "?") for name in names])
    seen: set[str] = set()
    for name, entry, size in zip(names, entries, sizes, strict=True):
        with builder.listing("image", f"image {name or repr(entry.name)}"):
            if not name:
                raise DamagedRecord("it has no filename", "add the file's name")
            if name in seen:
                raise DamagedRecord("the file lists it twice", "remove one of the entries")
            if isinstance(size, DamagedRecord):
                raise size
            builder.add_image(str(PurePosixPath(name)), size)
            seen.add(name)
            for number, region in enumerate(entry.regions, start=1):
                title = f"image {name}, region {number}"
                with builder.listing("annotation", title):
                    _add_region(builder, title, region, attribute, classes)
    return builder.build("via", file, folder)


def _read_entries(file: Path) -> list[_Entry]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
        if file.suffix.lower() == ".csv":
            return _read_table(text, file)
        data = json.loads(text)
    except (csv.Error, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file}: neither JSON nor CSV of VIA ({error}); check that it was copied whole"
        ) from error
    if isinstance(data, dict):
        data = data.get("_via_img_metadata", data)
    images = data.values() if isinstance(data, dict) else None
    if images is None or not all(
        isinstance(image, dict) and "filename" in image and "regions" in image for image in images
    ):
        raise ValueError(
            f"{file}: no VIA project, nor JSON exported from one; its images have filename and "
            "regions"
        )
    entries = []
    for image in images:
        regions = image["regions"]
        if isinstance(regions, dict):  # of VIA 1: {"0": region, ...}
            regions = list(regions.values())
        if not isinstance(regions, list):
            raise ValueError(
                f"{file}: the regions of {image['filename']!r} are no list; export the file again"
            )
        entries.append(_Entry(image["filename"], regions))
    return entries


def _read_table(text: str, file: Path) -> list[_Entry]:
    """Exported CSV: one line per region, or per image without regions."""
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    # VIA writes "#filename" first.
    reader.fieldnames = [(name or "").strip().lstrip("#") for name in reader.fieldnames or []]
    missing = [name for name in _CSV_COLUMNS if name not in reader.fieldnames]
    if missing:
        raise ValueError(f"{file}: no CSV exported from VIA, it has no column {missing[0]}")
    regions: dict[str, list[Any]] = {}
    for row in reader:
        group = regions.setdefault(row["filename"], [])
        try:
            shape = json.loads(row["region_shape_attributes"] or "{}")
            attributes = json.loads(row["region_attributes"] or "{}")
        except (ValueError, RecursionError):
            group.append(None)  # refused with the other damaged regions
            continue
        if shape or attributes:
            group.append({"shape_attributes": shape, "region_attributes": attributes})
    return [_Entry(name, group) for name, group in regions.items()]


def _attributes(region: Any) -> dict[str, Any]:
    """The attributes that users give regions."""
    if not isinstance(region, dict):
        return {}
    found = region.get("region_attributes")
    return found if isinstance(found, dict) else {}


def _find_attribute(entries: list[_Entry], classes: Sequence[str] | None, file: Path) -> str | None:
    """The attribute that names classes, or ``None`` if regions have none."""
    names = {
        name
        for entry in entries
        for region in entry.regions
        for name in _attributes(region)
        if name != _CROWD
    }
    if not names and classes is not None and len(classes) == 1:
        return None
    if len(names) != 1:
        there = ", ".join(sorted(map(str, names))[:10]) or "none"
        raise ValueError(
            f"{file}: regions have the attributes {there}; name the one that holds the class with "
            "data.attribute=NAME, or where all objects are of one class give data.classes=[NAME]"
        )
    return names.pop()


def _add_region(
    builder: IndexBuilder,
    title: str,
    region: Any,
    attribute: str | None,
    classes: Sequence[str] | None,
) -> None:
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict):
        raise DamagedRecord("it has no shape_attributes", _FIX_REGION)
    attributes = _attributes(region)
    value = attributes.get(attribute) if attribute is not None else None
    if isinstance(value, dict):  # of checkboxes
        chosen = [name for name, is_set in value.items() if is_set is True]
        value = chosen[0] if len(chosen) == 1 else None
    if value is None and classes is not None and len(classes) == 1:
        value = classes[0]
    crowd = str(attributes.get(_CROWD, "0")).lower() in ("1", "true")
    box, parts = _outline(shape)
    name = value.strip() if isinstance(value, str) else ""
    builder.add_object(title, name, box, parts, crowd)


def _outline(shape: dict[str, Any]) -> tuple[list[float] | None, list[Part] | None]:
    """The box of a rectangle, or the polygon of another shape."""
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        x, y = _numbers(shape.get("all_points_x")), _numbers(shape.get("all_points_y"))
        if len(x) != len(y):
            raise DamagedRecord(f"its polygon has {len(x)} x and {len(y)} y", _FIX_REGION)
        return None, [[value for point in zip(x, y, strict=True) for value in point]]
    if kind == "rect":
        x, y, width, height = _numbers([shape.get(key) for key in ("x", "y", "width", "height")])
        return [x, y, x + width, y + height], None
    if kind == "circle":
        x, y, radius = _numbers([shape.get(key) for key in ("cx", "cy", "r")])
        return None, [circle((x, y), radius)]
    if kind == "ellipse":
        x, y, along, across = _numbers([shape.get(key) for key in ("cx", "cy", "rx", "ry")])
        angle = _numbers([shape.get("theta", 0)])[0]
        return None, [ellipse((x, y), (along, across), angle)]
    raise DamagedRecord(
        f"it is a {kind!r}", "draw polygons, rectangles, circles or ellipses, or remove it"
    )


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, list) or not all(
        type(value) in (int, float) and abs(value) < HUGE for value in values
    ):
        raise DamagedRecord("its shape is not made of finite numbers", _FIX_REGION)
    return values
