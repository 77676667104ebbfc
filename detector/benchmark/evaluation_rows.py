"""COCO's evaluation beside pycocotools, and what an evaluation takes in memory.

    python -m detector.benchmark.evaluation_rows [images] [detections of an image]

Both sides are given the same detections, ours as they were collected, pycocotools the records of a
results file, and must find the same numbers. Each side is measured once, in a process of its own:
it takes minutes, not milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from detector.benchmark.evaluation_images import (
    HEIGHT,
    NUM_CLASSES,
    WIDTH,
    categories,
    image_record,
    make_image,
)
from detector.benchmark.resident import Growth
from detector.benchmark.streaming_rows import measure_streaming
from detector.evaluation.backends import accumulate, as_coco, quiet
from detector.evaluation.coco import twelve_numbers
from detector.evaluation.detection_table import DetectionTable, join_images, pack_records
from detector.results import Result

NUM_IMAGES, NUM_DETECTIONS = 5000, 100
LIMITS = (1, 10, 100)
OURS, THEIRS = "faster_coco_eval", "pycocotools"
TOLERANCE = 1e-12
MIB = 2**20


def measure_evaluation(
    console: Console, num_images: int = NUM_IMAGES, num_detections: int = NUM_DETECTIONS
) -> dict[str, Any]:
    """Times and peaks of memory of both sides and of a whole evaluation, printed as tables.

    Returns:
        ``rows`` (``kind``, ``side``, ``seconds``, ``cpu_seconds``, ``peak_bytes`` above what the
        process held before, the inputs among it), ``ratios`` (by kind, pycocotools' CPU time by
        ours), ``numbers`` (by kind and side, COCO's twelve), ``largest_difference`` of these and
        of every precision and recall they are means of, and ``streaming``, see
        :func:`detector.benchmark.streaming_rows.measure_streaming`.

    Raises:
        AssertionError: the sides' numbers differ by more than 1e-12.
    """
    rows, ratios, numbers, largest = [], {}, {}, {}
    for kind in ("box", "mask"):
        found = {
            side: _in_its_own_process(_measure_side, side, kind, num_images, num_detections)
            for side in (OURS, THEIRS)
        }
        arrays = {side: sample.pop("arrays") for side, sample in found.items()}
        numbers[kind] = {side: sample.pop("numbers") for side, sample in found.items()}
        rows += [{"kind": kind, "side": side} | sample for side, sample in found.items()]
        largest[kind] = _largest_difference(arrays, numbers[kind])
        ratios[kind] = found[THEIRS]["cpu_seconds"] / found[OURS]["cpu_seconds"]
    streaming = measure_streaming(num_images, num_detections)
    console.print(_times_table(rows, ratios, f"{num_images} images of {num_detections} detections"))
    console.print(_numbers_table(numbers))
    for kind, difference in largest.items():
        console.print(
            f"{kind}: the largest difference of the twelve numbers, and of all precisions and "
            f"recalls, is {difference:.1e} (at most {TOLERANCE:g} is allowed)"
        )
    assert max(largest.values()) <= TOLERANCE, f"the sides differ by {largest}"
    console.print(
        f"streaming {streaming['num_detections']:,} detections with masks: "
        f"{streaming['bytes_held'] / MIB:.0f} MiB once all are there, "
        f"{streaming['bytes_per_detection']:.0f} bytes each; at most "
        f"{streaming['peak_bytes'] / MIB:.0f} MiB with the numbers and the analysis of errors. As "
        f"bitmaps the masks would be {streaming['full_masks'] / 2**30:.0f} GiB. "
        f"{streaming['collecting_seconds']:.0f} s to collect, "
        f"{streaming['summing_seconds']:.0f} s to sum up"
    )
    return {
        "num_images": num_images,
        "num_detections": num_detections,
        "rows": rows,
        "ratios": ratios,
        "numbers": numbers,
        "largest_difference": largest,
        "streaming": streaming,
    }


def _largest_difference(arrays: dict[str, Any], numbers: dict[str, dict[str, float]]) -> float:
    assert numbers[OURS].keys() == numbers[THEIRS].keys() and len(numbers[OURS]) == 12
    differences = [np.abs(a - b).max() for a, b in zip(*arrays.values(), strict=True)]
    differences += [abs(value - numbers[THEIRS][key]) for key, value in numbers[OURS].items()]
    return float(max(differences))


def _times_table(rows: list[dict[str, Any]], ratios: dict[str, float], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("", "side", "CPU s", "s", "peak MiB", "ratio"):
        table.add_column(name, justify="left" if name in ("", "side") else "right")
    for row in rows:
        ratio = f"{ratios[row['kind']]:.1f}x" if row["side"] == OURS else ""
        cells = (row["cpu_seconds"], row["seconds"], row["peak_bytes"] / MIB)
        table.add_row(row["kind"], row["side"], *(f"{cell:.1f}" for cell in cells), ratio)
    return table


def _numbers_table(numbers: dict[str, dict[str, dict[str, float]]]) -> Table:
    names = list(next(iter(numbers.values()))[OURS])
    table = Table("", "side", title_justify="left", title="COCO's twelve numbers")
    for name in names:
        table.add_column(name, justify="right")
    for kind, sides in numbers.items():
        for side, found in sides.items():
            table.add_row(kind, side, *(f"{found[name]:.4f}" for name in names))
    return table


def make_detections(num_images: int, num_detections: int) -> tuple[dict[str, Any], DetectionTable]:
    """Generated ground truth, see :func:`detector.evaluation.backends.accumulate`, and a table."""
    truth = {"images": [], "annotations": [], "categories": categories()}
    per_image = []
    for i in range(num_images):
        made = make_image(i, num_detections)
        truth["images"].append(image_record(i))
        for annotation in made.annotations:
            truth["annotations"].append({"id": len(truth["annotations"]) + 1} | annotation)
        result = Result(
            made.boxes,
            made.labels,
            made.scores,
            [""] * NUM_CLASSES,
            HEIGHT,
            WIDTH,
            made.masks,
            category_ids=range(1, NUM_CLASSES + 1),
            image_id=image_record(i)["id"],
        )
        per_image.append(pack_records(result.to_coco(), made.labels, (HEIGHT, WIDTH)))
    image_ids = np.arange(1, num_images + 1)
    return truth, join_images(image_ids, np.arange(1, NUM_CLASSES + 1), per_image)


def _measure_side(side: str, kind: str, num_images: int, num_detections: int) -> dict[str, Any]:
    truth, table = make_detections(num_images, num_detections)
    if side == OURS:

        def evaluate() -> tuple[Any, dict[str, float]]:
            arrays = accumulate(OURS, kind, truth, table, LIMITS)
            return arrays, twelve_numbers(*arrays, LIMITS)

        return _timed(evaluate)
    drop = "segmentation" if kind == "box" else "bbox"
    records = [{k: v for k, v in record.items() if k != drop} for record in table]
    return _timed(lambda: _pycocotools(kind, truth, records))


def _pycocotools(kind: str, truth: dict, records: list[dict]) -> tuple[Any, dict[str, float]]:
    """As its own demonstration goes, from records in memory; its own summary too."""
    from pycocotools.cocoeval import COCOeval

    with quiet():
        coco = as_coco(**truth)
        evaluation = COCOeval(coco, coco.loadRes(records), "bbox" if kind == "box" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    numbers = dict(zip(names, map(float, evaluation.stats), strict=True))
    return (evaluation.eval["precision"], evaluation.eval["recall"]), numbers


def _timed(side: Callable[[], tuple[Any, dict[str, float]]]) -> dict[str, Any]:
    growth, began, cpu = Growth(), time.perf_counter(), time.process_time()
    arrays, numbers = side()
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": growth.peak(),
        "arrays": arrays,
        "numbers": numbers,
    }


def _in_its_own_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    measured = measure_evaluation(Console(width=150), *(int(word) for word in sys.argv[1:]))
    print(json.dumps(measured, default=float))
