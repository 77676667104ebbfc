"""The formats that an index can be written in, and where each keeps its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from detector.data.index import AnnotationIndex
from detector.data.writers.coco import write_coco
from detector.data.writers.csv_table import write_csv
from detector.data.writers.labelme import write_labelme
from detector.data.writers.via import write_via
from detector.data.writers.voc import write_voc
from detector.data.writers.yolo import write_yolo


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        write: the writer; takes the index, the images' names, the folder and the split, and
            returns what could not be written.
        images: the folder of a split's images below the dataset's; holds ``{split}``.
        data: the group of ``configs/data`` that reads what was written, given ``data.root``.
        needs_images: whether the images have to lie there.
    """

    write: Callable[..., list[str]]
    images: str
    data: str
    needs_images: bool

    def read_with(self, index: AnnotationIndex, root: object) -> str:
        """The settings that read what was written."""
        settings = f"data={self.data} data.root={root}"
        if self.data == "voc":
            settings += f" 'data.classes=[{','.join(map(_quoted, index.category_names))}]'"
        return settings


def _quoted(name: str) -> str:
    return name if name.isidentifier() else f'"{name}"'


FORMATS = {
    "coco": Format(write_coco, "{split}", "custom", needs_images=False),
    "voc": Format(write_voc, "{split}/JPEGImages", "voc", needs_images=True),
    "yolo": Format(write_yolo, "images/{split}", "yolo", needs_images=True),
    "csv": Format(write_csv, "{split}", "csv", needs_images=False),
    "labelme": Format(write_labelme, "{split}", "labelme", needs_images=True),
    "via": Format(write_via, "{split}", "via", needs_images=False),
}
