"""VOC average precision: against the devkit's algorithm in loops, and numbers by hand."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from detector.data.voc import read_voc
from detector.evaluation.table import evaluation_table
from detector.evaluation.voc import (
    IOU_THRESHOLDS,
    VOCEvaluator,
    average_precision,
    inclusive_iou,
    to_inclusive,
)
from detector.structures import Batch, Detections
from tests.evaluation.voc_devkit import devkit_2007, devkit_2010, devkit_evaluate

CLASSES = ["cat", "dog"]


def random_case(seed):
    """Objects ``(image, label, box, difficult)`` and detections ``(image, label, box, score)``.

    Coordinates and scores are coarse, so that ties, equal boxes and IoUs of exactly .5 occur.
    """
    rng = np.random.default_rng(seed)

    def box():
        corner = rng.integers(1, 12, 2)
        return (*corner, *(corner + rng.integers(0, 8, 2)))

    objects = [
        (int(rng.integers(4)), int(rng.integers(3)), box(), bool(rng.random() < 0.3))
        for _ in range(rng.integers(1, 40))
    ]
    found = []
    for _ in range(rng.integers(0, 120)):
        image, label, near, _ = objects[rng.integers(len(objects))]
        if rng.random() < 0.3:
            image, label, near = int(rng.integers(4)), int(rng.integers(3)), box()
        moved = np.array(near) + rng.integers(-1, 2, 4)
        moved[2:] = np.maximum(moved[2:], moved[:2])
        found.append((image, label, tuple(moved), float(rng.integers(1, 20)) / 20))
    return objects, found


def flat(objects, found):
    """The arguments of ``average_precision`` but the number of classes."""
    gt_images, gt_labels, gt_boxes, difficult = map(list, zip(*objects, strict=True))
    images, labels, boxes, scores = map(list, zip(*found, strict=True)) if found else [[]] * 4
    return (
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(scores, dtype=np.float64),
        np.array(labels, dtype=np.int64),
        np.array(images, dtype=np.int64),
        np.array(gt_boxes, dtype=np.float64),
        np.array(gt_labels, dtype=np.int64),
        np.array(gt_images, dtype=np.int64),
        np.array(difficult),
    )


@pytest.mark.parametrize("seed", range(40))
def test_random_cases_agree_with_the_devkit(seed):
    objects, found = random_case(seed)
    area, eleven_point = average_precision(*flat(objects, found), num_classes=3)
    for k in range(3):
        images = [[(b, d) for i, c, b, d in objects if (i, c) == (image, k)] for image in range(4)]
        of_class = [(image, score, box) for image, label, box, score in found if label == k]
        if all(difficult for objects_of in images for _, difficult in objects_of):
            assert (area[k] == -1).all() and (eleven_point[k] == -1).all()
            continue
        for t, threshold in enumerate(IOU_THRESHOLDS):
            curve = devkit_evaluate(images, of_class, threshold)
            assert area[k, t] == pytest.approx(devkit_2010(*curve), abs=1e-12)
            assert eleven_point[k, t] == pytest.approx(devkit_2007(*curve), abs=1e-12)


# By hand. One class, one image unless said; objects are 10x10 pixels.


def ap50(objects, found):
    """Both APs at IoU .50 of ``(image, box, difficult)`` and ``(image, box, score)``."""
    objects = [(image, 0, box, difficult) for image, box, difficult in objects]
    found = [(image, 0, box, score) for image, box, score in found]
    area, eleven_point = average_precision(*flat(objects, found), num_classes=1)
    return area[0, 0], eleven_point[0, 0]


FIRST, SECOND, THIRD = (1, 1, 10, 10), (21, 1, 30, 10), (41, 1, 50, 10)
ELSEWHERE = (71, 71, 80, 80)


def test_half_of_the_objects():
    # Right, wrong, right: recalls 1/4, 1/4, 1/2 at precisions 1, 1/2, 2/3.
    objects = [(0, box, False) for box in (FIRST, SECOND, THIRD, (61, 1, 70, 10))]
    found = [(0, FIRST, 0.9), (0, ELSEWHERE, 0.8), (0, SECOND, 0.7)]
    area, eleven_point = ap50(objects, found)
    assert area == pytest.approx(1 / 4 * 1 + 1 / 4 * 2 / 3)
    assert eleven_point == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)  # at 0 .1 .2, at .3 .4 .5


def test_a_duplicate_is_wrong_however_good():
    objects = [(0, FIRST, False), (0, SECOND, False)]
    found = [(0, (1, 1, 10, 9), 0.9), (0, FIRST, 0.8), (0, SECOND, 0.7)]
    area, eleven_point = ap50(objects, found)
    assert area == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert eleven_point == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_a_detection_is_compared_with_its_best_object_only_even_if_that_is_taken():
    # Both objects overlap the second detection by more than half; COCO would give it the other.
    objects = [(0, FIRST, False), (0, (1, 1, 10, 7), False)]
    found = [(0, FIRST, 0.9), (0, (1, 1, 10, 9), 0.8)]
    assert inclusive_iou(np.array([[1, 1, 10, 9.0]]), np.array([[1, 1, 10, 7.0]])) == 70 / 90
    assert ap50(objects, found)[0] == pytest.approx(1 / 2)


def test_difficult_objects_are_neither_right_nor_wrong_nor_missed():
    objects = [(0, FIRST, False), (0, SECOND, True)]
    on_difficult = [(0, SECOND, 0.95), (0, SECOND, 0.94), (0, (21, 2, 30, 10), 0.93)]
    assert ap50(objects, [*on_difficult, (0, FIRST, 0.9)]) == (1, 1)
    assert ap50(objects, [(0, FIRST, 0.9)]) == (1, 1)
    assert ap50(objects, on_difficult) == (0, 0)
    # Beside it, by IoU 1/3, it is wrong.
    assert ap50(objects, [(0, (26, 1, 35, 10), 0.95), (0, FIRST, 0.9)])[0] == pytest.approx(1 / 2)


def test_areas_count_both_ends_and_the_threshold_belongs_to_the_right_ones():
    # 10x10 against 10x5 pixels: exactly half. Without the devkit's + 1 it would be 36 / 81.
    half, less = (1, 1, 10, 5), (1, 1, 10, 4)
    assert inclusive_iou(np.array([FIRST]), np.array([half])).tolist() == [0.5]
    assert ap50([(0, FIRST, False)], [(0, half, 0.9)]) == (1, 1)
    assert ap50([(0, FIRST, False)], [(0, less, 0.9)]) == (0, 0)
    # One shared column of pixels, where ends merely touch by number, is an intersection.
    assert inclusive_iou(np.array([FIRST]), np.array([(10, 1, 19, 10)])).tolist() == [10 / 190]


def test_of_equal_scores_the_earlier_counts_as_better():
    objects = [(0, FIRST, False)]
    right, wrong = (0, FIRST, 0.5), (0, ELSEWHERE, 0.5)
    assert ap50(objects, [right, wrong])[0] == 1
    assert ap50(objects, [wrong, right])[0] == pytest.approx(1 / 2)


def test_boxes_are_of_their_own_image_and_class():
    objects = [(0, 0, FIRST, False), (1, 1, SECOND, False)]
    found = [(1, 0, FIRST, 0.9), (0, 1, SECOND, 0.9), (1, 1, SECOND, 0.8)]
    area, _ = average_precision(*flat(objects, found), num_classes=2)
    assert area[:, 0].tolist() == [0, 0.5]


def test_continuous_boxes_have_the_devkits_iou():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (2, 100, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 40, (2, 100, 2))], axis=2)
    low, high = boxes[..., :2].max(0), boxes[..., 2:].min(0)
    shared = (high - low).clip(0).prod(1)
    union = (boxes[..., 2:] - boxes[..., :2]).prod(2).sum(0) - shared
    np.testing.assert_allclose(inclusive_iou(*map(to_inclusive, boxes)), shared / union)
    assert to_inclusive(np.array([[0, 0, 10, 10]], np.float32)).tolist() == [[1, 1, 10, 10]]


# The evaluator, from a folder and detections.


@pytest.fixture
def index(tmp_path):
    """Two images of 80x60: a cat and a difficult dog; a dog."""
    root = tmp_path / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    objects = {
        "000003": [("cat", (11, 6, 30, 25), 0), ("dog", (41, 1, 80, 60), 1)],
        "000001": [("dog", (1, 1, 40, 40), 0)],
    }
    for name, objects_of in objects.items():
        Image.new("RGB", (80, 60)).save(root / "JPEGImages" / f"{name}.jpg")
        records = "".join(
            f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox>"
            f"<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax>"
            "</bndbox></object>"
            for label, box, difficult in objects_of
        )
        size = "<size><width>80</width><height>60</height></size>"
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation>{size}{records}</annotation>"
        )
    (root / "ImageSets" / "Main" / "test.txt").write_text("\n".join(objects))
    return read_voc([(root, "test")], CLASSES)


def update(evaluator, index, position, found, scale=1.0, masks=None):
    """Boxes ``(box, label, score)`` found in an image that was resized by ``scale``."""
    slots = len(found) + 1  # one stays empty
    boxes, valid = torch.zeros(1, slots, 4), torch.zeros(1, slots, dtype=torch.bool)
    scores, labels = torch.zeros(1, slots), torch.zeros(1, slots, dtype=torch.int64)
    for d, (box, label, score) in enumerate(found):
        boxes[0, d] = torch.tensor(box) * scale
        labels[0, d], scores[0, d], valid[0, d] = label, score, True
    original = torch.tensor([[60, 80]])
    batch = Batch(
        images=torch.zeros(1, 3, 60, 80, dtype=torch.uint8),
        image_sizes=(original * scale).long(),
        original_sizes=original,
        image_ids=torch.tensor([int(index.image_ids[position])]),
    )
    evaluator.update(batch, Detections(boxes, scores, labels, valid, masks))


def perfect(evaluator, index, scale=1.0):
    update(evaluator, index, 0, [([10, 5, 30, 25], 0, 0.9), ([40, 0, 80, 60], 1, 0.8)], scale)
    update(evaluator, index, 1, [([0, 0, 40, 40], 1, 0.7)], scale)


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_what_is_annotated_is_all_right_at_any_input_size(index, scale):
    evaluator = VOCEvaluator(index)
    perfect(evaluator, index, scale)
    found = evaluator.summarize()
    assert found.metrics["voc"] == {"AP50": 1, "AP50_11point": 1, "AP75": 1, "AP": 1}
    assert set(found.metrics["per_class"]) == {"cat", "dog"}
    names = {"voc_AP50", "voc_AP50_11point", "voc_AP75", "voc_AP"}
    assert found.metrics["per_class"]["dog"] == dict.fromkeys(names, 1)
    assert found.results[0] == {
        "image_id": 3, "category_id": 1, "bbox": [10, 5, 20, 20], "score": 0.9,
        "file_name": "JPEGImages/000003.jpg",
    }  # fmt: skip
    json.dumps([found.metrics, list(found.results)])


def test_thresholds_classes_and_their_mean(index):
    evaluator = VOCEvaluator(index)
    update(evaluator, index, 0, [([10, 5, 30, 19], 0, 0.9)])  # IoU 14 / 20
    update(evaluator, index, 1, [([0, 0, 40, 40], 0, 0.95)])  # the dog called a cat
    found = evaluator.summarize()
    cat, dog = found.metrics["per_class"]["cat"], found.metrics["per_class"]["dog"]
    assert cat["voc_AP50"] == pytest.approx(1 / 2) and cat["voc_AP75"] == 0
    assert cat["voc_AP"] == pytest.approx(1 / 2 * 5 / 10)  # right at .50 .55 .60 .65 .70
    assert dog["voc_AP50"] == 0
    assert found.metrics["voc"]["AP50"] == pytest.approx(1 / 4)


def test_a_class_without_objects_is_undefined_and_in_no_mean(index):
    first = index.keep_images(np.array([True, False]))  # its dog is difficult
    evaluator = VOCEvaluator(first)
    update(evaluator, first, 0, [([10, 5, 30, 25], 0, 0.9), ([0, 40, 9, 49], 1, 0.8)])
    found = evaluator.summarize()
    assert found.metrics["per_class"]["dog"]["voc_AP50"] == -1
    assert found.metrics["voc"]["AP50"] == found.metrics["per_class"]["cat"]["voc_AP50"] == 1
    text = rendered(found)
    assert "dog" in text and "–" in text


def test_nothing_found_is_zero(index):
    evaluator = VOCEvaluator(index)
    update(evaluator, index, 0, [])
    update(evaluator, index, 1, [])
    assert set(evaluator.summarize().metrics["voc"].values()) == {0}


def test_every_image_has_to_be_seen_and_counts_once(index):
    evaluator = VOCEvaluator(index)
    update(evaluator, index, 0, [])
    with pytest.raises(ValueError, match=r"1 of 2 images .*the first of them \[1\]"):
        evaluator.summarize()
    perfect(evaluator, index)  # image 3 a second time: the first, empty one stays
    assert evaluator.summarize().metrics["per_class"]["cat"]["voc_AP50"] == 0
    evaluator.reset()
    perfect(evaluator, index)
    assert evaluator.summarize().metrics["voc"]["AP50"] == 1


def test_evaluators_of_parts_are_merged(index):
    parts = [VOCEvaluator(index), VOCEvaluator(index)]
    update(parts[0], index, 0, [([10, 5, 30, 25], 0, 0.9)])
    update(parts[1], index, 1, [([0, 0, 40, 40], 1, 0.7)])
    parts[0].merge(parts[1].state())
    whole = parts[0].summarize()
    assert whole.metrics["voc"]["AP50"] == 1
    assert whole.notes == []


def test_masks_make_no_difference_which_is_said(index):
    evaluator = VOCEvaluator(index)
    update(evaluator, index, 0, [([10, 5, 30, 25], 0, 0.9)], masks=torch.ones(1, 2, 28, 28))
    update(evaluator, index, 1, [([0, 0, 40, 40], 1, 0.7)])
    found = evaluator.summarize()
    assert found.metrics["voc"]["AP50"] == 1
    assert all("segmentation" not in record for record in found.results)
    assert "Masks are not evaluated" in rendered(found)


def test_errors_are_analysed_where_asked_for(index):
    """The difficult dog counts for nothing, a duplicate of the cat does."""
    evaluator = VOCEvaluator(index, error_threshold=0.5)
    perfect(evaluator, index)
    right = evaluator.summarize()
    assert set(right.errors["voc"].counts.values()) == {0}
    assert right.metrics["voc_errors"] == dict.fromkeys(right.errors["voc"].gains, 0.0)
    dog = right.metrics["per_class"]["dog"]
    assert (dog["voc_threshold"], dog["voc_F1"]) == (pytest.approx(0.7), 1)
    assert right.errors["voc"].curves[1].num_detections == 1
    evaluator.reset()
    update(evaluator, index, 0, [([10, 5, 30, 25], 0, 0.9), ([10, 6, 30, 25], 0, 0.8)])
    update(evaluator, index, 1, [])
    wrong = evaluator.summarize()
    assert wrong.metrics["voc_errors"]["missed"] == pytest.approx(1 - wrong.metrics["voc"]["AP50"])
    assert wrong.errors["voc"].counts["duplicate"] == wrong.errors["voc"].counts["missed"] == 1
    assert wrong.errors["voc"].worst["missed"][0].errors[0].object_box == [0, 0, 40, 40]
    assert "duplicate" in rendered(wrong)


def rendered(evaluation) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(evaluation_table(evaluation))
    return console.export_text()


def test_the_table_names_each_number(index):
    evaluator = VOCEvaluator(index)
    update(evaluator, index, 0, [([10, 5, 30, 19], 0, 0.9)])
    update(evaluator, index, 1, [([0, 0, 40, 40], 1, 0.95)])
    lines = {
        cells[0]: cells[1:]
        for cells in (
            [cell.strip() for cell in line.strip("│").split("│")]
            for line in rendered(evaluator.summarize()).splitlines()
        )
    }
    assert lines["AP50"] == [".50", "area (since VOC 2010)", "1.000"]
    assert lines["AP50_11point"] == [".50", "at 11 recalls (VOC 2007)", "1.000"]
    assert lines["AP75"] == [".75", "area (since VOC 2010)", "0.500"]
    assert lines["AP"] == [".50:.95", "area (since VOC 2010)", "0.750"]
    assert lines["cat"] == lines["dog"] == ["1.000"]
