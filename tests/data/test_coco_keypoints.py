"""Keypoints of COCO files: what is read, what is refused, what carries them."""

import json
import math
import pickle

import numpy as np
import pytest

import detector.data.coco as coco
from detector.data.dataset import DetectionDataset

_NAMES = ["nose", "left_hand", "right_hand"]


@pytest.fixture
def folder(coco_folder):
    """The dataset of `coco_folder` whose dogs have keypoints: annotations 12, 15 and crowd 19."""
    coco_folder.data["categories"][1].update(
        keypoints=_NAMES, skeleton=[[1, 2], [1, 3]], keypoint_sigmas=[0.02, 0.06, 0.06]
    )
    by_id = {record["id"]: record for record in coco_folder.data["annotations"]}
    by_id[12].update(keypoints=[25, 4, 2, 30, 6, 1, 0, 0, 0], num_keypoints=2)
    by_id[15].update(keypoints=[2.25, 1, 2, 0, 0, 0, 3, 2, 2], num_keypoints=2)
    return coco_folder


def test_points_move_from_pixel_indices_to_continuous_pixels(folder):
    index = folder.read()
    assert index.annotation_ids.tolist() == [11, 12, 15, 19]
    assert index.keypoints.dtype == np.float32
    assert index.keypoints.tolist() == [
        [[0, 0, 0]] * 3,  # the cat, whose category has none
        [[25.5, 4.5, 2], [30.5, 6.5, 1], [0, 0, 0]],
        [[2.75, 1.5, 2], [0, 0, 0], [3.5, 2.5, 2]],
        [[0, 0, 0]] * 3,  # the record has none
    ]


def test_what_the_category_says(folder):
    index = folder.read()
    assert index.has_keypoints and index.num_keypoints == 3
    assert index.keypoint_names == _NAMES
    assert index.keypoint_flip == [0, 2, 1]
    assert index.skeleton == [(0, 1), (0, 2)]
    assert index.keypoint_sigmas == [0.02, 0.06, 0.06]
    del folder.data["categories"][1]["keypoint_sigmas"], folder.data["categories"][1]["skeleton"]
    index = folder.read()
    assert index.skeleton == [] and index.keypoint_sigmas is None


def test_a_dataset_without_keypoints(coco_folder):
    # Of a category without names, annotations may say what they like.
    coco_folder.data["annotations"][0]["keypoints"] = [1, 2]
    index = coco_folder.read()
    assert not index.has_keypoints
    assert index.keypoints.shape == (4, 0, 3)
    assert index.keypoint_names == index.keypoint_flip == index.skeleton == []


def test_what_an_unlabelled_point_holds_does_not_matter(folder):
    folder.data["annotations"][2]["keypoints"] = [25, 4, 2, math.nan, 7e9, 0, -5, 3, 0]
    folder.data["annotations"][2]["num_keypoints"] = 1
    assert folder.read().keypoints[1].tolist() == [[25.5, 4.5, 2], [0, 0, 0], [0, 0, 0]]


def test_points_just_outside_are_kept_and_no_targets(folder):
    folder.data["annotations"][2]["keypoints"][:3] = [42.5, 4, 2]  # the image is 40 pixels wide
    assert folder.read().keypoints[1, 0].tolist() == [43, 4.5, 2]
    dataset = DetectionDataset("annotations.json", "images", root=folder.root)
    assert dataset[0].keypoints[1].tolist() == [[0, 0, 0], [30.5, 6.5, 1], [0, 0, 0]]


def test_the_flip_may_be_given_by_name(folder):
    folder.write()
    flips = {}
    for pairs in (None, [], [["nose", "left_hand"]]):
        index = coco.read_coco(folder.json, folder.images, keypoint_flip=pairs)
        flips[str(pairs)] = index.keypoint_flip
    assert list(flips.values()) == [[0, 2, 1], [0, 1, 2], [1, 0, 2]]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([["nose", "tail"]], '"tail", which is no keypoint.*nose, left_hand, right_hand'),
        (["nose"], r"\[\[name, name\], ...\]"),
        ([["nose", "left_hand"], ["nose", "right_hand"]], "stands in it twice"),
    ],
)
def test_a_flip_that_makes_no_sense(folder, pairs, said):
    folder.write()
    with pytest.raises(ValueError, match=said):
        coco.read_coco(folder.json, folder.images, keypoint_flip=pairs)


_POINTS = [25, 4, 2, 30, 6, 1, 0, 0, 0]
DAMAGED = {
    "too short": ({"keypoints": _POINTS[:6]}, "6 numbers, not 9: .* of 3"),
    "too long": ({"keypoints": [*_POINTS, 1]}, "10 numbers, not 9"),
    "no list": ({"keypoints": "nose"}, "'nose', not 9"),
    "text": ({"keypoints": [*_POINTS[:8], "2"]}, "not made of numbers"),
    "nothing for a number": ({"keypoints": [None, *_POINTS[1:]]}, "not made of numbers"),
    "visibility 3": ({"keypoints": [25, 4, 3, *_POINTS[3:]]}, '"nose" has the visibility 3'),
    "visibility in between": ({"keypoints": [25, 4, 0.5, *_POINTS[3:]]}, "visibility 0.5"),
    "visibility NaN": ({"keypoints": [25, 4, math.nan, *_POINTS[3:]]}, "visibility nan"),
    "NaN": ({"keypoints": [25, math.nan, 2, *_POINTS[3:]]}, '"nose" is not finite'),
    "infinite": ({"keypoints": [-math.inf, 4, 2, *_POINTS[3:]]}, '"nose" is not finite'),
    "far outside": (
        {"keypoints": [*_POINTS[:3], 44, 6, 1, 0, 0, 0]},
        r'"left_hand" at \(44, 6\) lies far outside the 40x30 image',
    ),
    "far below zero": ({"keypoints": [25, -900, 2, *_POINTS[3:]]}, "far outside"),
    "beyond float32": ({"keypoints": [25, 1e300, 2, *_POINTS[3:]]}, "far outside"),
    "a wrong count": ({"num_keypoints": 3}, "num_keypoints is 3 but 2 of them are labelled"),
    "a count of nothing": ({"keypoints": []}, "num_keypoints is 2 but 0"),
    "an impossible count": ({"num_keypoints": 4}, "num_keypoints 4 is not a number from 0 to 3"),
    "another category": ({"category_id": 90}, "its category names none"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_keypoints_are_refused_or_skipped(folder, case):
    values, said = DAMAGED[case]
    whole = folder.read()
    folder.data["annotations"][2].update(values)
    with pytest.raises(ValueError, match=said) as error:
        folder.read()
    message = str(error.value)
    assert str(folder.json) in message and "image 1, annotation 12" in message
    assert "correct the keypoints or remove the annotation" in message
    index = folder.read("skip")
    assert index.annotation_ids.tolist() == [11, 15, 19]
    assert len(index.skipped) == 1
    # What is left reads as it did: no column is out of step.
    np.testing.assert_array_equal(index.keypoints, whole.keypoints[[0, 2, 3]])
    np.testing.assert_array_equal(
        np.diff(index.ring_offsets), np.diff(whole.ring_offsets)[[0, 2, 3]]
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"keypoints": "nose"}, "must be a list of names"),
        ({"keypoints": ["nose", 3, "ear"]}, "must be a list of names"),
        ({"keypoints": ["nose", "ear", "nose"]}, 'two keypoints are named "nose"'),
        ({"keypoints": ["nose", "left_ear", "ear"]}, '"left_ear" and none named "right_ear".*flip'),
        ({"skeleton": [[0, 1]]}, "pairs of keypoint numbers from 1 to 3"),
        ({"skeleton": [[1, 4]]}, "pairs of keypoint numbers from 1 to 3"),
        ({"skeleton": [[1, 2, 3]]}, "pairs of keypoint numbers"),
        ({"keypoint_sigmas": [0.1, 0.1]}, "3 positive numbers"),
        ({"keypoint_sigmas": [0.1, 0.0, 0.1]}, "3 positive numbers"),
    ],
)
def test_categories_that_make_no_sense(folder, values, said):
    folder.data["categories"][1].update(values)
    with pytest.raises(ValueError, match=said) as error:
        folder.read("skip")
    assert str(folder.json) in str(error.value)


def test_categories_share_their_keypoints(folder):
    dog, cat = folder.data["categories"][1], folder.data["categories"][0]
    cat.update({key: dog[key] for key in ("keypoints", "skeleton", "keypoint_sigmas")})
    folder.data["annotations"][0]["keypoints"] = [6, 7, 2, 8, 9, 2, 9, 9, 1]
    assert folder.read().keypoints[0].tolist() == [[6.5, 7.5, 2], [8.5, 9.5, 2], [9.5, 9.5, 1]]
    cat["keypoints"] = ["nose", "left_paw", "right_paw"]
    with pytest.raises(ValueError, match="category 3 and category 90 have different keypoints"):
        folder.read("skip")


def test_operations_on_the_index_carry_keypoints(folder):
    index = folder.read()
    kept = index.keep_images(np.array([False, True, True]))
    np.testing.assert_array_equal(kept.keypoints, index.keypoints[2:])
    for other in (kept, index.as_one_class(), index):
        again = pickle.loads(pickle.dumps(other))
        np.testing.assert_array_equal(again.keypoints, other.keypoints)
        for name in ("keypoint_names", "keypoint_flip", "skeleton", "keypoint_sigmas"):
            assert getattr(again, name) == getattr(other, name) == getattr(index, name)


def test_the_cache_keeps_them_apart_by_flip(folder, monkeypatch):
    first = folder.read()
    monkeypatch.setattr(coco, "parse_dataset", lambda *_: pytest.fail("parsed again"))
    again = folder.read()
    np.testing.assert_array_equal(again.keypoints, first.keypoints)
    assert again.skeleton == first.skeleton and again.keypoint_flip == first.keypoint_flip
    with pytest.raises(pytest.fail.Exception, match="parsed again"):
        coco.read_coco(folder.json, folder.images, keypoint_flip=[])


def test_a_cache_of_before_there_were_keypoints_is_not_used(folder):
    first = folder.read()
    meta = json.loads((first.directory / "meta.json").read_text())
    del meta["keypoint_names"]
    (first.directory / "meta.json").write_text(json.dumps(meta))
    assert folder.read().keypoint_names == _NAMES


def test_images_with_few_keypoints_can_be_left_out(folder):
    def image_ids(least):
        options = {"root": folder.root, "min_keypoints": least}
        return DetectionDataset("annotations.json", "images", **options).index.image_ids.tolist()

    folder.data["annotations"][3].update(keypoints=[2, 2, 2] * 3)  # of a crowd: they do not count
    folder.write()
    assert image_ids(0) == [1, 7, 4]
    assert image_ids(1) == image_ids(2) == [1, 7]
    with pytest.raises(ValueError, match="min_keypoints=3"):
        image_ids(3)
