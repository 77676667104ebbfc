"""Average recall of boxes without a class: against pycocotools called directly, and by hand."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.coco import read_coco
from detector.data.index import AnnotationIndex
from detector.evaluation.coco import CocoEvaluator
from detector.evaluation.voc import VOCEvaluator
from detector.structures import Batch, Detections

LIMITS = (10, 100, 1000)


def evaluate(index: AnnotationIndex, per_image: list[tuple[np.ndarray, np.ndarray]]):
    """Boxes ``(n, 4)`` and scores ``(n,)`` of every image, in pixels of the files."""
    evaluator = CocoEvaluator(index.as_one_class(), ("box",), LIMITS)
    for i, (boxes, scores) in enumerate(per_image):
        size = torch.tensor([[int(index.heights[i]), int(index.widths[i])]])
        image_id = torch.tensor([int(index.image_ids[i])])
        batch = Batch(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), size, size, image_id)
        count = len(boxes)
        found = Detections(
            torch.from_numpy(boxes.astype(np.float32))[None],
            torch.from_numpy(scores.astype(np.float32))[None],
            torch.zeros(1, count).long(),
            torch.ones(1, count).bool(),
        )
        evaluator.update(batch, found)
    return evaluator.summarize()


def pycocotools_directly(file, results) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(file)
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(LIMITS)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def test_average_recall_is_that_of_pycocotools_without_categories(test_data):
    """Hundreds of boxes an image, of which the first ten or hundred find fewer objects."""
    folder = test_data / "coco_mini"
    index = read_coco(folder / "annotations" / "instances_val2017.json", folder / "val2017")
    rng = np.random.default_rng(0)
    per_image = []
    for i in range(len(index)):
        size = np.array([index.widths[i], index.heights[i]] * 2, dtype=np.float64)
        own = index.boxes[index.annotations(i)].astype(np.float64)
        sides = np.tile(own[:, 2:] - own[:, :2], 2)
        near = np.concatenate([own + rng.normal(0, 0.12, own.shape) * sides for _ in range(4)])
        corners = np.sort(rng.uniform(0, 1, (250, 2, 2)), axis=1).reshape(-1, 4) * size
        boxes = np.clip(np.concatenate([near, corners]), 0, size)
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2] > 1).all(1)]
        per_image.append((boxes, rng.permutation(len(boxes)) / len(boxes)))
    found = evaluate(index, per_image)

    direct = pycocotools_directly(index.source_file, list(found.results))
    recall, precision = direct.eval["recall"], direct.eval["precision"]
    assert recall.shape[1] == 1, "all categories are one"
    numbers = found.metrics["box"]
    for m, limit in enumerate(LIMITS):
        assert numbers[f"AR{limit}"] == pytest.approx(recall[:, 0, 0, m].mean(), abs=1e-12)
    for a, size in ((1, "s"), (2, "m"), (3, "l")):
        assert numbers[f"AR{size}"] == pytest.approx(recall[:, 0, a, 2].mean(), abs=1e-12)
    assert numbers["AP"] == pytest.approx(precision[:, :, 0, 0, 2].mean(), abs=1e-12)
    assert numbers["AR10"] + 0.05 < numbers["AR100"] < numbers["AR1000"] - 0.05
    assert numbers["AR1000"] < 0.95


@pytest.fixture
def two_classes(tmp_path) -> AnnotationIndex:
    """A cat and two dogs, of category ids 3 and 7."""
    Image.new("RGB", (200, 200)).save(tmp_path / "1.png")
    boxes = ([10, 10, 40, 40], [100, 10, 40, 40], [10, 100, 40, 40])
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 200, "width": 200}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": n + 1, "image_id": 1, "category_id": c, "bbox": box, "area": 1600, "iscrowd": 0}
            for n, (c, box) in enumerate(zip((3, 7, 7), boxes, strict=True))
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return read_coco(tmp_path / "instances.json", tmp_path)


def test_by_hand(two_classes):
    """A dog and the cat are found; the latter at IoU 32/40 counts at 7 of 10 thresholds."""
    boxes = np.array([[100.0, 10, 140, 50], [10, 10, 42, 50]])  # 32 of the 40 columns
    found = evaluate(two_classes, [(boxes, np.array([0.9, 0.8]))])
    # IoU .8 reaches .50, .55, ... .80.
    assert found.metrics["box"]["AR100"] == pytest.approx((10 + 7) / 10 / 3)
    assert list(found.metrics["per_class"]) == ["object"]
    assert [record["category_id"] for record in found.results] == [1, 1]


def test_one_class_leaves_the_dataset_as_it_was(two_classes):
    one = two_classes.as_one_class()
    assert one.num_classes == 1
    assert one.labels.tolist() == [0, 0, 0]
    assert two_classes.category_names == ["cat", "dog"]
    assert two_classes.labels.tolist() == [0, 1, 1]


def test_voc_counts_all_objects_as_one_class(two_classes):
    """Every object found, whatever its class, and one false box at the end."""
    evaluator = VOCEvaluator(two_classes.as_one_class())
    boxes = torch.tensor(
        [[[10.0, 10, 50, 50], [100, 10, 140, 50], [10, 100, 50, 140], [0, 0, 9, 9]]]
    )
    size = torch.tensor([[200, 200]])
    batch = Batch(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), size, size, torch.tensor([1]))
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    labels = torch.zeros(1, 4).long()
    evaluator.update(batch, Detections(boxes, scores, labels, torch.ones(1, 4).bool()))
    metrics = evaluator.summarize().metrics
    assert metrics["voc"]["AP50"] == pytest.approx(1.0)
    assert list(metrics["per_class"]) == ["object"]
