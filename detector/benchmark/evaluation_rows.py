"""COCO's evaluation beside pycocotools, and what a collection of detections takes.

    python -m detector.benchmark.evaluation_rows [images] [detections of an image]

Ground truth and detections are generated: as in COCO some seven objects of 80 classes in an image,
of which most are found, and detections beside them. Both sides are given the same detections, ours
as they were collected, pycocotools the records of a results file, and must find the same numbers.
Each side is measured once, in a process of its own: it takes minutes, not milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from detector.evaluation.backends import accumulate, as_coco, quiet
from detector.evaluation.detection_table import DetectionTable, join_images, pack_records
from detector.results import Result

NUM_IMAGES, NUM_DETECTIONS = 5000, 100
NUM_CLASSES = 80
HEIGHT, WIDTH = 480, 640
MASK_SIZE = 28
LIMITS = (1, 10, 100)
OURS, THEIRS = "faster_coco_eval", "pycocotools"


def measure_evaluation(
    console: Console, num_images: int = NUM_IMAGES, num_detections: int = NUM_DETECTIONS
) -> dict[str, Any]:
    """Times and peaks of memory of both sides and of collecting, printed as a table.

    Returns:
        ``rows`` (``kind``, ``side``, ``seconds``, ``cpu_seconds``, ``peak_bytes`` above
        what the process held before, the inputs among it), ``ratios`` (by
        kind, pycocotools' CPU time by ours), ``largest_difference`` of any number, and
        ``collecting``: ``seconds``, ``table_bytes``, ``peak_bytes`` while the detections came in.

    Raises:
        AssertionError: the sides' numbers differ by more than 1e-12.
    """
    sizes = (num_images, num_detections)
    collecting = _in_its_own_process(_measure_collecting, *sizes)
    rows, ratios, largest = [], {}, 0.0
    for kind in ("box", "mask"):
        found = {
            side: _in_its_own_process(_measure_side, side, kind, *sizes) for side in (OURS, THEIRS)
        }
        for side, sample in found.items():
            rows.append(
                {"kind": kind, "side": side} | {k: v for k, v in sample.items() if k != "numbers"}
            )
        differences = [
            float(np.abs(mine - other).max())
            for mine, other in zip(found[OURS]["numbers"], found[THEIRS]["numbers"], strict=True)
        ]
        largest = max(largest, *differences)
        ratios[kind] = found[THEIRS]["cpu_seconds"] / found[OURS]["cpu_seconds"]
    assert largest <= 1e-12, f"the sides differ by {largest}"

    table = Table(title=f"{num_images} images of {num_detections} detections", title_justify="left")
    for name in ("", "side", "CPU s", "s", "peak MiB", "ratio"):
        table.add_column(name, justify="left" if name in ("", "side") else "right")
    for row in rows:
        ratio = f"{ratios[row['kind']]:.1f}x" if row["side"] == OURS else ""
        cells = (row["cpu_seconds"], row["seconds"], row["peak_bytes"] / 2**20)
        table.add_row(row["kind"], row["side"], *(f"{cell:.1f}" for cell in cells), ratio)
    table.add_section()
    cells = (collecting["cpu_seconds"], collecting["seconds"], collecting["peak_bytes"] / 2**20)
    table.add_row("both", "collecting, as run lengths", *(f"{cell:.1f}" for cell in cells), "")
    console.print(table)
    console.print(
        f"largest difference {largest:.1e}; the collection takes "
        f"{collecting['table_bytes'] / 2**20:.0f} MiB; peaks are above what the process held before"
    )
    return {
        "num_images": num_images,
        "num_detections": num_detections,
        "rows": rows,
        "ratios": ratios,
        "largest_difference": largest,
        "collecting": collecting,
    }


def make_detections(num_images: int, num_detections: int) -> tuple[dict[str, Any], DetectionTable]:
    """Generated ground truth, see :func:`detector.evaluation.backends.accumulate`, and a table."""
    truth, per_image = {"images": [], "annotations": []}, []
    truth["categories"] = [{"id": k + 1, "name": f"class {k + 1}"} for k in range(NUM_CLASSES)]
    for i in range(num_images):
        rng = np.random.default_rng(i)
        image_id = i + 1
        truth["images"].append({"id": image_id, "height": HEIGHT, "width": WIDTH})
        boxes = _boxes(rng, 1 + int(rng.poisson(6.3)))
        labels = rng.zipf(1.5, len(boxes)) % NUM_CLASSES
        for box, label in zip(boxes, labels.tolist(), strict=True):
            truth["annotations"].append(
                _annotation(rng, len(truth["annotations"]), image_id, box, label)
            )
        near = rng.integers(0, len(boxes), num_detections)
        is_near = rng.random(num_detections) < 0.4
        sides = (boxes[near, 2:] - boxes[near, :2])[:, [0, 1, 0, 1]]
        moved = boxes[near] + rng.normal(0, 0.1, (num_detections, 4)) * sides
        found = np.where(is_near[:, None], moved, _boxes(rng, num_detections))
        found = np.concatenate([np.minimum(found[:, :2], found[:, 2:] - 2), found[:, 2:]], axis=1)
        found = found.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(np.float32)
        found_labels = np.where(is_near, labels[near], rng.zipf(1.5, num_detections) % NUM_CLASSES)
        scores = (rng.random(num_detections) * np.where(is_near, 1.0, 0.5)).astype(np.float32)
        result = Result(
            found,
            found_labels,
            scores,
            [""] * NUM_CLASSES,
            HEIGHT,
            WIDTH,
            _masks(rng, num_detections),
            category_ids=range(1, NUM_CLASSES + 1),
            image_id=image_id,
        )
        per_image.append(pack_records(result.to_coco(), found_labels, (HEIGHT, WIDTH)))
    image_ids = np.arange(1, num_images + 1)
    return truth, join_images(image_ids, np.arange(1, NUM_CLASSES + 1), per_image)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.normal(4.2, 0.9, (count, 2))).clip(6, [WIDTH - 2, HEIGHT - 2])
    low = rng.random((count, 2)) * ([WIDTH, HEIGHT] - sides)
    return np.concatenate([low, low + sides], axis=1)


def _annotation(
    rng: np.random.Generator, number: int, image_id: int, box: np.ndarray, label: int
) -> dict[str, Any]:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.8, 1, (24, 1))
    ring = (box[:2] + box[2:]) / 2 + ring * (box[2:] - box[:2]) / 2
    x, y = box[:2].round(2).tolist()
    width, height = (box[2:] - box[:2]).round(2).tolist()
    return {
        "id": number + 1,
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


def _measure_side(side: str, kind: str, num_images: int, num_detections: int) -> dict[str, Any]:
    truth, table = make_detections(num_images, num_detections)
    if side == OURS:
        return _timed(lambda: accumulate(OURS, kind, truth, table, LIMITS))
    drop = "segmentation" if kind == "box" else "bbox"
    records = [{k: v for k, v in record.items() if k != drop} for record in table]
    return _timed(lambda: _pycocotools(kind, truth, records))


def _pycocotools(kind: str, truth: dict, records: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """As its own demonstration goes, from records in memory."""
    from pycocotools.cocoeval import COCOeval

    with quiet():
        coco = as_coco(**truth)
        evaluation = COCOeval(coco, coco.loadRes(records), "bbox" if kind == "box" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _measure_collecting(num_images: int, num_detections: int) -> dict[str, Any]:
    sample = _timed(lambda: make_detections(num_images, num_detections))
    _, table = sample.pop("numbers")
    return sample | {"table_bytes": table.num_bytes}


def _timed(side: Callable[[], Any]) -> dict[str, Any]:
    began, cpu, held = time.perf_counter(), time.process_time(), _peak_bytes()
    numbers = side()
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": _peak_bytes() - held,
        "numbers": numbers,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _in_its_own_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    measured = measure_evaluation(Console(width=120), *(int(word) for word in sys.argv[1:]))
    print(json.dumps(measured, default=float))
