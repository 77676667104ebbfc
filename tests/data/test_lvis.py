"""LVIS files: names from addresses, and what was looked for in which image."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from detector.data.lvis import LVISDataset, read_lvis
from detector.data.writers.coco import coco_records


@pytest.fixture
def lvis(coco_folder):
    data = coco_folder.data
    for image, negative, partial in zip(
        data["images"], ([3], [90], []), ([], [3, 90], [90]), strict=True
    ):
        name = image.pop("file_name")
        image["coco_url"] = f"http://images.cocodataset.org/images/{name}"
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = negative, partial
    for category, frequency in zip(data["categories"], "rf", strict=True):
        category |= {"frequency": frequency, "synset": "x.n.01", "image_count": 1}
    data["annotations"] = [each for each in data["annotations"] if not each.pop("iscrowd")]

    def read(on_error="raise"):
        coco_folder.write()
        return read_lvis(coco_folder.json, coco_folder.root, on_error)

    read.data, read.folder = data, coco_folder
    return read


def test_federated_labels(lvis):
    index = lvis()
    assert [index.file_name(image) for image in range(3)] == [f"images/{n}.png" for n in (1, 7, 4)]
    federated = index.federated
    # Categories 3 and 90 have the labels 0 and 1.
    assert [federated.negatives(image).tolist() for image in range(3)] == [[0], [1], []]
    assert [federated.not_exhaustive(image).tolist() for image in range(3)] == [[], [0, 1], [1]]
    assert federated.frequencies == ["f", "r"]


def test_they_survive_the_cache_pickling_and_choosing(lvis):
    index = lvis()
    again = pickle.loads(pickle.dumps(lvis()))
    for one in (again, index.keep_images(np.array([False, True, True]))):
        assert one.federated.frequencies == ["f", "r"]
        assert one.federated.negatives(len(one) - 2).tolist() == [1]
        assert one.federated.not_exhaustive(len(one) - 1).tolist() == [1]
    assert index.as_one_class().federated is None


def test_written_again(lvis):
    images, _, categories = coco_records(lvis())
    assert [image["neg_category_ids"] for image in images] == [[3], [90], []]
    assert [image["not_exhaustive_category_ids"] for image in images] == [[], [3, 90], [90]]
    assert [category["frequency"] for category in categories] == ["f", "r"]


def test_a_dataset_of_it(lvis):
    lvis()
    dataset = LVISDataset("annotations.json", ".", root=lvis.folder.root)
    assert len(dataset[0]) == 2 and dataset.metric == "lvis"


@pytest.mark.parametrize("value", [None, [5], "3", [[3]]])
def test_an_image_without_federated_lists_is_refused(lvis, value):
    lvis.data["images"][1]["neg_category_ids"] = value
    with pytest.raises(ValueError, match=r"image 7: neg_category_ids is .*Read other COCO files"):
        lvis()


def test_an_image_without_a_name_is_damaged(lvis):
    lvis.data["images"][0]["coco_url"] = "http://[broken"
    with pytest.raises(ValueError, match="image 1: no file_name"):
        lvis()
    assert lvis("skip").image_ids.tolist() == [7, 4]


def test_other_files_are_refused(coco_folder, tmp_path):
    coco_folder.write()
    with pytest.raises(ValueError, match="image 1: neg_category_ids is None"):
        read_lvis(coco_folder.json, coco_folder.images)
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        read_lvis(tmp_path / "none.json", coco_folder.images)
