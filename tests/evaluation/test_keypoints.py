"""Keypoints by OKS: against pycocotools called directly, and against similarities by hand."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params
from rich.console import Console

from detector.data.coco import read_coco
from detector.evaluation.coco import CocoEvaluator
from detector.evaluation.keypoints import COCO_SIGMAS, NUMBERS
from detector.evaluation.table import evaluation_table
from detector.evaluation.voc import VOCEvaluator
from detector.structures import Detections
from tests.evaluation.coco_data import batch_of, square, write_dataset

COCO_NAMES = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee",
    "right_knee", "left_ankle", "right_ankle",
]  # fmt: skip


def keypoint_set(folder, sizes, annotations, names=("nose", "left_eye", "right_eye"), **category):
    """A dataset whose first category has keypoints; of its second, nothing has."""
    write_dataset(folder, sizes, annotations)
    content = json.loads((folder / "instances.json").read_text())
    content["categories"][0] |= {"keypoints": list(names), "skeleton": [[1, 2]], **category}
    (folder / "instances.json").write_text(json.dumps(content))
    return read_coco(folder / "instances.json", folder)


def figure(identifier, x, y, side, visibility, seed=0, **extra):
    """A square annotation with whole-numbered keypoints inside."""
    rng = np.random.default_rng(seed + identifier)
    places = rng.integers([x, y], [x + side, y + side], (len(visibility), 2))
    values = [
        [int(px), int(py), v] if v else [0, 0, 0]
        for (px, py), v in zip(places, visibility, strict=True)
    ]
    keypoints = [number for row in values for number in row]
    return (
        square(
            identifier,
            x,
            y,
            side,
            keypoints=keypoints,
            num_keypoints=sum(v > 0 for v in visibility),
        )
        | extra
    )


def detections_of(found, slots=None):
    """One image's slots from ``(box, label, score, keypoints)``, keypoints ``(J, 3)`` in
    continuous pixels."""
    slots = slots or len(found) + 2
    num_keypoints = len(found[0][3]) if found else 3
    boxes, keypoints = torch.zeros(1, slots, 4), torch.zeros(1, slots, num_keypoints, 3)
    scores, labels = torch.zeros(1, slots), torch.zeros(1, slots, dtype=torch.int64)
    valid = torch.zeros(1, slots, dtype=torch.bool)
    for d, (box, label, score, points) in enumerate(found):
        boxes[0, d] = torch.tensor(np.asarray(box), dtype=torch.float32)
        keypoints[0, d] = torch.tensor(np.asarray(points), dtype=torch.float32)
        labels[0, d], scores[0, d], valid[0, d] = label, score, True
    return Detections(boxes, scores, labels, valid, keypoints=keypoints)


def evaluate(index, per_image, iou_types=("box", "keypoint")):
    evaluator = CocoEvaluator(index, iou_types)
    for i, found in enumerate(per_image):
        evaluator.update(batch_of(index, [i]), detections_of(found))
    return evaluator.summarize()


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """COCO's 17 keypoints on figures of all sizes: some hidden, some with none labelled, a crowd,
    an image without people, and one with more people than 20 detections find."""
    rng = np.random.default_rng(0)
    sizes = [(300, 320)] * 5
    annotations, number = [], 0
    for image, count in enumerate((3, 4, 0, 26, 3), start=1):
        for _ in range(count):
            number += 1
            side = int(rng.choice([20, 45, 130]))
            x, y = rng.integers(0, [320 - side, 300 - side]).tolist()
            visibility = rng.choice([0, 1, 2], 17, p=[0.3, 0.2, 0.5]).tolist()
            visibility = [0] * 17 if number in (2, 9) else visibility
            annotations.append(figure(number, x, y, side, visibility, image=image, image_id=image))
    annotations[5]["iscrowd"] = 1
    annotations[5]["segmentation"] = {"size": [300, 320], "counts": [0, 96000]}
    for annotation in annotations:
        annotation.pop("image")
    annotations[4].pop("keypoints")
    annotations[4].pop("num_keypoints")
    folder = tmp_path_factory.mktemp("people")
    return keypoint_set(folder, sizes, annotations, COCO_NAMES)


def perturbed(index, seed):
    """Figures moved a little or much, some missed, and noise."""
    rng = np.random.default_rng(seed)
    per_image = []
    for i in range(len(index)):
        found = []
        for a in range(*index.annotations(i).indices(index.num_annotations)):
            if rng.random() < 0.1:
                continue
            box = index.boxes[a]
            points = index.keypoints[a].copy()
            missing = points[:, 2] == 0
            points[missing, :2] = rng.uniform(box[:2], box[2:], (missing.sum(), 2))
            points[:, :2] += rng.normal(0, rng.choice([0.01, 0.05, 0.15]), (17, 2)) * (
                box[2] - box[0]
            )
            points[:, 2] = rng.random(17)
            found.append((box, 0, float(rng.uniform(0.1, 1)), points))
        for _ in range(3):
            points = np.concatenate([rng.uniform(0, 300, (17, 2)), rng.random((17, 1))], axis=1)
            found.append(([10, 10, 90, 90], 0, float(rng.uniform(0.1, 0.5)), points))
        per_image.append(found)
    return per_image


def pycocotools_directly(index, results):
    """On the dataset's file, with keypoints alone in the results, as its server takes them."""
    records = [{k: v for k, v in record.items() if k != "bbox"} for record in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(index.source_file))
        for annotation in truth.dataset["annotations"]:
            annotation.setdefault("keypoints", [0] * 51)
            annotation.setdefault("num_keypoints", 0)
        evaluation = COCOeval(truth, truth.loadRes(records), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_the_ten_numbers_are_pycocotools(people):
    found = evaluate(people, perturbed(people, seed=1))
    stats = pycocotools_directly(people, list(found.results))
    numbers = found.metrics["keypoint"]
    assert tuple(numbers) == NUMBERS
    np.testing.assert_allclose(list(numbers.values()), stats, atol=1e-12)
    assert 0.05 < numbers["AP"] < 0.95 and 0.05 < numbers["APm"] < 0.95 and numbers["APl"] > 0.05
    assert found.metrics["per_class"]["cat"]["keypoint_AP"] == pytest.approx(numbers["AP"])
    assert found.metrics["per_class"]["dog"] == {"box_AP": -1.0, "keypoint_AP": -1.0}
    assert found.notes == []


def test_the_truth_found_is_perfect_but_for_what_exceeds_20_detections(people):
    per_image = [
        [
            (people.boxes[a], 0, 0.5 + a / 100, people.keypoints[a])
            for a in range(*people.annotations(i).indices(people.num_annotations))
        ]
        for i in range(len(people))
    ]
    numbers = evaluate(people, per_image[:3] + [[]] + per_image[4:]).metrics["keypoint"]
    labelled = (people.keypoints[..., 2] > 0).any(1) & ~people.crowd
    of_image_4 = np.zeros_like(labelled)
    of_image_4[people.annotations(3)] = True
    recall = (labelled & ~of_image_4).sum() / labelled.sum()
    assert numbers["AR"] == pytest.approx(recall)
    # Of 26 the 20 with the highest scores count; of those before, one has no labels anyway.
    numbers = evaluate(people, per_image).metrics["keypoint"]
    assert numbers["AR"] == pytest.approx(1 - 5 / labelled.sum())


def test_similarity_by_hand(tmp_path):
    """One labelled keypoint a pixels away from the truth has OKS exp(-a^2 / (8 s^2 area)): with
    sigma 0.1 and an area of 400, 2 px are .8825 and 3.5 px .6820, more than 8 and 4 of the
    thresholds."""
    truth = figure(1, 10, 10, 20, [0, 2, 0])
    index = keypoint_set(tmp_path, [(60, 60)], [truth], keypoint_sigmas=[0.2, 0.1, 0.3])
    x, y = truth["keypoints"][3:5]
    for distance, right in ((2.0, 8), (3.5, 4), (0.0, 10)):
        # COCO's numbers count from the centre of the first pixel.
        points = [[0, 0, 1], [x + 0.5 + distance, y + 0.5, 1], [50, 50, 1]]
        numbers = evaluate(index, [[([10, 10, 30, 30], 0, 0.9, points)]]).metrics["keypoint"]
        assert numbers["AP"] == pytest.approx(right / 10), distance
        assert numbers["AR75"] == (1.0 if right >= 6 else 0.0)
        assert numbers["APm"] == numbers["APl"] == numbers["ARl"] == -1.0
    assert index.keypoints[0, 1].tolist() == [x + 0.5, y + 0.5, 2]


def test_an_object_without_labelled_keypoints_is_neither_found_nor_wrong(tmp_path):
    annotations = [figure(1, 10, 10, 20, [2, 2, 2]), figure(2, 60, 60, 25, [0, 0, 0])]
    index = keypoint_set(tmp_path, [(100, 100)], annotations)
    per_image = [
        [
            ([60, 60, 85, 85], 0, 0.9, [[70, 70, 1]] * 3),
            (index.boxes[0], 0, 0.5, index.keypoints[0]),
        ]
    ]
    found = evaluate(index, per_image)
    assert found.metrics["keypoint"]["AP"] == pytest.approx(1)
    assert found.metrics["box"]["AR100"] == 1  # as a box it counts


def test_results_are_in_coco_pixels_of_the_image_files(tmp_path):
    """Scaled with the image, half a pixel subtracted after that, and given back as they were."""
    truth = figure(1, 10, 20, 40, [2, 1, 2])
    index = keypoint_set(tmp_path, [(100, 200)], [truth])
    batch = batch_of(index, [0], [(150, 100)])  # 1.5 times as high, half as wide
    scale = np.float32([0.5, 1.5, 1.0])
    points = index.keypoints[0] * scale
    evaluator = CocoEvaluator(index, ("keypoint",))
    box = index.boxes[0] * [0.5, 1.5, 0.5, 1.5]
    evaluator.update(batch, detections_of([(box, 0, 0.75, points)]))
    found = evaluator.summarize()
    assert found.metrics["keypoint"]["AP"] == pytest.approx(1) and "box" not in found.metrics
    [record] = json.loads(json.dumps(list(found.results)))
    np.testing.assert_allclose(record["keypoints"], truth["keypoints"], atol=1e-3)
    assert record["keypoints"][2::3] == [2, 1, 2]  # the scores, here the visibilities


def test_sigmas_of_coco_are_pycocotools():
    assert list(COCO_SIGMAS) == COCO_NAMES
    np.testing.assert_allclose(list(COCO_SIGMAS.values()), Params("keypoints").kpt_oks_sigmas)


def test_keypoints_without_sigmas_are_refused_with_the_remedy(tmp_path):
    index = keypoint_set(tmp_path, [(60, 60)], [figure(1, 1, 1, 9, [2, 2])], ("nose", "tail"))
    with pytest.raises(ValueError, match=r'known of tail\. Add .*"keypoint_sigmas": .*, 2 numbers'):
        CocoEvaluator(index, ("box", "keypoint"))
    CocoEvaluator(index, ("box",))


def test_what_has_no_keypoints_is_left_out_and_said(tmp_path, people):
    (tmp_path / "boxes").mkdir()
    boxes = write_dataset(tmp_path / "boxes", [(60, 60)], [square(1, 5, 5, 20)])
    points = [[1, 1, 1]] * 3
    found = evaluate(boxes, [[([5, 5, 25, 25], 0, 0.9, points)]])
    assert set(found.metrics) == {"box", "per_class"}
    assert found.notes == [f"Keypoints are not evaluated: {boxes.source_file} has none."]

    index = keypoint_set(tmp_path, [(60, 60)], [figure(1, 5, 5, 20, [2, 2, 2])])
    detections = replace(detections_of([([5, 5, 25, 25], 0, 0.9, points)]), keypoints=None)
    evaluator = CocoEvaluator(index, ("box", "keypoint"))
    evaluator.update(batch_of(index, [0]), detections)
    found = evaluator.summarize()
    assert set(found.metrics) == {"box", "per_class"}
    assert found.notes == ["Keypoints are not evaluated: the model finds none."]


def test_voc_says_that_keypoints_are_not_measured(tmp_path):
    index = keypoint_set(tmp_path, [(60, 60)], [figure(1, 5, 5, 20, [2, 2, 2])])
    evaluator = VOCEvaluator(index)
    evaluator.update(
        batch_of(index, [0]), detections_of([([5, 5, 25, 25], 0, 0.9, [[1, 1, 1]] * 3)])
    )
    found = evaluator.summarize()
    assert found.metrics["voc"]["AP50"] == 1 and "keypoints" not in found.results[0]
    assert found.notes == ["Keypoints are not evaluated: VOC's numbers here are those of boxes."]


def test_the_table_has_the_ten_numbers_and_the_classes(people):
    found = evaluate(people, perturbed(people, seed=2))
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(evaluation_table(found))
    lines = console.export_text().splitlines()
    start = next(i for i, line in enumerate(lines) if "evaluation of keypoints" in line)
    rows = [line.strip("│ ").split("│") for line in lines[start:] if line.startswith("│")]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}
    numbers = found.metrics["keypoint"]
    assert rows["AP50"] == [".50", "all", "20", f"{numbers['AP50']:.3f}"]
    assert rows["ARl"] == [".50:.95", "large", "20", f"{numbers['ARl']:.3f}"]
    assert rows["AR"][:3] == [".50:.95", "all", "20"]
    assert rows["dog"] == ["–", "–"]
