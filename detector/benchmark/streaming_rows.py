"""What an evaluation of COCO's size takes in memory, from the model's output to the numbers."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.benchmark.evaluation_images import (
    HEIGHT,
    MASK_SIZE,
    NUM_CLASSES,
    WIDTH,
    categories,
    image_record,
    make_image,
)
from detector.benchmark.resident import Growth
from detector.structures import Batch, Detections

BATCH_SIZE = 8
NETWORK_SIZE = (800, 1066)  # of the network's input, which detections are scaled back from


def measure_streaming(num_images: int, num_detections: int) -> dict[str, Any]:
    """Hands detections with masks to the evaluator of the tools batch by batch, and sums up.

    Returns:
        ``bytes_held`` once all have come in, ``bytes_per_detection`` of it, ``collecting_peak``,
        ``peak_bytes`` with the numbers and the analysis of errors of boxes and masks, all above
        what the process held before; ``full_masks``, bytes of the masks as bitmaps of the images;
        ``collecting_seconds``, the making of the detections not counted, ``summing_seconds``.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, num_images, num_detections)
        for step in (write_truth, _measure):  # a process each: making must not blow up measuring
            context = multiprocessing.get_context("spawn")
            with context.Pool(1, torch.set_num_threads, (1,)) as pool:
                found = pool.apply(step, arguments)
    return found


def write_truth(folder: str, num_images: int, num_detections: int) -> None:
    """``truth.json`` and its index in a cache of its own."""
    annotations = [a for i in range(num_images) for a in make_image(i, num_detections).annotations]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    images = [image_record(i) | {"file_name": f"{i}.jpg"} for i in range(num_images)]
    truth = {"images": images, "annotations": annotations, "categories": categories()}
    (Path(folder) / "truth.json").write_text(json.dumps(truth))
    _read_index(folder)


def _read_index(folder: str) -> Any:
    from detector.data.coco import read_coco

    os.environ["DETECTOR_CACHE"] = folder  # of this process, which ends with the measurement
    return read_coco(Path(folder) / "truth.json", folder, check_files=False)


def _measure(folder: str, num_images: int, num_detections: int) -> dict[str, Any]:
    from detector.evaluation.coco import CocoEvaluator

    index = _read_index(folder)
    evaluator = CocoEvaluator(index, ("box", "mask"), error_threshold=0.5)
    warm = make_batch(range(1), num_detections)
    evaluator.update(*warm)  # what is loaded once is not the detections'
    evaluator.reset()
    growth, seconds = Growth(), 0.0
    for start in range(0, num_images, BATCH_SIZE):
        batch = make_batch(range(start, min(start + BATCH_SIZE, num_images)), num_detections)
        began = time.perf_counter()
        evaluator.update(*batch)
        seconds += time.perf_counter() - began
    del batch
    held, collecting_peak = growth.now(), growth.peak()
    began = time.perf_counter()
    evaluation = evaluator.summarize()
    return {
        "num_images": num_images,
        "num_detections": len(evaluation.results),
        "bytes_held": held,
        "bytes_per_detection": held / len(evaluation.results),
        "collecting_peak": collecting_peak,
        "peak_bytes": growth.peak(),
        "full_masks": len(evaluation.results) * HEIGHT * WIDTH,
        "collecting_seconds": seconds,
        "summing_seconds": time.perf_counter() - began,
        "mask_AP": evaluation.metrics["mask"]["AP"],
    }


def make_batch(images: range, num_detections: int) -> tuple[Batch, Detections]:
    """A batch without pixels, and what a model would have found in it."""
    made = [make_image(i, num_detections) for i in images]
    scale = np.array(NETWORK_SIZE)[[1, 0, 1, 0]] / (WIDTH, HEIGHT, WIDTH, HEIGHT)
    size = torch.tensor([NETWORK_SIZE]).expand(len(made), 2)
    batch = Batch(
        images=torch.zeros(len(made), 3, 1, 1, dtype=torch.uint8),
        image_sizes=size,
        original_sizes=torch.tensor([[HEIGHT, WIDTH]]).expand(len(made), 2),
        image_ids=torch.tensor([image_record(i)["id"] for i in images]),
    )
    detections = Detections(
        boxes=torch.tensor(np.stack([each.boxes * scale for each in made]), dtype=torch.float32),
        scores=torch.tensor(np.stack([each.scores for each in made])),
        labels=torch.tensor(np.stack([each.labels for each in made])),
        valid=torch.ones(len(made), num_detections, dtype=torch.bool),
        masks=torch.tensor(np.stack([each.masks for each in made])),
    )
    assert detections.masks.shape[-1] == MASK_SIZE and detections.labels.max() < NUM_CLASSES
    return batch, detections
