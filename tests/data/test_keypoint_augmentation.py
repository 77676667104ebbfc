"""Augmented keypoints against markers drawn into the image."""

import dataclasses

import albumentations as A
import numpy as np
import pytest

from detector.data.augmentation import Augmentation
from detector.data.dataset import DetectionDataset
from detector.data.sample import Sample
from tests.data.test_augmentation import GEOMETRIC

_HEIGHT, _WIDTH = 96, 128
_FLIP = [0, 2, 1]  # nose, left, right
# The nose is drawn in red, what is left in green, what is right in blue.
_POINTS = np.array([[60.3, 43.6], [72.5, 55.0], [55.8, 57.25]], dtype=np.float32)


def draw_markers(points: np.ndarray) -> np.ndarray:
    """A soft dot in the j-th channel about the j-th point, ``(H, W, 3)`` uint8."""
    y, x = np.mgrid[:_HEIGHT, :_WIDTH] + 0.5
    distance = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
    return np.round(255 * np.exp(-distance / (2 * 2.0**2))).astype(np.uint8)


def marker_centres(image: np.ndarray) -> np.ndarray:
    """Where the dots are, ``(3, 2)``."""
    weight = image.astype(float)
    rows, columns = np.indices(image.shape[:2])[..., None] + 0.5
    centres = [(weight * places).sum((0, 1)) for places in (columns, rows)]
    return np.stack(centres, axis=1) / weight.sum((0, 1))[:, None]


def turning(points: np.ndarray) -> float:
    """Positive if the three points go round one way, negative in a mirror."""
    one, other = points[1] - points[0], points[2] - points[0]
    return one[0] * other[1] - one[1] * other[0]


def make_sample(keypoints: np.ndarray, boxes=((50, 38, 78, 62),)) -> Sample:
    keypoints = np.asarray(keypoints, dtype=np.float32).reshape(len(boxes), -1, 3)
    return Sample(
        image=draw_markers(_POINTS),
        boxes=np.array(boxes, dtype=np.float32),
        labels=np.arange(len(boxes)),
        ring_offsets=np.zeros(len(boxes) + 1, np.int64),
        vertex_offsets=np.zeros(1, np.int64),
        vertices=np.zeros((0, 2), np.float32),
        image_id=5,
        original_size=(_HEIGHT, _WIDTH),
        keypoints=keypoints,
    )


@pytest.fixture
def sample() -> Sample:
    return make_sample(np.concatenate([_POINTS, [[2], [1], [2]]], axis=1))


@pytest.mark.parametrize("name", GEOMETRIC)
def test_keypoints_follow_the_markers_and_change_sides_in_a_mirror(sample, name):
    augmentation = Augmentation([GEOMETRIC[name]], _FLIP)
    for seed in range(6):
        result = augmentation(sample, np.random.default_rng(seed))
        drawn = marker_centres(result.image)
        mirrored = turning(drawn) * turning(_POINTS) < 0
        expected = drawn[_FLIP] if mirrored else drawn
        # Wrong by a pixel-centre convention would be half a pixel or more.
        np.testing.assert_allclose(result.keypoints[0, :, :2], expected, atol=0.08)
        assert result.keypoints[0, :, 2].tolist() == ([2, 2, 1] if mirrored else [2, 1, 2])
        assert result.keypoints.dtype == np.float32


# Where (x, y) goes in the image of 128 x 96, and whether it is a mirror.
RIGHT_ANGLES = {
    "horizontal flip": ([A.HorizontalFlip(p=1)], lambda x, y: (128 - x, y), True),
    "vertical flip": ([A.VerticalFlip(p=1)], lambda x, y: (x, 96 - y), True),
    "transposition": ([A.Transpose(p=1)], lambda x, y: (y, x), True),
    "half a turn": (
        [A.HorizontalFlip(p=1), A.VerticalFlip(p=1)],
        lambda x, y: (128 - x, 96 - y),
        False,
    ),
    "a quarter turn": ([A.Transpose(p=1), A.HorizontalFlip(p=1)], lambda x, y: (96 - y, x), False),
    "nothing, twice": ([A.HorizontalFlip(p=1)] * 2, lambda x, y: (x, y), False),
    "the other diagonal": (
        [A.Transpose(p=1), A.HorizontalFlip(p=1), A.VerticalFlip(p=1)],
        lambda x, y: (96 - y, 128 - x),
        True,
    ),
}


@pytest.mark.parametrize("name", RIGHT_ANGLES)
def test_flips_and_turns_are_exact(name):
    transforms, moved, mirror = RIGHT_ANGLES[name]
    # Halves and quarters, which float32 adds exactly.
    keypoints = np.array([[60.25, 43.5, 2], [72.5, 55, 1], [55.75, 57.25, 2]], np.float32)
    result = Augmentation(transforms, _FLIP)(make_sample(keypoints), np.random.default_rng(0))
    expected = np.array([[*moved(x, y), v] for x, y, v in keypoints], np.float32)
    np.testing.assert_array_equal(result.keypoints[0], expected[_FLIP] if mirror else expected)


def test_every_element_of_the_square_group_is_drawn_and_followed(sample):
    augmentation = Augmentation([A.D4(p=1)], _FLIP)
    found = set()
    for seed in range(60):
        result = augmentation(sample, np.random.default_rng(seed))
        found.add(tuple(np.round(result.keypoints[0, 0, :2], 3).tolist()))
    assert len(found) == 8


def test_a_point_that_leaves_the_image_loses_its_label():
    sample = make_sample([[60, 50, 2], [77.75, 50, 1], [78, 50, 2]])
    result = Augmentation([A.Crop(10, 10, 78, 90)], _FLIP)(sample, np.random.default_rng(0))
    np.testing.assert_allclose(result.keypoints[0], [[50, 40, 2], [67.75, 40, 1], [68, 40, 2]])
    result = Augmentation([A.Crop(10, 10, 77, 90)], _FLIP)(sample, np.random.default_rng(0))
    np.testing.assert_allclose(result.keypoints[0], [[50, 40, 2], [0, 0, 0], [0, 0, 0]])


def test_an_unlabelled_point_stays_zero_wherever_the_image_goes():
    sample = make_sample([[60, 50, 2], [0, 0, 0], [70, 50, 0]])
    for transforms in ([A.PadIfNeeded(150, 160, p=1)], [A.HorizontalFlip(p=1)], []):
        result = Augmentation(transforms, _FLIP)(sample, np.random.default_rng(0))
        assert result.keypoints[0, 0, 2] == 2
        assert not result.keypoints[0, 1:].any()


def test_each_object_keeps_its_own_points_where_others_are_dropped():
    boxes = [(2, 2, 12, 12), (40, 30, 60, 60), (100, 70, 120, 90)]
    centres = [[[(x1 + x2) / 2, (y1 + y2) / 2, 2]] * 3 for x1, y1, x2, y2 in boxes]
    sample = make_sample(centres, boxes)
    result = Augmentation([A.Crop(20, 20, 128, 96)], _FLIP)(sample, np.random.default_rng(0))
    assert result.labels.tolist() == [1, 2]
    assert result.keypoints[:, 0].tolist() == [[30, 25, 2], [90, 60, 2]]


def test_samples_without_keypoints_have_none_afterwards(sample):
    plain = dataclasses.replace(sample, keypoints=None)
    result = Augmentation([A.HorizontalFlip(p=1)])(plain, np.random.default_rng(0))
    assert result.keypoints is None


def test_an_image_without_objects():
    result = Augmentation([A.D4(p=1)], _FLIP)(
        dataclasses.replace(make_sample(_POINTS[:, [0, 1, 1]]), **empty()), np.random.default_rng(0)
    )
    assert result.keypoints.shape == (0, 3, 3)


def empty() -> dict:
    return {
        "boxes": np.zeros((0, 4), np.float32),
        "labels": np.zeros(0, np.int64),
        "ring_offsets": np.zeros(1, np.int64),
        "keypoints": np.zeros((0, 3, 3), np.float32),
    }


def test_a_dataset_gives_augmentation_its_sides(coco_folder):
    names = ["nose", "left_hand", "right_hand"]
    for category in coco_folder.data["categories"]:
        category["keypoints"] = names
    coco_folder.data["annotations"][0]["keypoints"] = [6, 7, 2, 8, 9, 1, 9, 9, 2]
    coco_folder.write()
    flip = [A.HorizontalFlip(p=1)]
    for pairs, order in ((None, [0, 2, 1]), ([], [0, 1, 2]), ([["nose", "left_hand"]], [1, 0, 2])):
        dataset = DetectionDataset(
            "annotations.json", "images", flip, root=coco_folder.root, keypoint_flip=pairs
        )
        sample = dataset[0]
        mirrored = np.array([[33.5, 7.5, 2], [31.5, 9.5, 1], [30.5, 9.5, 2]])  # 40 pixels wide
        np.testing.assert_array_equal(sample.keypoints[0], mirrored[order])
        assert sample.keypoints.shape == (2, 3, 3) and not sample.keypoints[1].any()
