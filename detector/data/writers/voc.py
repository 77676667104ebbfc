"""Writes an index in PASCAL VOC's layout: boxes only."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path, PurePosixPath

from detector.data.index import AnnotationIndex
from detector.data.writers.losses import Losses
from detector.data.writers.objects import objects_of


def write_voc(index: AnnotationIndex, names: list[str], root: Path, split: str) -> list[str]:
    """Writes the folder ``<split>`` with Annotations and ``ImageSets/Main/<split>.txt``.

    Pixels are numbered from 1 and boxes count both ends in, as in the challenge; crowd regions
    become difficult objects.

    Args:
        index: what to write.
        names: of the image files in ``<split>/JPEGImages``.
        root: folder of the dataset.
        split: its name.

    Returns:
        What the format cannot hold.
    """
    folder, losses = root / split, Losses()
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    losses.add_keypoints(index, "VOC")
    stems = []
    for image, name in enumerate(names):
        stem = PurePosixPath(name).with_suffix("").as_posix()
        stems.append(stem)
        size = {"width": int(index.widths[image]), "height": int(index.heights[image]), "depth": 3}
        tree = ElementTree.Element("annotation")
        _add(tree, "folder", split)
        _add(tree, "filename", name)
        _add_group(tree, "size", size)
        for item in objects_of(index, image):
            title = f"annotation {index.annotation_ids[item.position]} of {name}"
            x1, y1, x2, y2 = item.box
            if x2 - x1 <= 1 or y2 - y1 <= 1:
                losses.add("VOC has no boxes up to a pixel wide or high: left out", title)
                continue
            if item.rings:
                losses.add("VOC has boxes only: masks are lost", title)
            node = ElementTree.SubElement(tree, "object")
            _add(node, "name", item.name)
            _add(node, "difficult", int(item.crowd))
            ends = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
            _add_group(node, "bndbox", {key: f"{end:.10g}" for key, end in ends.items()})
        ElementTree.indent(tree)
        file = folder / "Annotations" / f"{stem}.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        ElementTree.ElementTree(tree).write(file, encoding="utf-8")
    listed = "".join(f"{stem}\n" for stem in stems)
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(listed, encoding="utf-8")
    return losses.notes()


def _add(parent: ElementTree.Element, name: str, value: object) -> None:
    ElementTree.SubElement(parent, name).text = str(value)


def _add_group(parent: ElementTree.Element, name: str, values: dict[str, object]) -> None:
    group = ElementTree.SubElement(parent, name)
    for key, value in values.items():
        _add(group, key, value)
