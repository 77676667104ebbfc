"""The evaluator: against pycocotools called directly, and against numbers worked out by hand."""

import contextlib
import io
import json
from collections import Counter

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.data.coco import read_coco
from detector.evaluation.coco import CocoEvaluator
from tests.evaluation.coco_data import batch_of, detections_of, evaluate, square, write_dataset

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def perturbed_truth(index, truth, seed, noise=4):
    """Per image, the ground truth moved, partly missed, partly of a wrong class, and noise."""
    rng = np.random.default_rng(seed)
    per_image = []
    for i, image_id in enumerate(index.image_ids.tolist()):
        height, width = int(index.heights[i]), int(index.widths[i])
        found = []
        for annotation in truth.loadAnns(truth.getAnnIds(image_id, iscrowd=False)):
            if rng.random() < 0.15:
                continue
            x, y, w, h = annotation["bbox"]
            shift = rng.normal(0, 0.06, 4) * [w, h, w, h]
            box = np.array([x, y, x + w, y + h]) + shift
            box = np.clip(box, 0, [width, height, width, height])
            if (box[2:] - box[:2]).min() < 1:
                continue
            label = int(np.searchsorted(index.category_ids, annotation["category_id"]))
            label = int(rng.integers(index.num_classes)) if rng.random() < 0.1 else label
            mask = sampled(truth.annToMask(annotation), box)
            found.append((box, label, rng.uniform(0.05, 1), mask))
        for _ in range(rng.integers(noise // 2, noise)):
            corners = np.sort(rng.uniform(0, 1, (2, 2)), axis=0) * [width, height]
            label = int(rng.integers(index.num_classes))
            mask = (rng.random((28, 28)) > 0.3).astype(np.float32)
            found.append((corners.reshape(4), label, rng.uniform(0.05, 0.6), mask))
        per_image.append(found)
    return per_image


def sampled(mask, box, side=28):
    """A full mask looked up at the cell centres of a box."""
    steps = (np.arange(side) + 0.5) / side
    x = (box[0] + steps * (box[2] - box[0])).astype(int).clip(0, mask.shape[1] - 1)
    y = (box[1] + steps * (box[3] - box[1])).astype(int).clip(0, mask.shape[0] - 1)
    return mask[y][:, x].astype(np.float32)


def pycocotools_directly(file, results, kind, max_detections=None):
    """pycocotools on the dataset's file, the way its own demonstration goes."""
    # loadRes takes the area from a box where there is one: masks are compared without theirs.
    drop = "bbox" if kind == "segm" else "segmentation"
    results = [{k: v for k, v in record.items() if k != drop} for record in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(file)
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        if max_detections:
            evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def quiet_truth(file):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(file)


@pytest.fixture(scope="module")
def coco_mini(test_data):
    folder = test_data / "coco_mini"
    return read_coco(folder / "annotations" / "instances_val2017.json", folder / "val2017")


@pytest.fixture(scope="module")
def coco_mini_evaluation(coco_mini):
    """The whole way: batches of two at resized shapes, padded slots, masks 28 x 28."""
    per_image = perturbed_truth(coco_mini, quiet_truth(coco_mini.source_file), seed=0)
    evaluator = CocoEvaluator(coco_mini)
    for first in range(0, len(coco_mini), 2):
        positions = list(range(first, min(first + 2, len(coco_mini))))
        sizes, resized = [], []
        for i in positions:
            height, width = int(coco_mini.heights[i]), int(coco_mini.widths[i])
            size = [round(height * 1.37), round(width * 1.37)]
            scale = np.array([size[1] / width, size[0] / height] * 2)
            sizes.append(size)
            resized.append([(box * scale, *rest) for box, *rest in per_image[i]])
        batch = batch_of(coco_mini, positions, sizes)
        evaluator.update(batch, detections_of(resized, slots=100))
    return per_image, evaluator.summarize()


# Against pycocotools.


@pytest.mark.parametrize("kind, iou_type", [("box", "bbox"), ("mask", "segm")])
def test_twelve_numbers_are_those_of_pycocotools(coco_mini, coco_mini_evaluation, kind, iou_type):
    _, found = coco_mini_evaluation
    direct = pycocotools_directly(coco_mini.source_file, found.results, iou_type)
    assert list(found.metrics[kind]) == KEYS
    np.testing.assert_allclose(list(found.metrics[kind].values()), direct.stats, rtol=0, atol=1e-12)
    assert 0.1 < found.metrics[kind]["AP"] < 0.9, "perturbed enough to tell mistakes"


@pytest.mark.parametrize("kind, iou_type", [("box", "bbox"), ("mask", "segm")])
def test_ap_of_a_class_is_that_of_the_class_alone(coco_mini, coco_mini_evaluation, kind, iou_type):
    _, found = coco_mini_evaluation
    person = int(coco_mini.category_ids[coco_mini.category_names.index("person")])
    alone = [record for record in found.results if record["category_id"] == person]
    direct = pycocotools_directly(coco_mini.source_file, alone, iou_type)
    precision = direct.eval["precision"][:, :, direct.params.catIds.index(person), 0, -1]
    ap = found.metrics["per_class"]["person"][f"{kind}_AP"]
    assert ap == pytest.approx(precision.mean(), abs=1e-12)
    assert len(found.metrics["per_class"]) == 80


def test_results_lie_where_the_detections_did(coco_mini, coco_mini_evaluation):
    per_image, found = coco_mini_evaluation
    expected = [box for detections in per_image for box, *_ in detections]
    boxes = np.array([record["bbox"] for record in found.results])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(boxes, expected, atol=2e-3)  # written to a thousandth of a pixel
    json.dumps(list(found.results))  # plain values
    sizes = {int(i): [int(h), int(w)] for i, h, w in zip(
        coco_mini.image_ids, coco_mini.heights, coco_mini.widths, strict=True
    )}  # fmt: skip
    assert all(r["segmentation"]["size"] == sizes[r["image_id"]] for r in found.results)


def test_more_than_100_detections_count_where_the_limit_allows(test_data, tmp_path):
    """On the four fullest images of the nuclei, with false detections up to 150 in an image."""
    folder = test_data / "nuclei"
    content = json.loads((folder / "annotations" / "train.json").read_text())
    counts = Counter(annotation["image_id"] for annotation in content["annotations"])
    fullest = {image_id for image_id, _ in counts.most_common(4)}
    content["images"] = [r for r in content["images"] if r["id"] in fullest]
    content["annotations"] = [r for r in content["annotations"] if r["image_id"] in fullest]
    file = tmp_path / "fullest.json"
    file.write_text(json.dumps(content))
    index = read_coco(file, folder / "train")
    per_image = perturbed_truth(index, quiet_truth(file), seed=1, noise=80)
    found = evaluate(index, per_image, max_detections=(1, 10, 200))
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        numbers = found.metrics[kind]
        assert list(numbers)[6:9] == ["AR1", "AR10", "AR200"]
        direct = pycocotools_directly(file, found.results, iou_type, (1, 10, 200))
        # Its first number presumes a limit of 100; the others follow the largest limit.
        assert direct.stats[0] == -1
        np.testing.assert_allclose(list(numbers.values())[1:], direct.stats[1:], atol=1e-12)
        by_threshold = direct.eval["precision"][:, :, 0, 0, 2].mean(1)
        assert numbers["AP"] == pytest.approx(by_threshold.mean(), abs=1e-12)
    fewer = evaluate(index, per_image, max_detections=(1, 10, 100))
    assert fewer.metrics["box"]["AR100"] < found.metrics["box"]["AR200"]
    assert fewer.metrics["box"]["AP"] < found.metrics["box"]["AP"]


# By hand.


def test_ap_by_hand(tmp_path):
    """One of two found, then a false one: precision 1 up to recall .5, or 51 of 101 recalls."""
    index = write_dataset(tmp_path, [(200, 200)], [square(5, 10, 10, 50), square(6, 100, 100, 50)])
    exact, false = ([10, 10, 60, 60], 0, 0.9, None), ([120, 10, 170, 60], 0, 0.8, None)
    found = evaluate(index, [[exact, false]])
    for kind in ("box", "mask"):
        numbers = found.metrics[kind]
        for key in ("AP", "AP50", "AP75", "APm"):
            assert numbers[key] == pytest.approx(51 / 101)
        assert numbers["AR1"] == numbers["AR100"] == numbers["ARm"] == pytest.approx(0.5)
        # Nothing small or large, and no dog: undefined, as COCO marks it.
        assert [numbers[key] for key in ("APs", "APl", "ARs", "ARl")] == [-1.0] * 4
    assert found.metrics["per_class"]["cat"] == pytest.approx(
        {"box_AP": 51 / 101, "mask_AP": 51 / 101}
    )
    assert found.metrics["per_class"]["dog"] == {"box_AP": -1.0, "mask_AP": -1.0}


def test_found_exactly_is_one_in_boxes_and_masks(tmp_path):
    truth = [square(1, 10, 10, 50), square(2, 100, 20, 20, category=2)]
    index = write_dataset(tmp_path, [(120, 150)], truth)
    exact = [([10, 10, 60, 60], 0, 0.9, None), ([100, 20, 120, 40], 1, 0.8, None)]
    found = evaluate(index, [exact])
    for kind in ("box", "mask"):
        numbers = {key: value for key, value in found.metrics[kind].items() if value != -1}
        assert numbers == pytest.approx(dict.fromkeys(numbers, 1.0))


def test_size_is_that_of_what_is_compared(tmp_path):
    """A false detection with a large box and a small mask is small where masks are compared."""
    truth = [square(1, 0, 0, 150), square(2, 200, 0, 20)]
    index = write_dataset(tmp_path, [(400, 400)], truth)
    dot = np.zeros((28, 28), np.float32)
    dot[13:15, 13:15] = 1.0
    false = ([200, 200, 350, 350], 0, 0.95, dot)
    exact = [([0, 0, 150, 150], 0, 0.9, None), ([200, 0, 220, 20], 0, 0.8, None)]
    found = evaluate(index, [[false, *exact]])
    assert found.metrics["box"]["APs"] == pytest.approx(1.0)
    assert found.metrics["box"]["APl"] == pytest.approx(0.5)
    assert found.metrics["mask"]["APs"] == pytest.approx(0.5)
    assert found.metrics["mask"]["APl"] == pytest.approx(1.0)


def test_match_with_annotation_of_id_zero_counts(tmp_path):
    index = write_dataset(tmp_path, [(100, 100)], [square(0, 10, 10, 50)])
    found = evaluate(index, [[([10, 10, 60, 60], 0, 0.9, None)]])
    assert found.metrics["box"]["AP"] == found.metrics["mask"]["AP"] == pytest.approx(1.0)


def test_detections_on_a_crowd_are_neither_right_nor_wrong(tmp_path):
    crowd = np.zeros((100, 200), np.uint8, order="F")
    crowd[:, 100:] = 1
    encoded = coco_mask.encode(crowd)
    region = {
        "iscrowd": 1,
        "bbox": [100, 0, 100, 100],
        "area": 10000,
        "segmentation": {"size": [100, 200], "counts": encoded["counts"].decode()},
    }
    truth = [square(1, 10, 10, 50), square(2, 100, 0, 100, **region)]
    index = write_dataset(tmp_path, [(100, 200)], truth)
    on_crowd = [([x, 20, x + 30, 60], 0, 0.95, None) for x in (110, 120, 150)]
    found = evaluate(index, [[*on_crowd, ([10, 10, 60, 60], 0, 0.9, None)]])
    assert found.metrics["box"]["AP"] == found.metrics["mask"]["AP"] == pytest.approx(1.0)


def test_crowd_without_mask_is_the_region_of_its_box(tmp_path):
    crowd = square(2, 100, 0, 100, iscrowd=1)
    del crowd["segmentation"], crowd["area"]
    index = write_dataset(tmp_path, [(100, 200)], [square(1, 10, 10, 50), crowd])
    on_crowd = ([110, 20, 150, 60], 0, 0.95, None)
    found = evaluate(index, [[on_crowd, ([10, 10, 60, 60], 0, 0.9, None)]])
    assert found.metrics["mask"]["AP"] == pytest.approx(1.0)


def test_hand_made_file_without_area_and_crowd_flag(tmp_path):
    bare = square(1, 10, 10, 50)
    del bare["area"], bare["iscrowd"]
    index = write_dataset(tmp_path, [(100, 100)], [bare])
    found = evaluate(index, [[([10, 10, 60, 60], 0, 0.9, None)]])
    assert found.metrics["mask"]["APm"] == pytest.approx(1.0)


def test_category_ids_with_gaps(tmp_path):
    truth = [square(1, 10, 10, 50, category=90), square(2, 10, 70, 20, category=7)]
    index = write_dataset(tmp_path, [(100, 100)], truth, categories=[(90, "zebra"), (7, "ant")])
    found = evaluate(index, [[([10, 70, 30, 90], 0, 0.9, None), ([10, 10, 60, 60], 1, 0.8, None)]])
    assert [record["category_id"] for record in found.results] == [7, 90]
    assert found.metrics["box"]["AP"] == pytest.approx(1.0)
    assert list(found.metrics["per_class"]) == ["ant", "zebra"]


def test_nothing_found_is_zero(tmp_path):
    index = write_dataset(tmp_path, [(100, 100)], [square(1, 10, 10, 50)])
    found = evaluate(index, [[]])
    assert found.results == []
    assert found.metrics["box"]["AP"] == found.metrics["mask"]["AR100"] == 0.0


def test_skipped_records_are_not_in_the_ground_truth(tmp_path):
    truth = [square(1, 10, 10, 50), square(2, 70, 70, 20, bbox=[70, 70, -5, 20]), {"id": "lost"}]
    with pytest.raises(ValueError):
        write_dataset(tmp_path, [(100, 100)], truth)
    index = read_coco(tmp_path / "instances.json", tmp_path, on_error="skip")
    found = evaluate(index, [[([10, 10, 60, 60], 0, 0.9, None)]])
    assert found.metrics["box"]["AP"] == pytest.approx(1.0)


# What is left out, and how evaluators work together.


def test_dataset_of_boxes_evaluates_boxes_and_says_so(tmp_path):
    bare = square(1, 10, 10, 50)
    del bare["segmentation"]
    index = write_dataset(tmp_path, [(100, 100)], [bare])
    found = evaluate(index, [[([10, 10, 60, 60], 0, 0.9, None)]])
    assert set(found.metrics) == {"box", "per_class"}
    assert found.metrics["per_class"]["cat"] == pytest.approx({"box_AP": 1.0})
    assert len(found.notes) == 1 and "instances.json" in found.notes[0]


def test_model_of_boxes_evaluates_boxes_and_says_so(tmp_path):
    index = write_dataset(tmp_path, [(100, 100)], [square(1, 10, 10, 50)])
    evaluator = CocoEvaluator(index)
    detections = detections_of([[([10, 10, 60, 60], 0, 0.9, None)]], with_masks=False)
    evaluator.update(batch_of(index, [0]), detections)
    found = evaluator.summarize()
    assert set(found.metrics) == {"box", "per_class"} and "segmentation" not in found.results[0]
    assert "boxes only" in found.notes[0]


def test_images_that_were_not_seen_are_named(tmp_path):
    index = write_dataset(tmp_path, [(50, 50)] * 3, [square(1, 10, 10, 20)])
    evaluator = CocoEvaluator(index)
    evaluator.update(batch_of(index, [0, 2]), detections_of([[], []]))
    with pytest.raises(ValueError, match=r"1 of 3 images .* \[2\]"):
        evaluator.summarize()


def test_shards_merge_into_the_whole(tmp_path):
    truth = [square(i, 10, 10, 20, image=i) for i in (1, 2, 3)]
    index = write_dataset(tmp_path, [(50, 50)] * 3, truth)
    per_image = [[([10, 10, 30, 28 + i], 0, 0.5 + 0.1 * i, None)] for i in range(3)]
    first, second = CocoEvaluator(index), CocoEvaluator(index)
    first.update(batch_of(index, [0, 2]), detections_of([per_image[0], per_image[2]]))
    # A sampler that fills up the last batch shows an image to both.
    second.update(batch_of(index, [1, 0]), detections_of([per_image[1], per_image[0]]))
    first.merge(second.state())
    whole = evaluate(index, per_image)
    assert first.summarize().metrics == whole.metrics
    assert first.summarize().results == whole.results


def test_an_evaluator_serves_again_after_reset(tmp_path):
    index = write_dataset(tmp_path, [(100, 100)], [square(1, 10, 10, 50)])
    evaluator = CocoEvaluator(index)
    for expected, box in ((0.0, [60, 60, 90, 90]), (1.0, [10, 10, 60, 60])):
        evaluator.reset()
        evaluator.update(batch_of(index, [0]), detections_of([[(box, 0, 0.9, None)]]))
        metrics = evaluator.summarize().metrics
        assert metrics["box"]["AP"] == metrics["mask"]["AP"] == pytest.approx(expected)


def test_nothing_is_printed(tmp_path, capsys):
    index = write_dataset(tmp_path, [(100, 100)], [square(1, 10, 10, 50)])
    evaluate(index, [[([10, 10, 60, 60], 0, 0.9, None)]])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("limits", [(100,), (1, 10), (10, 1, 100), (0, 10, 100), (1, 10, 10)])
def test_limits_that_make_no_sense_are_refused(tmp_path, limits):
    index = write_dataset(tmp_path, [(100, 100)], [square(1, 10, 10, 50)])
    with pytest.raises(ValueError, match="max_detections"):
        CocoEvaluator(index, max_detections=limits)
