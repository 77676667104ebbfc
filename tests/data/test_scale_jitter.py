"""LargeScaleJitter: sizes, pieces, and that rings follow the pixels."""

import dataclasses

import numpy as np
import pytest
import torch

from detector.data.augmentation import Augmentation
from detector.data.collate import Collate
from detector.data.scale_jitter import LargeScaleJitter
from tests.data.test_augmentation import make_sample


def make_rectangle(height: int, width: int, x1: int, y1: int, x2: int, y2: int):
    """A white rectangle on black, and its ring."""
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    ring = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32)
    return make_sample([ring], image)


def jitter(scale: float, size: int = 100) -> Augmentation:
    return Augmentation([LargeScaleJitter(size, scale, scale)])


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (1.0, (50, 100)),  # the longer side fits the square
        (0.5, (25, 50)),  # smaller images are not padded
        (1.5, (75, 100)),  # 75 x 150, of which a piece is kept
        (4.0, (100, 100)),  # 200 x 400
    ],
)
def test_sizes(scale, expected):
    sample = make_rectangle(200, 400, 40, 40, 360, 160)
    for seed in range(3):
        assert jitter(scale)(sample, np.random.default_rng(seed)).image.shape[:2] == expected


@pytest.mark.parametrize("scale", [0.45, 1.0, 1.8])
def test_rings_and_boxes_follow_the_pixels(scale):
    """The extent of the white pixels, each counted by its share of white along its edge.

    The wrong convention of pixel centres would shift them by half of (scale - 1), 0.4 and more;
    blurred edges at the border of a piece are worth 0.1."""
    sample = make_rectangle(120, 160, 60, 40, 110, 90)
    places = set()
    for seed in range(6):
        result = jitter(scale, 160)(sample, np.random.default_rng(seed))
        white = result.image[..., 0].astype(float) / 255
        assert len(result) == 1
        x1, y1, x2, y2 = result.boxes[0]
        assert white.sum() == pytest.approx((x2 - x1) * (y2 - y1), rel=0.03)
        rows, columns = np.indices(white.shape) + 0.5
        centre = np.array([(white * columns).sum(), (white * rows).sum()]) / white.sum()
        assert centre == pytest.approx([(x1 + x2) / 2, (y1 + y2) / 2], abs=0.2)
        places.add((float(x1), float(y1)))
    assert len(places) > 1 or scale <= 1, "pieces of a larger image are drawn"


def test_objects_outside_the_piece_are_gone():
    sample = make_rectangle(100, 100, 0, 0, 30, 30)
    counts = {len(jitter(2.0)(sample, np.random.default_rng(seed))) for seed in range(20)}
    assert counts == {0, 1}


def test_scales_are_drawn_over_the_whole_range():
    """Uniform from 0.1 to 2.0: of 200 draws the mean within 4 standard errors of 1.05."""
    transform = LargeScaleJitter(1000, 0.1, 2.0)
    transform.set_random_seed(0)
    heights = []
    for _ in range(200):
        params = {"shape": (1000, 1000, 3)}
        heights.append(transform.get_params_dependent_on_data(params, {})["new_size"][0])
    assert min(heights) < 150 and max(heights) > 1950
    assert np.mean(heights) == pytest.approx(1050, abs=4 * 1900 / 12**0.5 / 200**0.5)


def test_boxes_of_albumentations_own_follow_too():
    """Whoever calls it outside this package gives relative boxes."""
    transform = LargeScaleJitter(100, 2.0, 2.0)
    params = {"new_size": (200, 200), "corner": (20, 60)}
    moved = transform.apply_to_bboxes(np.array([[0.4, 0.2, 0.5, 0.5]]), **params)
    np.testing.assert_allclose(moved, [[0.2, 0.2, 0.4, 0.8]])


def test_batches_of_the_recipe_have_one_shape():
    collate = Collate([[1024, 1024], [800, 1344], [1344, 800], [1344, 1344]])
    sample = make_rectangle(200, 300, 10, 10, 50, 50)
    augmentation = Augmentation([LargeScaleJitter()])
    samples = [augmentation(sample, np.random.default_rng(seed)) for seed in range(2)]
    batch = collate([dataclasses.replace(one, image_id=i) for i, one in enumerate(samples)])
    assert batch.images.shape == (2, 3, 1024, 1024)
    assert batch.image_sizes.max() <= 1024
    assert len(torch.unique(batch.image_sizes, dim=0)) == 2


@pytest.mark.parametrize("arguments", [(0, 0.1, 2.0), (10, 0.0, 2.0), (10, 1.0, 0.5)])
def test_impossible_numbers(arguments):
    with pytest.raises(ValueError, match=f"size={arguments[0]}, min_scale={arguments[1]}"):
        LargeScaleJitter(*arguments)
