"""How many objects of which class, how large, how wide and how many in an image."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from detector.data.doctor.classes import count_objects
from detector.data.index import AnnotationIndex

SIZE_EDGES = (8, 16, 32, 64, 128, 256, 512)
ASPECT_EDGES = (0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0)
COUNT_EDGES = (1, 2, 3, 5, 9, 17, 33, 65)


@dataclass(frozen=True)
class SplitStatistics:
    """Of one split; crowd regions are counted apart and in nothing else.

    Attributes:
        source: the annotation file.
        num_images, num_objects, num_crowd: how many.
        num_empty: images without objects.
        num_damaged: records that are left out.
        objects: of each class, by name.
        images: that hold each class.
        sizes: square roots of the boxes' areas in pixels of the file, counts between
            :data:`SIZE_EDGES`, below the first and from the last.
        aspects: heights divided by widths, likewise between :data:`ASPECT_EDGES`.
        per_image: numbers of objects of images, likewise between :data:`COUNT_EDGES`.
    """

    source: str
    num_images: int
    num_objects: int
    num_crowd: int
    num_empty: int
    num_damaged: int
    objects: dict[str, int]
    images: dict[str, int]
    sizes: list[int]
    aspects: list[int]
    per_image: list[int]

    def to_json(self) -> dict[str, Any]:
        """Plain values, each histogram with its edges."""
        edges = {"sizes": SIZE_EDGES, "aspects": ASPECT_EDGES, "per_image": COUNT_EDGES}
        return dataclasses.asdict(self) | {
            name: {"edges": list(limits), "counts": getattr(self, name)}
            for name, limits in edges.items()
        }


def describe_split(index: AnnotationIndex) -> SplitStatistics:
    """The numbers of a split."""
    own = ~index.crowd
    image = np.repeat(np.arange(len(index)), np.diff(index.annotation_offsets))[own]
    labels = index.labels[own]
    boxes = index.boxes[own]
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    pairs = np.unique(image * index.num_classes + labels)
    holding = np.bincount(pairs % index.num_classes, minlength=index.num_classes)
    per_image = np.bincount(image, minlength=len(index))
    return SplitStatistics(
        source=str(index.source_file),
        num_images=len(index),
        num_objects=len(labels),
        num_crowd=int(index.crowd.sum()),
        num_empty=int((per_image == 0).sum()),
        num_damaged=len(index.skipped),
        objects=dict(zip(index.category_names, count_objects(index).tolist(), strict=True)),
        images=dict(zip(index.category_names, holding.tolist(), strict=True)),
        sizes=_counts(np.sqrt(width * height), SIZE_EDGES),
        aspects=_counts(height / width, ASPECT_EDGES),
        per_image=_counts(per_image, COUNT_EDGES),
    )


def bin_labels(edges: tuple[float, ...], whole: bool = False) -> list[str]:
    """What to write below the bars of a histogram; ``whole``: of whole numbers."""
    if whole:
        texts = [
            f"{low}" if high == low + 1 else f"{low}-{high - 1}"
            for low, high in itertools.pairwise(edges)
        ]
        first = f"0-{edges[0] - 1}" if edges[0] > 1 else "0"
        return [first, *texts, f"{edges[-1]}+"]
    return [f"<{edges[0]:g}", *(f"{edge:g}-" for edge in edges[:-1]), f"{edges[-1]:g}+"]


def _counts(values: np.ndarray, edges: tuple[float, ...]) -> list[int]:
    places = np.searchsorted(edges, values, side="right")
    return np.bincount(places, minlength=len(edges) + 1).tolist()
