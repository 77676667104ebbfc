"""What the rows about evaluation compare and count, on a few images."""

import importlib
import mmap
import sys
import tracemalloc

import numpy as np
import pytest

from detector.benchmark.evaluation_images import HEIGHT, WIDTH, make_image
from detector.benchmark.evaluation_rows import (
    OURS,
    THEIRS,
    _largest_difference,
    _measure_side,
    make_detections,
)
from detector.benchmark.resident import Growth
from detector.benchmark.streaming_rows import _measure, make_batch, write_truth
from detector.evaluation.collector import DetectionCollector

MIB = 2**20


def test_what_unix_alone_has_is_not_needed_to_import_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert importlib.reload(sys.modules["detector.benchmark.resident"]).Growth


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_both_sides_find_cocos_numbers(kind):
    """Ours by the formulas of this package, pycocotools' by its own summary."""
    found = {side: _measure_side(side, kind, 12, 30) for side in (OURS, THEIRS)}
    numbers = {side: sample["numbers"] for side, sample in found.items()}
    assert len(numbers[OURS]) == 12 and 0.1 < numbers[OURS]["AP"] < 0.9
    arrays = {side: sample["arrays"] for side, sample in found.items()}
    assert _largest_difference(arrays, numbers) <= 1e-12
    other = numbers | {OURS: numbers[OURS] | {"ARs": 0.5}}
    assert _largest_difference(arrays, other) > 1e-3


def test_a_detection_takes_a_few_hundred_bytes_and_no_bitmap(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTOR_CACHE", str(tmp_path))
    write_truth(str(tmp_path), 16, 100)
    from detector.benchmark.streaming_rows import _read_index

    collector = DetectionCollector(_read_index(str(tmp_path)))
    collector.update(*make_batch(range(1), 100))  # imports are no detections
    batches = [make_batch(range(start, start + 5), 100) for start in (1, 6, 11)]
    tracemalloc.start()
    try:
        for batch in batches:
            collector.update(*batch)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    num_detections = 15 * 100
    # Four coordinates and a score of 8 bytes, a label of 4, a place in the text of 8, the text of
    # some 200: the masks alone as bitmaps would be 307 200 bytes each.
    assert 100 < held / num_detections < 500
    assert peak - held < 10 * MIB < 100 * HEIGHT * WIDTH
    table = collector.table()
    assert len(table) == 1600 and table.num_bytes / len(table) < 400


def test_a_measured_evaluation_is_that_of_its_detections(tmp_path, monkeypatch):
    """Boxes went through the network's size and back, which moves them by less than a pixel."""
    monkeypatch.setenv("DETECTOR_CACHE", str(tmp_path))
    write_truth(str(tmp_path), 10, 40)
    found = _measure(str(tmp_path), 10, 40)
    assert found["num_detections"] == 400
    expected = _measure_side(OURS, "mask", 10, 40)["numbers"]["AP"]
    assert found["mask_AP"] == pytest.approx(expected, abs=0.02)
    assert found["full_masks"] == 400 * HEIGHT * WIDTH


def test_growth_is_what_came_since():
    """Pages are there once they are written to; those given back are still in the peak.

    Linux counts a few dozen pages late.
    """

    def pages(count: int) -> np.ndarray:
        # Of the system: what other tests gave back to the heap would be no growth.
        found = np.frombuffer(mmap.mmap(-1, count), np.uint8)
        found[:] = 1
        return found

    kept = pages(30 * MIB)
    growth = Growth()
    more = pages(80 * MIB)
    held = growth.now()
    del more
    assert 75 * MIB < held < 120 * MIB
    assert growth.peak() > held - MIB and held > growth.now() + 60 * MIB
    assert kept.all()


def test_images_are_always_the_same_and_detections_best_first():
    one, other = make_image(3, 20), make_image(3, 20)
    np.testing.assert_array_equal(one.masks, other.masks)
    assert (np.diff(one.scores) <= 0).all() and one.masks.shape == (20, 28, 28)
    truth, table = make_detections(2, 20)
    assert len(table) == 40 and table.has_masks and len(truth["images"]) == 2
