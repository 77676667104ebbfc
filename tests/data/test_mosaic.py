"""Mosaic: which image lies where, and that objects end where their quarter does."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.data.dataset import DetectionDataset
from detector.data.mosaic import Mosaic
from detector.data.sample import Sample
from tests.data.real_objects import coverage, edges_of, farthest, few_cases, with_tight_boxes
from tests.data.test_augmentation import make_sample
from tests.data.test_copy_paste import bitmaps, boxes_sample

HARD = few_cases(10)


@pytest.fixture(scope="module")
def dataset(test_data: Path) -> DetectionDataset:
    return DetectionDataset(
        "annotations/instances_val2017.json", "val2017", root=test_data / "coco_mini"
    )


def mosaic_of(mix: Mosaic, samples: list[Sample], seed: int) -> Sample:
    return mix(samples[0], samples[1:], np.random.default_rng(seed))


def quarters(mix: Mosaic, samples: list[Sample], seed: int) -> np.ndarray:
    """Whose pixels they are, ``(H, W)``, as the same mosaic of plain images shows."""
    plain = [
        dataclasses.replace(sample, image=np.full_like(sample.image, number))
        for number, sample in enumerate(samples)
    ]
    return mosaic_of(mix, plain, seed).image[..., 0]


def four(*sizes: tuple) -> list[Sample]:
    """Images with one object each that fills them; labels 0 to 3."""
    return [
        boxes_sample((0, 0, size[1], size[0]), size=size, first_label=number)
        for number, size in enumerate(sizes)
    ]


def test_four_quarters_around_a_point():
    samples = four((60, 80), (80, 60), (40, 40), (100, 30))
    points = set()
    for seed in range(20):
        owner = quarters(Mosaic(size=[64, 96]), samples, seed)
        assert owner.shape == (64, 96)
        y, x = np.count_nonzero(owner[:, 0] == 0), np.count_nonzero(owner[0] == 0)
        assert 16 <= y <= 48 and 24 <= x <= 72, "a quarter of the side away from each"
        for number, part in enumerate((owner[:y, :x], owner[:y, x:], owner[y:, :x], owner[y:, x:])):
            assert (part == number).all()
        result = mosaic_of(Mosaic(size=[64, 96]), samples, seed)
        assert result.labels.tolist() == [0, 1, 2, 3]
        np.testing.assert_allclose(
            result.boxes, [[0, 0, x, y], [x, 0, 96, y], [0, y, x, 64], [x, y, 96, 64]], atol=1e-4
        )
        points.add((y, x))
    assert len(points) > 15


def test_whole_images_around_the_middle():
    """At half the size at which it fits, an image of the picture's shape fills its quarter."""
    square = np.array([[10, 20], [30, 20], [30, 50], [10, 50]], np.float32)
    samples = [make_sample([square], np.zeros((60, 80, 3), np.uint8)) for _ in range(4)]
    mix = Mosaic(size=[120, 160], min_scale=0.5, max_scale=0.5, min_share=0.5)
    result = mosaic_of(mix, samples, 0)
    shifts = np.array([[0, 0], [80, 0], [0, 60], [80, 60]])
    expected = np.array([10, 20, 30, 50]) + np.tile(shifts, 2)
    np.testing.assert_allclose(result.boxes, expected, atol=1e-4)
    for place, shift in enumerate(shifts):
        np.testing.assert_allclose(result.rings(place)[0], square + shift, atol=1e-4)


def test_pieces_are_drawn_from_all_over_the_image():
    """A scene three times as large as its quarter shows every part of itself in the long run."""
    columns = np.broadcast_to(np.arange(240, dtype=np.uint8)[:, None], (60, 240, 3))
    samples = [make_sample([], np.ascontiguousarray(columns), []) for _ in range(4)]
    mix = Mosaic(size=[40, 80], min_scale=1.0, max_scale=1.0, min_share=0.5)
    seen = [mosaic_of(mix, samples, seed).image[:20, :40, 0] for seed in range(200)]
    assert min(part.min() for part in seen) < 10 and max(part.max() for part in seen) > 230


def test_without_a_size_it_is_the_first_images():
    samples = four((60, 80), (80, 60), (40, 40), (100, 30))
    assert mosaic_of(Mosaic(), samples, 0).image.shape == (60, 80, 3)
    assert mosaic_of(Mosaic(), samples[::-1], 0).image.shape == (100, 30, 3)


def test_portrait_images_get_a_portrait():
    landscape, portrait = four((60, 80), (80, 60))
    mix = Mosaic(size=[48, 96])
    assert mosaic_of(mix, [landscape] + [portrait] * 3, 0).image.shape == (48, 96, 3)
    assert mosaic_of(mix, [portrait] + [landscape] * 3, 0).image.shape == (96, 48, 3)
    assert mosaic_of(Mosaic(size=64), [portrait] * 4, 0).image.shape == (64, 64, 3)


def test_keypoints_move_and_are_none_outside_their_quarter():
    points = np.array([[[10, 10, 2], [70, 50, 1], [0, 0, 0]]], np.float32)
    samples = [dataclasses.replace(one, keypoints=points) for one in four(*[(60, 80)] * 4)]
    labelled = 0
    for seed in range(20):
        mix = Mosaic(size=[60, 80])
        result = mosaic_of(mix, samples, seed)
        owner = quarters(mix, samples, seed)
        for number, found in enumerate(result.keypoints):
            rows, columns = np.nonzero(owner == number)
            low, high = (columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)
            for point, original in zip(found, points[0], strict=True):
                if point[2] > 0:
                    assert point[2] == original[2]
                    assert (point[:2] >= low).all() and (point[:2] <= high).all()
                    labelled += 1
                else:
                    assert not point.any()
    assert labelled > 20


def test_boxes_without_masks_end_at_the_quarter():
    samples = [
        dataclasses.replace(
            make_sample([], np.zeros((60, 80, 3), np.uint8), [[20, 10, 60, 50]]),
            labels=np.array([n]),
        )
        for n in range(4)
    ]
    for seed in range(10):
        mix = Mosaic(size=[60, 80])
        result, owner = mosaic_of(mix, samples, seed), quarters(mix, samples, seed)
        assert len(result.vertices) == 0
        for label, box in zip(result.labels, result.boxes, strict=True):
            rows, columns = np.nonzero(owner == label)
            assert box[0] >= columns.min() - 1e-4 and box[2] <= columns.max() + 1 + 1e-4
            assert box[1] >= rows.min() - 1e-4 and box[3] <= rows.max() + 1 + 1e-4


@pytest.mark.parametrize("height, width", [(1, 9), (9, 1), (1, 1)])
def test_an_image_of_one_row(height, width):
    samples = four(*[(height, width)] * 4)
    for seed in range(4):
        found = mosaic_of(Mosaic(), samples, seed)
        assert found.image.shape == (max(height, 2), max(width, 2), 3)


def test_images_without_objects():
    empty = make_sample([], np.zeros((60, 80, 3), np.uint8), [])
    result = mosaic_of(Mosaic(), [empty] * 4, 0)
    assert len(result) == 0 and result.boxes.shape == (0, 4)
    one = boxes_sample((10, 10, 50, 40), size=(60, 80))
    assert 0 <= len(mosaic_of(Mosaic(), [empty, one, empty, empty], 1)) <= 1


@HARD
@given(data=st.data())
def test_real_objects(dataset, data):
    """Each image shows its objects in white: the mosaic's pixels and masks are the same.

    As in :mod:`tests.data.test_augmentation_exactness`, but for boundary pixels, which grow with
    the image."""
    samples = []
    for number in range(4):
        index = data.draw(st.integers(0, len(dataset) - 1))
        height, width = int(dataset.index.heights[index]), int(dataset.index.widths[index])
        one = dataset.sample_of(index, np.zeros((height, width, 3), np.uint8))
        one = with_tight_boxes(one)
        if len(one):
            rings = [ring for place in range(len(one)) for ring in one.rings(place)]
            one = dataclasses.replace(one, image=coverage(rings, height, width))
        samples.append(dataclasses.replace(one, labels=100 * number + one.labels))
    size = data.draw(st.sampled_from([None, 320, [240, 400]]))
    mix, seed = Mosaic(size), data.draw(st.integers(0, 2**32 - 1))
    result, owner = mosaic_of(mix, samples, seed), quarters(mix, samples, seed)
    height, width = result.image.shape[:2]
    union = np.zeros((height, width), bool)
    for mask, label, place in zip(bitmaps(result), result.labels, range(len(result)), strict=True):
        assert (owner[mask] == label // 100).all(), "it stays in its quarter"
        union |= mask
        vertices = np.concatenate(result.rings(place))
        np.testing.assert_allclose(
            result.boxes[place], [*vertices.min(axis=0), *vertices.max(axis=0)], atol=1e-3
        )
    # Nothing is enlarged more than to one and a half times what fits, or to fill its quarter.
    zoom = max(
        max(1.5 * min(height / h, width / w), 0.75 * height / h, 0.75 * width / w, 1.0)
        for h, w in (sample.image.shape[:2] for sample in samples)
    )
    outline = edges_of(result) if len(result) else (np.zeros((1, 2)),) * 2
    dropped = (result.image[..., 0] > 127) != union
    assert farthest(dropped, outline) < 0.75 * zoom + 1.25  # slivers under a pixel are dropped


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": [0, 3]}, "size="),
        ({"size": "large"}, "size="),
        ({"min_scale": 0}, "min_scale=0"),
        ({"min_scale": 2}, "max_scale=1.5"),
        ({"min_share": 0.6}, "min_share=0.6"),
        ({"p": -1}, "p=-1"),
    ],
)
def test_impossible_numbers(arguments, said):
    with pytest.raises(ValueError, match=f"Mosaic: .*{said}"):
        Mosaic(**arguments)
