"""Curves, confusion and kinds of errors by VOC's rules, beside the average precision by them."""

import numpy as np
import pytest

from detector.evaluation.analysis import analyse
from detector.evaluation.errors import KINDS
from detector.evaluation.matching import match
from detector.evaluation.voc import area_ap, area_under_curve, average_precision, to_inclusive
from tests.evaluation.random_truth import random_case
from tests.evaluation.test_errors import case


def corners(boxes):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return to_inclusive(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))


@pytest.mark.parametrize("seed", range(4))
def test_right_and_wrong_are_those_of_the_average_precision(seed):
    """Difficult objects, ties, duplicates and an image with more than 100 detections among them."""
    truth, table = random_case(seed)
    label_of = {category["id"]: k for k, category in enumerate(truth["categories"])}
    annotations = truth["annotations"]
    place_of = {image["id"]: i for i, image in enumerate(truth["images"])}
    expected, _ = average_precision(
        corners(table.boxes),
        table.scores,
        table.labels.astype(np.int64),
        table.images(),
        corners([annotation["bbox"] for annotation in annotations]),
        np.array([label_of[annotation["category_id"]] for annotation in annotations]),
        np.array([place_of[annotation["image_id"]] for annotation in annotations]),
        np.array([annotation["iscrowd"] for annotation in annotations], dtype=bool),
        len(label_of),
        np.array([0.5]),
    )
    matches = match("voc", truth, table)
    assert len(matches.scores) == len(table), "all count"
    assert matches.ignored.any() and (matches.found >= 0).any()
    np.testing.assert_array_equal(
        matches.finders[matches.found[matches.found >= 0]], np.flatnonzero(matches.found >= 0)
    )
    objects = np.bincount(matches.object_labels, minlength=len(label_of))
    for k in np.flatnonzero(objects):
        own = np.flatnonzero((matches.labels == k) & ~matches.ignored)
        own = own[np.argsort(-matches.scores[own], kind="stable")]
        right = np.cumsum(matches.found[own] >= 0)
        found = area_under_curve(right / objects[k], right / np.arange(1, len(own) + 1))
        assert found == pytest.approx(expected[k, 0], abs=1e-12)


def test_gains_are_of_the_area():
    # Half of the objects are found: the area is a half, and the whole where no more are asked for.
    boxes = [(10, 10, 40, 40), (100, 100, 40, 40)]
    truth, table = case(([(0, box) for box in boxes], [(0, boxes[0], 0.9)]))
    found = analyse("voc", truth, table, 0.5, area_ap)
    assert found.gains["missed"] == found.gains["false_negative"] == 0.5
    assert analyse("box", truth, table).gains["missed"] == pytest.approx(50 / 101)
    assert area_ap(np.array([True]), 0) == area_ap(np.zeros(0, bool), 3) == 0


def test_each_rule_that_differs_from_cocos():
    truth, table = case(
        (
            [(0, (10, 10, 40, 40)), (0, (10, 20, 40, 40)), (1, (100, 100, 60, 60), "difficult")],
            [
                (0, (10, 10, 40, 40), 0.9),
                (0, (10, 13, 40, 40), 0.8),  # IoU .86 with the first, .70 with the second
                (1, (100, 100, 10, 10), 0.7),  # inside what is difficult, and no IoU to speak of
                (1, (100, 100, 60, 50), 0.6),
            ],
        )
    )
    matches = match("voc", truth, table)
    assert matches.found.tolist() == [0, -1, -1, -1], "a detection has its best object or none"
    assert matches.ignored.tolist() == [False, False, False, True]
    assert match("box", truth, table).found.tolist() == [0, 1, -1, -1]
    assert match("box", truth, table).ignored.tolist() == [False, False, True, True]

    found = analyse("voc", truth, table, 0.5)
    ones = ("duplicate", "background", "missed")
    assert found.counts == {kind: int(kind in ones) for kind in KINDS}
    assert found.gains["missed"] > 0 and found.gains["duplicate"] == 0
    # Rows are the objects, the last one nothing; the best IoU of any pair is joined first.
    assert found.confusion == [[2, 0, 0], [0, 0, 0], [0, 1, 0]]
