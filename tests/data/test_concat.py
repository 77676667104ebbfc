"""Datasets of several formats as one: classes by name, unique ids, all their images."""

from __future__ import annotations

import numpy as np
import pytest

from detector.data.concat import ConcatDataset, concatenate
from detector.data.csv_table import CSVDataset
from detector.data.dataset import DetectionDataset
from detector.evaluation.ground_truth import load_ground_truth
from tests.data.photos import objects, write_photo


@pytest.fixture
def datasets(coco_folder, tmp_path):
    """COCO with the classes dog and cat, a table with cat, horse and puppy."""
    coco_folder.write()
    write_photo(tmp_path / "table/1.jpg")
    (tmp_path / "table.csv").write_text(
        "image,x1,y1,x2,y2,label,polygon\n"
        "1.jpg,1,2,9,8,cat,\n1.jpg,5,5,9,9,horse,5 5 9 5 9 9\n1.jpg,0,0,20,9,puppy,\n"
    )
    return {
        "one": DetectionDataset(coco_folder.json, coco_folder.images),
        "two": CSVDataset("table.csv", "table", root=tmp_path),
    }


def test_classes_are_matched_by_name(datasets):
    index = ConcatDataset(datasets, rename={"puppy": "dog"}).index
    assert index.category_names == ["dog", "cat", "horse"] and index.category_ids.tolist() == [
        1,
        2,
        3,
    ]
    one, two = datasets["one"].index, datasets["two"].index
    for image in range(3):
        assert objects(index, image) == objects(one, image)
    renamed = [("dog" if name == "puppy" else name, *rest) for name, *rest in objects(two, 0)]
    assert objects(index, 3) == renamed
    assert (
        len(index) == 4
        and index.path(3).samefile(two.path(0))
        and index.path(0).samefile(one.path(0))
    )


def test_ids_are_kept_where_they_are_unique(datasets):
    index = concatenate({name: each.index for name, each in datasets.items()}, rename=None)
    assert index.image_ids.tolist() == [1, 2, 3, 4]  # both have an image 1
    assert len(set(index.annotation_ids.tolist())) == 7
    one = datasets["one"].index
    alone = concatenate({"one": one})
    assert np.array_equal(alone.image_ids, one.image_ids)
    assert np.array_equal(alone.annotation_ids, one.annotation_ids)


def test_dropped_classes_leave_their_images(datasets):
    index = concatenate(
        {name: each.index for name, each in datasets.items()}, None, {}, ["cat", "puppy"]
    )
    assert index.category_names == ["dog", "horse"] and len(index) == 4
    assert [name for name, *_ in objects(index, 0)] == ["dog"]
    assert objects(index, 3) == [("horse", [5, 5, 9, 9], [[[5, 5], [9, 5], [9, 9]]], False)]
    dataset = ConcatDataset(datasets, drop=["dog", "puppy", "horse"], keep_empty=False)
    assert len(dataset) == 2 and dataset[0].labels.tolist() == [0]


def test_an_order_can_be_given(datasets):
    index = ConcatDataset(datasets, ["horse", "cat", "dog"], {"puppy": "dog"}).index
    assert index.category_names == ["horse", "cat", "dog"]
    assert [name for name, *_ in objects(index, 3)] == ["cat", "horse", "dog"]


def test_evaluation_sees_every_object(datasets):
    dataset = ConcatDataset(datasets, rename={"puppy": "dog"})
    truth = load_ground_truth(dataset.index)
    assert sorted(truth.getImgIds()) == [1, 2, 3, 4] and len(truth.getAnnIds()) == 7
    assert dataset.metric == "coco"
    records = truth.loadAnns(truth.getAnnIds(imgIds=[4]))
    assert [record["bbox"] for record in records] == [[1, 2, 8, 6], [5, 5, 4, 4], [0, 0, 20, 9]]
    assert [record["area"] for record in records] == [48, 8, 180]
    [crowd] = [record for record in truth.anns.values() if record["iscrowd"]]
    assert truth.annToMask(crowd).all()
    original = load_ground_truth(datasets["one"].index)
    for image, other in zip((1, 2, 3), (1, 7, 4), strict=True):
        masks = [truth.annToMask(each) for each in truth.loadAnns(truth.getAnnIds(imgIds=[image]))]
        expected = original.loadAnns(original.getAnnIds(imgIds=[other]))
        assert sorted(mask.sum() for mask in masks) == sorted(
            original.annToMask(each).sum() for each in expected
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rename": {"lion": "cat"}}, 'rename names "lion", which no dataset has; they'),
        ({"drop": ["lion"]}, 'drop names "lion"'),
        ({"drop": ["cat"], "rename": {"cat": "dog"}}, '"cat" is in both rename and drop'),
        ({"classes": ["cat", "dog", "horse"]}, '"two" has the class "puppy", which is not'),
        ({"classes": ["cat", "cat"]}, '"cat" twice'),
        ({"classes": ["lion"]}, 'classes holds "lion", which no dataset has'),
        ({"drop": ["cat", "dog", "horse", "puppy"]}, "drop leaves no class"),
    ],
)  # fmt: skip
def test_classes_that_do_not_fit_are_refused(datasets, settings, message):
    with pytest.raises(ValueError, match=message):
        ConcatDataset(datasets, **settings)


def test_no_dataset_is_refused():
    with pytest.raises(ValueError, match="datasets is empty"):
        ConcatDataset({})
