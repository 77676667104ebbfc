"""Results of other frameworks: what is read, and what is refused in which words."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detector.evaluation.coco import CocoEvaluator
from detector.evaluation.results_file import read_results
from tests.evaluation.coco_data import square, write_dataset

RECORD = {"image_id": 1, "category_id": 7, "bbox": [10.0, 10.0, 20.0, 20.0], "score": 0.5}
RING = [10, 10, 30, 10, 30, 30, 10, 30]
RLE = coco_mask.merge(coco_mask.frPyObjects([RING], 60, 80))
TEXT = {"size": [60, 80], "counts": RLE["counts"].decode()}
LENGTHS = {"size": [60, 80], "counts": [610, *[20, 40] * 19, 20, 60 * 50 + 30]}


@pytest.fixture
def index(tmp_path):
    annotations = [square(1, 10, 10, 20, category=7), square(2, 10, 20, 30, category=9, image=2)]
    return write_dataset(tmp_path, [(60, 80), (70, 50)], annotations, ((7, "cat"), (9, "dog")))


@pytest.fixture
def read(index, tmp_path):
    def read(content):
        file = tmp_path / "results.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_results(file, index)

    return read


def test_boxes_and_masks_of_every_encoding_are_the_same(read, index):
    tables = []
    for segmentation in (TEXT, LENGTHS, [RING]):
        found = read(
            [
                RECORD | {"segmentation": segmentation},
                RECORD | {"segmentation": segmentation, "image_id": 1},
            ]
        )
        assert found.kinds == ["box", "mask"]
        evaluator = CocoEvaluator(index)
        evaluator.merge(found.found)
        tables.append(evaluator.summarize())
        assert tables[-1].metrics["mask"]["AP"] == pytest.approx(0.5), "of two objects one"
    records = [list(each.results) for each in tables]
    assert records[0] == records[1] == records[2] == [RECORD | {"segmentation": TEXT}] * 2


def test_boxes_alone_and_masks_alone(read):
    found = read([RECORD])
    assert found.kinds == ["box"] and found.found[1].counts is None
    assert found.notes == ["1 of 2 images have no detections."]
    masks = {key: value for key, value in RECORD.items() if key != "bbox"} | {"segmentation": TEXT}
    found = read([masks])
    assert found.kinds == ["box", "mask"]
    np.testing.assert_array_equal(found.found[1].boxes, [[10, 10, 20, 20]])
    assert read([]).kinds == ["box"] and set(read([]).found) == {1, 2}


def test_boxes_given_by_their_corners_are_pointed_out(read):
    found = read([RECORD | {"bbox": [40.0, 30.0, 79.0, 59.0]}])
    assert "are they (x1, y1, x2, y2)?" in found.notes[-1]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not a JSON file"),
        ('"text"', "holds a str, no list of detections"),
        ({"images": [], "annotations": []}, "ground truth: annotations=FILE"),
        ([3], "record 0: is 3, no record"),
        ([RECORD, {"image_id": 1}], r"record 1: has no category_id\n.*record 1: has no score"),
        ([RECORD | {"image_id": "1"}], "image_id is '1', no whole number"),
        ([RECORD | {"score": None}], "score is None"),
        (json.dumps([RECORD | {"score": float("nan")}]), "score is nan"),
        ([RECORD | {"image_id": 5}], r"1 image ids are not in .*instances.json.*\[5\]"),
        ([RECORD | {"category_id": 0}], r"category ids.*\[0\].*\[7, 9\]; counted from 0"),
        ([RECORD | {"category_id": 90}], r"\[90\]; its categories are \[7, 9\]$"),
        ([RECORD | {"bbox": [1, 2, 3]}], r"bbox is \[1, 2, 3\], not \[x, y, width, height\]"),
        ([RECORD | {"bbox": [9, 9, -3, 2]}], "negative width"),
        ([{k: v for k, v in RECORD.items() if k != "bbox"}], "neither bbox nor segmentation"),
        ([RECORD, RECORD | {"segmentation": TEXT}], "record 0 and 0 others of 2 have no segm"),
        ([RECORD | {"segmentation": {"size": [80, 60], "counts": ""}}], r"\[80, 60\], but.*60, 80"),
        ([RECORD | {"segmentation": {"size": [60, 80], "counts": "1"}}], "do not fill the image"),
        ([RECORD | {"segmentation": {"size": [60, 80], "counts": "~é"}}], "do not fill"),
        ([RECORD | {"segmentation": {"size": [60, 80], "counts": [-5, 4805]}}], "do not fill"),
        ([RECORD | {"segmentation": [[1, 2, 3, 4]]}], "no list of polygons"),
        ([RECORD | {"segmentation": 7}], "run lengths have size and counts"),
        ([RECORD | {"keypoints": [1, 2, 0.5]}], "keypoints are not 0 times"),
    ],
)
def test_what_is_wrong_is_said(read, content, message):
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        read(content)
    assert "results.json" in str(error.value)


def test_many_problems_are_counted_and_some_listed(read):
    with pytest.raises(ValueError, match=r"(?s)9 problems.*record 4:.*\.\.\. and 4 more") as error:
        read([RECORD | {"score": "high"}] * 9)
    assert "record 5" not in str(error.value)


def test_a_file_that_is_not_there(index, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_results(tmp_path / "none.json", index)
