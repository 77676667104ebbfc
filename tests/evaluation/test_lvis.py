"""LVIS AP: against its rules written out on top of pycocotools, and cases worked out by hand."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from detector.data.lvis import read_lvis
from detector.evaluation.backends import as_coco, quiet
from detector.evaluation.detection_table import join_images, pack_records
from detector.evaluation.lvis import LVISEvaluator, best_of_images
from tests.evaluation.random_truth import random_case


def write_lvis(folder, truth, negatives, partial, frequencies):
    """The index of a file with ``negatives`` and ``partial`` category ids of each image."""
    images = [
        image
        | {
            "file_name": f"{image['id']}.png",
            "neg_category_ids": absent,
            "not_exhaustive_category_ids": rest,
        }
        for image, absent, rest in zip(truth["images"], negatives, partial, strict=True)
    ]
    categories = [
        category | {"frequency": frequency}
        for category, frequency in zip(truth["categories"], frequencies, strict=True)
    ]
    annotations = [
        {k: v for k, v in a.items() if k not in ("iscrowd", "keypoints", "num_keypoints")}
        for a in truth["annotations"]
    ]
    file = folder / "lvis.json"
    content = {"images": images, "categories": categories, "annotations": annotations}
    file.write_text(json.dumps(content))
    return read_lvis(file, folder, check_files=False)


def evaluate(index, table, **options):
    evaluator = LVISEvaluator(index, **options)
    for i, image_id in enumerate(table.image_ids.tolist()):
        records = table[int(table.offsets[i]) : int(table.offsets[i + 1])]
        labels = table.labels[table.offsets[i] : table.offsets[i + 1]]
        packed = pack_records(records, labels, tuple(table.sizes[i].tolist()))
        evaluator.merge({image_id: packed})
    return evaluator.summarize()


class Rules(COCOeval):
    """LVIS's two rules for what is not annotated, on COCO's matching."""

    def __init__(self, truth, records, kind, images, limit=300):
        positive = {(a["image_id"], a["category_id"]) for a in truth["annotations"]}
        asked = positive | {(i["id"], k) for i in images for k in i["neg_category_ids"]}
        best = []
        for image in images:
            own = [r for r in records if r["image_id"] == image["id"]]
            best += sorted(own, key=lambda r: -r["score"])[:limit]
        counted = [dict(r) for r in best if (r["image_id"], r["category_id"]) in asked]
        if kind == "segm":  # the authors' package leaves empty masks out
            counted = [r for r in counted if coco_mask.area(r["segmentation"]) > 0]
        for record in counted:
            record.pop("bbox" if kind == "segm" else "segmentation")
        super().__init__(as_coco(**truth), as_coco(**truth).loadRes(counted), kind)
        self.partial = {(i["id"], k) for i in images for k in i["not_exhaustive_category_ids"]}
        self.params.maxDets = [300]

    def evaluateImg(self, image_id, category_id, area, limit):
        found = super().evaluateImg(image_id, category_id, area, limit)
        if found is not None and (image_id, category_id) in self.partial:
            found["dtIgnore"] = np.logical_or(found["dtIgnore"], found["dtMatches"] == 0)
        return found


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    truth, table = random_case(7, num_images=10, crowded_image=340)
    kept = [a for a in truth["annotations"] if coco_mask.area(a["segmentation"]) > 0]
    truth["annotations"] = [annotation | {"iscrowd": 0} for annotation in kept]
    rng = np.random.default_rng(0)
    ids = [category["id"] for category in truth["categories"]]
    present = {image["id"]: set() for image in truth["images"]}
    for annotation in truth["annotations"]:
        present[annotation["image_id"]].add(annotation["category_id"])
    negatives = [
        [k for k in ids if k not in present[image["id"]] and rng.random() < 0.5]
        for image in truth["images"]
    ]
    partial = [[k for k in ids if rng.random() < 0.3] for image in truth["images"]]
    folder = tmp_path_factory.mktemp("lvis")
    return truth, table, write_lvis(folder, truth, negatives, partial, "rrcffc")


@pytest.mark.parametrize("backend", ["faster_coco_eval", "pycocotools"])
def test_numbers_are_those_of_the_rules(case, backend):
    truth, table, index = case
    found = evaluate(index, table, backend=backend)
    images = json.loads(index.source_file.read_text())["images"]
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        with quiet():
            rules = Rules(truth, list(table), name, images)
            rules.evaluate()
            rules.accumulate()
        precision = rules.eval["precision"][..., 0]
        recall = rules.eval["recall"][..., 0]
        mean = lambda values: values[values > -1].mean()  # noqa: E731
        expected = {
            "AP": mean(precision[:, :, :, 0]),
            "AP50": mean(precision[0, :, :, 0]),
            "AP75": mean(precision[5, :, :, 0]),
            "APs": mean(precision[:, :, :, 1]),
            "APm": mean(precision[:, :, :, 2]),
            "APl": mean(precision[:, :, :, 3]),
            "APr": mean(precision[:, :, [0, 1], 0]),
            "APc": mean(precision[:, :, [2, 5], 0]),
            "APf": mean(precision[:, :, [3, 4], 0]),
            "AR300": mean(recall[:, :, 0]),
            "ARs": mean(recall[:, :, 1]),
            "ARm": mean(recall[:, :, 2]),
            "ARl": mean(recall[:, :, 3]),
        }
        assert found.metrics[kind] == pytest.approx(expected, abs=1e-12)
        assert list(found.metrics[kind]) == list(expected)
    assert len(found.results) == len(table), "what does not count is still a result"


def one_image(folder, detections, negatives, partial):
    """AP50 by class of an image with one object of class 1, ``(class, box, score)`` found in it."""
    truth = {
        "images": [{"id": 1, "height": 120, "width": 160}],
        "categories": [{"id": k, "name": str(k)} for k in (1, 2)],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [10, 10, 20, 20],
                "area": 400,
                "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]],
            }
        ],
    }
    index = write_lvis(folder, truth, [negatives], [partial], "rf")
    records = [{"bbox": box, "score": score} for _, box, score in detections]
    packed = pack_records(records, [k - 1 for k, _, _ in detections], (120, 160))
    table = join_images([1], [1, 2], [packed])
    return evaluate(index, table, iou_types=["box"]).metrics


RIGHT = (1, [10.0, 10.0, 20.0, 20.0], 0.5)
ELSEWHERE = (1, [80.0, 60.0, 20.0, 20.0], 0.9)


@pytest.mark.parametrize("partial, expected", [([], 0.5), ([1], 1.0)])
def test_a_detection_too_many_is_wrong_where_all_objects_are_annotated(tmp_path, partial, expected):
    metrics = one_image(tmp_path, [RIGHT, ELSEWHERE], [], partial)
    assert metrics["box"]["AP50"] == pytest.approx(expected)
    assert metrics["box"]["APr"] == pytest.approx(expected) and metrics["box"]["APf"] == -1


def test_300_detections_of_an_image_count_over_all_classes(tmp_path):
    others = [(2, [1.0, 1.0, 9.0, 9.0], 0.6)] * 299
    assert one_image(tmp_path, [*others, RIGHT], [], [])["box"]["AR300"] == pytest.approx(1)
    assert one_image(tmp_path, [*others, others[0], RIGHT], [], [])["box"]["AR300"] == 0


def test_of_equal_scores_the_first_are_the_best():
    packed = [
        pack_records(
            [{"bbox": [0, 0, 1, 1], "score": s} for s in scores], [0] * len(scores), (9, 9)
        )
        for scores in ([0.5, 0.9, 0.5, 0.5], [0.1])
    ]
    table = join_images([1, 2], [1], packed)
    assert best_of_images(table, 2).tolist() == [True, True, False, False, True]


def test_files_without_what_was_looked_for_are_refused(tmp_path, case):
    index = case[2].as_one_class()
    with pytest.raises(ValueError, match="neg_category_ids"):
        LVISEvaluator(index)
