"""Dividing datasets: fractions, classes, groups, seeds."""

from __future__ import annotations

import numpy as np
import pytest

from detector.data.rings import offsets_of
from detector.data.splitting import split_images


class Index:
    """As much of an annotation index as is asked for."""

    source_file = "set.json"

    def __init__(self, labels, names=None):
        self.labels = np.array([label for image in labels for label in image], dtype=np.int64)
        self.num_classes = int(self.labels.max()) + 1
        self.annotation_offsets = offsets_of(np.array([len(image) for image in labels]))
        self.names = names or [f"{n}.jpg" for n in range(len(labels))]

    def __len__(self):
        return len(self.names)

    def file_name(self, image):
        return self.names[image]


@pytest.fixture
def index():
    """400 images, the classes held by about 90, 20 and 3 % of them, some by none."""
    rng = np.random.default_rng(0)
    shares = (0.9, 0.2, 0.03)
    return Index([[c for c in range(3) if rng.random() < shares[c]] for _ in range(400)])


def test_fractions_hold_for_images_and_every_class(index):
    image = np.repeat(np.arange(400), np.diff(index.annotation_offsets))
    for fraction in (0.1, 0.25, 0.5):
        is_val = split_images(index, fraction, seed=0)
        assert abs(is_val.mean() - fraction) < 0.01
        for label in range(3):
            held = is_val[image[index.labels == label]]
            assert abs(held.sum() - fraction * len(held)) <= 1.5, (fraction, label)
        empty = is_val[np.diff(index.annotation_offsets) == 0]
        assert abs(empty.sum() - fraction * len(empty)) <= 1.5


def test_seeds(index):
    first = split_images(index, 0.2, seed=0)
    assert np.array_equal(first, split_images(index, 0.2, seed=0))
    assert not np.array_equal(first, split_images(index, 0.2, seed=1))


def test_without_stratification_only_the_number_counts(index):
    is_val = split_images(index, 0.2, seed=0, stratify=False)
    assert is_val.sum() == 80


def test_groups_stay_together(index):
    index.names = [f"folder/scene{n // 10}_{n}.jpg" for n in range(400)]
    is_val = split_images(index, 0.2, seed=0, group=r"^(scene\d+)_")
    by_scene = is_val.reshape(40, 10)
    assert (by_scene.all(axis=1) | ~by_scene.any(axis=1)).all()
    assert abs(is_val.mean() - 0.2) <= 0.05
    assert np.array_equal(is_val, split_images(index, 0.2, seed=0, group=r"^scene\d+"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0}, "fraction=0; it must lie between 0 and 1"),
        ({"fraction": 1.5}, "it must lie between"),
        ({"group": "("}, "is no regular expression"),
        ({"group": "[a-z]+"}, "is in no image's name, such as 0.jpg"),
        ({"group": "^"}, "all its images form one group"),
    ],
)
def test_impossible_divisions_are_refused(index, settings, message):
    with pytest.raises(ValueError, match=message):
        split_images(index, **({"fraction": 0.2, "seed": 0} | settings))


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_no_side_is_empty(index, fraction):
    assert 0 < split_images(index, fraction, seed=0).sum() < 400
