"""Batches: shapes by bucket, slots, edges."""

import dataclasses

import numpy as np
import pytest
import torch

from detector.data.collate import Collate
from detector.data.sample import Sample


def make_sample(height: int, width: int, rings_per_object: list[list[int]], seed=0) -> Sample:
    """Random content; ``rings_per_object`` gives the number of vertices of every ring."""
    rng = np.random.default_rng(seed)
    lengths = [length for rings in rings_per_object for length in rings]
    num_objects = len(rings_per_object)
    return Sample(
        image=rng.integers(1, 256, (height, width, 3), dtype=np.uint8),
        boxes=rng.uniform(0, 10, (num_objects, 4)).astype(np.float32),
        labels=rng.integers(0, 5, num_objects),
        ring_offsets=np.cumsum([0] + [len(rings) for rings in rings_per_object]),
        vertex_offsets=np.cumsum([0, *lengths]),
        vertices=rng.uniform(0, 10, (sum(lengths), 2)).astype(np.float32),
        image_id=seed + 100,
        original_size=(2 * height, 2 * width),
    )


def test_images_lie_top_left_and_the_rest_is_zero():
    samples = [make_sample(20, 30, [[4]]), make_sample(40, 10, [], seed=1)]
    batch = Collate()(samples)
    assert batch.images.shape == (2, 3, 64, 32) and batch.images.dtype == torch.uint8
    for image, sample in zip(batch.images, samples, strict=True):
        height, width = sample.image.shape[:2]
        expected = torch.zeros_like(image)
        expected[:, :height, :width] = torch.from_numpy(sample.image).permute(2, 0, 1)
        assert torch.equal(image, expected)
    assert batch.image_sizes.tolist() == [[20, 30], [40, 10]]
    assert batch.original_sizes.tolist() == [[40, 60], [80, 20]]
    assert batch.image_ids.tolist() == [100, 101]


def test_targets_and_their_empty_slots():
    samples = [make_sample(20, 30, [[4], [3], [5]]), make_sample(20, 30, [])]
    targets = Collate()(samples).targets
    assert targets.boxes.shape == (2, 8, 4) and targets.labels.dtype == torch.int64
    assert targets.valid.tolist() == [[True] * 3 + [False] * 5, [False] * 8]
    np.testing.assert_array_equal(targets.boxes[0, :3], samples[0].boxes)
    np.testing.assert_array_equal(targets.labels[0, :3], samples[0].labels)
    assert not targets.boxes[~targets.valid].any() and not targets.labels[~targets.valid].any()


def test_edges_close_every_ring():
    sample = make_sample(20, 30, [[3, 4], [5]])
    polygons = Collate()([sample, make_sample(20, 30, [])]).targets.polygons
    assert polygons.edges.shape == (2, 64, 4)
    assert polygons.offsets.tolist() == [[0, 7] + [12] * 7, [0] * 9]
    assert polygons.max_edges == 16
    expected = []
    for g in range(2):
        for ring in sample.rings(g):
            for start, end in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                expected.append([*start, *end])
    np.testing.assert_array_equal(polygons.edges[0, :12], np.array(expected))
    assert not polygons.edges[0, 12:].any() and not polygons.edges[1].any()


def test_slots_are_powers_of_two():
    batch = Collate()([make_sample(8, 8, [[40]] + [[3]] * 32)])
    assert batch.targets.boxes.shape[1] == 64
    assert batch.targets.polygons.edges.shape[1] == 256  # 40 + 32 * 3 = 136
    assert batch.targets.polygons.max_edges == 64
    exact = Collate()([make_sample(8, 8, [[16]] * 8)])
    assert exact.targets.boxes.shape[1] == 8
    assert exact.targets.polygons.edges.shape[1] == 128
    assert exact.targets.polygons.max_edges == 16


def test_without_masks():
    assert Collate(with_masks=False)([make_sample(8, 8, [[4]])]).targets.polygons is None


def test_keypoints_and_their_empty_slots():
    rng = np.random.default_rng(0)
    samples = [make_sample(20, 30, [[3]] * count) for count in (3, 0, 9)]
    samples = [
        dataclasses.replace(sample, keypoints=rng.random((len(sample), 5, 3), np.float32))
        for sample in samples
    ]
    targets = Collate(with_keypoints=True)(samples).targets
    assert targets.keypoints.shape == (3, 16, 5, 3) and targets.keypoints.dtype == torch.float32
    for found, sample in zip(targets.keypoints, samples, strict=True):
        np.testing.assert_array_equal(found[: len(sample)], sample.keypoints)
        assert not found[len(sample) :].any()
    assert Collate()(samples).targets.keypoints is None


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(800, 1333)], (800, 1344)),
        ([(1333, 800)], (1344, 800)),
        ([(500, 600), (700, 800)], (832, 832)),
        ([(800, 1000), (1000, 800)], (1344, 1344)),  # the envelope of the buckets
        ([(1500, 100)], (1504, 128)),  # larger than all: rounded up
    ],
)
def test_the_smallest_bucket_that_holds_all(sizes, expected):
    collate = Collate([[800, 1344], [1344, 800], [832, 832]])
    batch = collate([make_sample(height, width, []) for height, width in sizes])
    assert batch.images.shape[2:] == expected


@pytest.mark.parametrize(("size", "divisor", "expected"), [((1, 1), 32, 32), ((64, 33), 64, 64)])
def test_without_buckets_sizes_are_rounded_up(size, divisor, expected):
    collate = Collate(size_divisor=divisor)
    assert collate.padded_size(*size) == (expected, expected)


def test_buckets_must_fit_the_strides():
    with pytest.raises(ValueError, match=r"\[800, 1333\].*multiples of 32"):
        Collate([[800, 1333]])
