"""Objects of a dataset and detections, drawn over their images for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from detector.data.images import read_image
from detector.report.pictures import shrink, spotlight
from detector.visualize import draw_instances
from detector.visualize.instances import picture_zoom

if TYPE_CHECKING:
    from detector.data.index import AnnotationIndex
    from detector.evaluation.detection_table import DetectionTable

# Of an image with hundreds, the largest or best-scored ones are drawn.
MOST_DRAWN = 80
NO_BOXES = np.zeros((0, 4))


def read_small(index: AnnotationIndex, image: int) -> tuple[np.ndarray, float] | None:
    """The image as large as a page needs it, ``(h, w, 3)`` uint8, and its scale.

    ``None``: it is not there, or damaged.
    """
    try:
        return shrink(read_image(index.path(image)))
    except (OSError, ValueError):
        return None


def draw_objects(
    index: AnnotationIndex,
    image: int,
    small: tuple[np.ndarray, float],
    places: Sequence[int] | None = None,
    lit: np.ndarray = NO_BOXES,
) -> np.ndarray:
    """An image with its annotations.

    Args:
        index: the dataset.
        image: position of the image.
        small: see :func:`read_small`.
        places: positions of the annotations; ``None``: all but crowd regions.
        lit: ``(n, 4)`` boxes in pixels of the file; what lies farther away is darkened.
    """
    pixels, scale = small
    if places is None:
        own = index.annotations(image)
        largest = np.argsort(-_areas(index.boxes[own]), kind="stable")
        places = [own.start + i for i in largest[:MOST_DRAWN] if not index.crowd[own.start + i]]
    places = np.array(places, dtype=np.int64)
    rings = [_rings(index, int(place), scale) for place in places]
    keypoints = None
    if index.has_keypoints:
        keypoints = index.keypoints[places] * np.float32([scale, scale, 1])
    picture = draw_instances(
        pixels,
        index.boxes[places] * scale,
        index.labels[places],
        [index.category_names[label] for label in index.labels[places]],
        rings=rings if any(rings) else None,
        keypoints=keypoints,
        skeleton=index.skeleton,
    )
    return spotlight(picture, lit, picture_zoom(*pixels.shape[:2]) * scale)


def draw_detections(
    index: AnnotationIndex,
    table: DetectionTable,
    which: np.ndarray,
    small: tuple[np.ndarray, float],
    lit: np.ndarray = NO_BOXES,
) -> np.ndarray:
    """An image with detections of it.

    Args:
        index: the dataset, for names.
        table: the detections.
        which: ``(n,)`` int64, places in the table, all of this image.
        small, lit: see :func:`draw_objects`.
    """
    pixels, scale = small
    which = which[np.argsort(-table.scores[which], kind="stable")][:MOST_DRAWN]
    boxes = table.boxes[which].copy()
    boxes[:, 2:] += boxes[:, :2]
    keypoints = masks = None
    if table.has_masks:
        size = pixels.shape[1::-1]
        masks = [coco_mask.decode(rle) for rle in table.rles(which)]
        masks = [cv2.resize(m, size, interpolation=cv2.INTER_NEAREST) > 0 for m in masks]
        masks = np.stack(masks) if masks else np.zeros((0, *size[::-1]), bool)
    if table.keypoints is not None:
        keypoints = table.keypoints[which].reshape(len(which), -1, 3) * (scale, scale, 1)
    labels = table.labels[which]
    picture = draw_instances(
        pixels,
        boxes * scale,
        labels,
        [index.category_names[label] for label in labels],
        table.scores[which],
        masks=masks,
        keypoints=keypoints,
        skeleton=index.skeleton,
    )
    return spotlight(picture, lit, picture_zoom(*pixels.shape[:2]) * scale)


def _rings(index: AnnotationIndex, place: int, scale: float) -> list[np.ndarray]:
    return [
        index.vertices[index.vertex_offsets[ring] : index.vertex_offsets[ring + 1]] * scale
        for ring in range(index.ring_offsets[place], index.ring_offsets[place + 1])
    ]


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
