"""Samplers: the papers' formulas, epochs of one length, and exact resuming."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from detector.data.batches import TrainBatches
from detector.data.image_repeats import draw_repeats, epoch_length, image_repeats

# Classes of the objects of eight images; 9 stands for a crowd region of class 2.
IMAGES = [[0], [0, 0, 1], [0], [0], [0, 2], [], [0, 9], [1]]


class Index(SimpleNamespace):
    """As much of an annotation index as is asked for."""

    def __len__(self) -> int:
        return len(IMAGES)


@pytest.fixture
def index():
    labels = [label for image in IMAGES for label in image]
    return Index(
        num_classes=3,
        annotation_offsets=np.cumsum([0, *map(len, IMAGES)]),
        labels=np.array([2 if label == 9 else label for label in labels]),
        crowd=np.array([label == 9 for label in labels]),
    )


def test_the_formula_of_the_lvis_paper(index):
    threshold = 0.5
    share = {c: sum(c in image for image in IMAGES) / 8 for c in range(3)}
    factor = {c: max(1.0, math.sqrt(threshold / share[c])) for c in range(3)}
    expected = [max((factor[c] for c in image if c != 9), default=1.0) for image in IMAGES]
    found = image_repeats(index, "repeat_factor", threshold)
    assert found == pytest.approx(expected)
    assert expected[4] == 2.0 and expected[1] == math.sqrt(2) and expected[0] == 1.0


def test_balanced_classes_are_seen_alike(index):
    repeats = image_repeats(index, "class_balanced", 0)
    holding = {c: sum(c in image for image in IMAGES) for c in range(3)}
    expected = [7 / 3 * sum(1 / holding[c] for c in {*image} - {9}) for image in IMAGES]
    expected[5] = 1.0
    assert repeats == pytest.approx(expected)
    assert repeats.sum() == pytest.approx(len(IMAGES))


def test_the_default_repeats_nothing_and_mistakes_are_refused(index):
    assert image_repeats(index, "default", 0.001) is None
    with pytest.raises(ValueError, match=r"data\.sampler=random is not known"):
        image_repeats(index, "random", 0.001)
    for threshold in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=r"data\.repeat_threshold"):
            image_repeats(index, "repeat_factor", threshold)


def test_epochs_hold_each_image_its_number_rounded_down_or_up():
    repeats = np.array([1.0, 2.3, 0.4, 1.0, 5.5, 0.0, 1.2])
    totals = np.zeros(len(repeats))
    for seed in range(400):
        drawn = draw_repeats(repeats, np.random.default_rng(seed))
        counts = np.bincount(drawn, minlength=len(repeats))
        assert len(drawn) == epoch_length(repeats) == 11
        scaled = repeats * 11 / repeats.sum()
        assert (counts >= np.floor(scaled)).all() and (counts <= np.ceil(scaled)).all()
        totals += counts
    # The standard deviation of a mean of 400 is at most .025.
    assert totals / 400 == pytest.approx(repeats * 11 / repeats.sum(), abs=0.1)


def test_batches_are_full_and_resumed_exactly():
    repeats = np.array([1.0, 1.0, 2.5, 1.0, 3.0])
    landscape = np.array([True, False, True, False, True])
    batches = TrainBatches(5, 3, 7, landscape, repeats, "repeat_factor of 0.1")
    assert len(batches) == 3
    epochs = [batches.epoch(0), batches.epoch(1)]
    assert all(len(batch) == 3 for epoch in epochs for batch in epoch) and epochs[0] != epochs[1]
    seen = Counter(index for batch in epochs[0] for _, index in batch)
    assert seen[4] >= 3 and seen[2] >= 2 and set(seen) == set(range(5))
    following = batches.starting_at(0, 2)
    found = [[key[:2] for key in next(following)] for _ in range(3)]
    assert found == [epochs[0][2], epochs[1][0], epochs[1][1]]
