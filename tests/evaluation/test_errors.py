"""Error kinds, their gains, curves, confusion and the images listed: cases worked out by hand."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detector.evaluation.analysis import analyse
from detector.evaluation.curves import class_curve, confusion_matrix
from detector.evaluation.detection_table import join_images, pack_records
from detector.evaluation.errors import KINDS, ORACLES, error_kinds, gains
from detector.evaluation.matching import match
from tests.evaluation.random_truth import random_case

SIDE = 200


def case(*images, num_classes=2):
    """``(truth, table)`` of images given as ``(objects, detections)``.

    Objects are ``(class, box)`` or ``(class, box, "crowd")``, detections ``(class, box, score)``;
    boxes are ``(x, y, width, height)``.
    """
    annotations, per_image = [], []
    for number, (objects, detections) in enumerate(images, start=1):
        for label, box, *crowd in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": int(bool(crowd)),
                    "segmentation": [_ring(*box)],
                }
            )
        records = [
            {
                "bbox": list(box),
                "score": score,
                "segmentation": _text([_ring(*box)]),
            }
            for _, box, score in detections
        ]
        labels = [label for label, _, _ in detections]
        per_image.append(pack_records(records, labels, (SIDE, SIDE)))
    truth = {
        "images": [{"id": i + 1, "height": SIDE, "width": SIDE} for i in range(len(images))],
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(num_classes)],
        "annotations": annotations,
    }
    ids = [image["id"] for image in truth["images"]]
    return truth, join_images(ids, np.arange(num_classes) + 1, per_image)


def _ring(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _text(polygons):
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, SIDE, SIDE))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def kinds_of(*images, kind="box", **options):
    matches = match(kind, *case(*images, **options))
    kinds, missed = error_kinds(matches)
    names = [KINDS[k] if k >= 0 else None for k in kinds]
    return names, missed.tolist(), gains(matches, kinds, missed)


OBJECT = (0, (20, 20, 40, 40))
RIGHT = (0, (20, 20, 40, 40), 0.9)
FAR = (150, 150, 30, 30)
SHIFTED = (20, 45, 40, 40)  # IoU 15 / 65 with the object's box
ASIDE = (20, 54, 40, 40)  # IoU 6 / 74, below .1


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize(
    "detection, expected, is_missed",
    [
        ((0, OBJECT[1], 0.5), None, False),
        ((0, SHIFTED, 0.5), "localisation", False),
        ((1, OBJECT[1], 0.5), "classification", False),
        ((1, SHIFTED, 0.5), "both", True),
        ((0, FAR, 0.5), "background", True),
        ((0, ASIDE, 0.5), "background", True),
    ],
)
def test_each_kind(detection, expected, is_missed, kind):
    names, missed, _ = kinds_of(([OBJECT], [detection]), kind=kind)
    assert names == [expected] and missed == [is_missed]


def test_a_second_detection_of_an_object_is_a_duplicate():
    names, missed, _ = kinds_of(([OBJECT], [(0, (22, 20, 40, 40), 0.8), RIGHT]))
    assert names == [None, "duplicate"], "the better-scored one comes first and is right"
    assert missed == [False]


def test_of_an_image_without_objects_everything_is_background():
    assert kinds_of(([], [RIGHT]), ([OBJECT], []))[:2] == (["background"], [True])


def test_in_a_crowd_region_of_its_class_a_detection_is_no_error():
    crowd = (0, (100, 100, 90, 90), "crowd")
    assert kinds_of(([OBJECT, crowd], [RIGHT, (0, FAR, 0.5)]))[0] == [None, None]
    assert kinds_of(([OBJECT, crowd], [RIGHT, (1, FAR, 0.5)]))[0] == [None, "background"]


@pytest.mark.parametrize(
    "wrong, expected",
    [
        # Two objects, one found; a wrong detection before it. AP50: recall up to .5 at precision
        # .5, 51 of 101 recalls. A mended one makes both right; without it, precision is 1.
        ((0, SHIFTED, 0.95), {"localisation": 1, "missed": 0}),
        ((1, (20, 20, 40, 40), 0.95), {"classification": 1, "missed": 0}),
        ((1, SHIFTED, 0.95), {"both": 51 / 101, "missed": 1}),
        ((0, (100, 20, 30, 30), 0.95), {"background": 51 / 101, "missed": 0.5}),
    ],
)
def test_gains_worked_out(wrong, expected):
    other = (0, FAR)
    found = (0, FAR, 0.9)
    names, missed, gained = kinds_of(([OBJECT, other], [wrong, found]))
    is_of_class = wrong[0] == 0  # the other class has no object: its detections cost nothing
    before = 51 / 101 * (0.5 if is_of_class else 1)
    [kind] = [name for name in names if name]
    after = {"localisation": 1, "classification": 1, "both": before, "background": 51 / 101}[kind]
    assert gained[kind] == pytest.approx(after - before)
    # Without the object that is missed, one right detection in two, or one alone, of one object.
    without = {"both": 1, "background": 0.5}.get(kind, before)
    assert gained["missed"] == pytest.approx(without - before)
    assert missed == [kind in ("both", "background"), False]
    assert gained["false_positive"] == pytest.approx(51 / 101 - before)
    assert gained["false_negative"] == pytest.approx((0.5 if is_of_class else 1) - before)
    for name in KINDS:
        if name not in (kind, "missed"):
            assert gained[name] == pytest.approx(0)


def test_only_the_best_of_several_errors_is_mended():
    """Two badly placed ones of one object: mended, the first is right and the second goes."""
    both = [(0, SHIFTED, 0.8), (0, (20, 0, 40, 40), 0.7)]  # the second: IoU 20 / 60
    names, _, gained = kinds_of(([OBJECT], both))
    assert names == ["localisation", "localisation"] and gained["localisation"] == pytest.approx(1)
    # One of the wrong class is better: mending places makes nothing right, for it is ahead.
    names, _, gained = kinds_of(([OBJECT], [*both, (1, OBJECT[1], 0.9)]))
    assert names == ["classification", "localisation", "localisation"]
    assert gained["localisation"] == 0


def test_gains_are_bounded_and_ap_is_that_of_coco():
    truth, table = random_case(3)
    analysis = analyse("box", truth, table)
    assert set(analysis.gains) == {*KINDS, *ORACLES}
    aps = [curve.AP50 for curve in analysis.curves if curve.num_objects]
    assert all(0 <= gain <= 1 - np.mean(aps) + 1e-12 for gain in analysis.gains.values())
    assert sum(gain > 0.005 for gain in analysis.gains.values()) >= 6
    # With the same detections allowed and unequal IoUs, COCO's matching is the same.
    from detector.evaluation.backends import accumulate

    few = random_case(3, crowded_image=30)
    precision, _ = accumulate("pycocotools", "box", *few, (1, 10, 100))
    found = [curve.AP50 for curve in analyse("box", *few).curves]
    expected = [
        values[values > -1].mean() if (values > -1).any() else -1
        for values in np.moveaxis(precision[0, :, :, 0, -1], 1, 0)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_counts_and_lists_tell_the_same():
    truth, table = random_case(5)
    analysis = analyse("mask", truth, table)
    for kind in KINDS:
        assert analysis.counts[kind] == sum(each[kind] for each in analysis.counts_per_class)
        weights = [image.weight for image in analysis.worst[kind]]
        assert weights == sorted(weights, reverse=True) and weights
        for image in analysis.worst[kind]:
            assert len(image.errors) == min(image.num_errors, 20)
            for error in image.errors:
                assert (error.box is None) == (kind == "missed")
                if kind == "classification":
                    assert error.iou >= 0.5 and error.label != error.object_label
                if kind == "localisation":
                    assert 0.1 <= error.iou <= 0.5 and error.label == error.object_label
    best, worst = (analysis.images[name] for name in ("best", "worst"))
    assert [image.F1 for image in best] == sorted((i.F1 for i in best), reverse=True)
    assert worst[0].F1 == best[-1].F1, "fewer images than are listed: all of them, both ways"
    content = json.loads(json.dumps(analysis.to_json()))
    assert content["gains"] == analysis.gains and len(content["curves"]) == 6


# Curves.


def test_a_curve_worked_out():
    """Scores .9 right, .8 wrong, .8 right, .3 wrong, of four objects."""
    curve = class_curve(np.array([0.8, 0.9, 0.3, 0.8]), np.array([False, True, False, True]), 4)
    # F1 from .9: 2 / (1 + 4); from .8: 4 / (3 + 4); from .3: 4 / (4 + 4).
    assert curve.best_threshold == 0.8 and curve.best_F1 == pytest.approx(4 / 7)
    assert curve.best_precision == pytest.approx(2 / 3) and curve.best_recall == 0.5
    at = {0.0: (0.5, 0.5), 0.3: (0.5, 0.5), 0.31: (2 / 3, 0.5), 0.85: (1, 0.25), 0.95: (1, 0)}
    for confidence, (precision, recall) in at.items():
        number = round(confidence * 100)
        assert curve.precision[number] == pytest.approx(precision), confidence
        assert curve.recall[number] == pytest.approx(recall), confidence
        f1 = 2 * precision * recall / (precision + recall)
        assert curve.F1[number] == pytest.approx(f1), confidence
    # Precision 1 to a recall of .25, then 2 of 3 to .5, and nothing beyond.
    assert pytest.approx((26 + 25 * 2 / 3) / 101) == curve.AP50


def test_classes_without_objects_or_detections():
    none = class_curve(np.array([0.5]), np.array([False]), 0)
    assert none.AP50 == none.best_threshold == none.best_F1 == -1 and set(none.F1) == {-1}
    empty = class_curve(np.zeros(0), np.zeros(0, bool), 3)
    assert empty.best_threshold == -1 and empty.best_F1 == empty.AP50 == 0
    wrong = class_curve(np.array([0.5]), np.array([False]), 3)
    assert wrong.best_threshold == -1 and wrong.best_F1 == 0


# Confusion.


def test_confusion_worked_out():
    crowd = (1, (100, 100, 90, 90), "crowd")
    first = [
        (0, OBJECT[1], 0.9),  # right
        (1, (21, 20, 40, 40), 0.95),  # overlaps it less, so it is joined to nothing
        (1, FAR, 0.8),  # in the crowd region
        (0, (120, 20, 30, 30), 0.3),  # below the threshold
    ]
    second = [(1, OBJECT[1], 0.7)]
    images = ([OBJECT, crowd], first), ([OBJECT, (1, (100, 20, 20, 20))], second)
    matrix = confusion_matrix(match("box", *case(*images)), 2, score_threshold=0.5)
    # Rows: objects of class 0, of class 1, none; columns: detections of class 0, of class 1, none.
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    kept = confusion_matrix(match("box", *case(*images)), 2, score_threshold=0.0)
    assert kept.tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]


def test_every_object_stands_in_the_confusion_once():
    truth, table = random_case(6)
    matches = match("mask", truth, table)
    matrix = confusion_matrix(matches, 6, 0.4)
    assert matrix[:-1].sum(1).tolist() == np.bincount(matches.object_labels, minlength=6).tolist()
    assert np.trace(matrix[:-1, :-1]) > 5 and matrix[-1, -1] == 0
