"""Generated ground truth and detections, as many and as large as COCO's.

As in COCO some seven objects of 80 classes in an image, of which most are found, and detections
beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_CLASSES = 80
HEIGHT, WIDTH = 480, 640
MASK_SIZE = 28


@dataclass(frozen=True)
class GeneratedImage:
    """What is in an image and what is found in it.

    Attributes:
        annotations: in COCO's format, without ids.
        boxes: ``(n, 4)`` float32 ``(x1, y1, x2, y2)``.
        labels: ``(n,)`` int64.
        scores: ``(n,)`` float32, descending.
        masks: ``(n, 28, 28)`` float32 probabilities inside the boxes.
    """

    annotations: list[dict[str, Any]]
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray


def categories() -> list[dict[str, Any]]:
    return [{"id": k + 1, "name": f"class {k + 1}"} for k in range(NUM_CLASSES)]


def image_record(i: int) -> dict[str, Any]:
    return {"id": i + 1, "height": HEIGHT, "width": WIDTH}


def make_image(i: int, num_detections: int) -> GeneratedImage:
    """The ``i``-th image, always the same."""
    rng = np.random.default_rng(i)
    boxes = _boxes(rng, 1 + int(rng.poisson(6.3)))
    labels = rng.zipf(1.5, len(boxes)) % NUM_CLASSES
    annotations = [
        _annotation(rng, image_record(i)["id"], box, label)
        for box, label in zip(boxes, labels.tolist(), strict=True)
    ]
    near = rng.integers(0, len(boxes), num_detections)
    is_near = rng.random(num_detections) < 0.4
    sides = (boxes[near, 2:] - boxes[near, :2])[:, [0, 1, 0, 1]]
    moved = boxes[near] + rng.normal(0, 0.1, (num_detections, 4)) * sides
    found = np.where(is_near[:, None], moved, _boxes(rng, num_detections))
    found = np.concatenate([np.minimum(found[:, :2], found[:, 2:] - 2), found[:, 2:]], axis=1)
    found = found.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(np.float32)
    found_labels = np.where(is_near, labels[near], rng.zipf(1.5, num_detections) % NUM_CLASSES)
    scores = (rng.random(num_detections) * np.where(is_near, 1.0, 0.5)).astype(np.float32)
    masks = _masks(rng, num_detections)
    best_first = np.argsort(-scores, kind="stable")
    return GeneratedImage(
        annotations,
        *(values[best_first] for values in (found, found_labels, scores, masks)),
    )


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.normal(4.2, 0.9, (count, 2))).clip(6, [WIDTH - 2, HEIGHT - 2])
    low = rng.random((count, 2)) * ([WIDTH, HEIGHT] - sides)
    return np.concatenate([low, low + sides], axis=1)


def _annotation(
    rng: np.random.Generator, image_id: int, box: np.ndarray, label: int
) -> dict[str, Any]:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.8, 1, (24, 1))
    ring = (box[:2] + box[2:]) / 2 + ring * (box[2:] - box[:2]) / 2
    x, y = box[:2].round(2).tolist()
    width, height = (box[2:] - box[:2]).round(2).tolist()
    return {
        "image_id": image_id,
        "category_id": label + 1,
        "iscrowd": int(rng.random() < 0.012),
        "bbox": [x, y, width, height],
        "area": width * height * 0.7,
        "segmentation": [ring.round(2).ravel().tolist()],
    }


def _masks(rng: np.random.Generator, count: int) -> np.ndarray:
    """Round blobs with an uneven border, as a mask head gives them."""
    y, x = (np.mgrid[:MASK_SIZE, :MASK_SIZE] + 0.5) / MASK_SIZE * 2 - 1
    waves, phase = rng.integers(2, 7, (count, 1, 1)), rng.random((count, 1, 1)) * 6.28
    border = 0.85 + 0.12 * np.sin(waves * np.arctan2(y, x) + phase)
    return (1 / (1 + np.exp((np.hypot(x, y) - border) * 20))).astype(np.float32)
