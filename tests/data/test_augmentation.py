"""Augmented boxes and rings against the augmented pixels."""

import dataclasses

import albumentations as A
import numpy as np
import pytest

from detector.data.augmentation import Augmentation
from detector.data.rings import ring_areas
from detector.data.sample import Sample
from detector.data.transforms import ResizeShortestEdge

_HEIGHT, _WIDTH = 96, 128
# An L, small enough that moderate transforms keep it whole.
_SHAPE = np.array([[52, 40], [76, 38], [74, 50], [64, 47], [60, 60], [54, 58]], dtype=np.float32)


def draw(ring: np.ndarray, rasterize) -> np.ndarray:
    """The ring in white on black with soft edges, ``(H, W, 3)`` uint8."""
    fine = 8
    mask = rasterize([ring * fine], _HEIGHT * fine, _WIDTH * fine)
    coverage = mask.reshape(_HEIGHT, fine, _WIDTH, fine).mean(axis=(1, 3))
    return np.repeat(np.round(coverage * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def make_sample(rings: list[np.ndarray], image: np.ndarray, boxes=None) -> Sample:
    if boxes is None:
        boxes = [np.concatenate([ring.min(axis=0), ring.max(axis=0)]) for ring in rings]
    lengths = [len(ring) for ring in rings]
    return Sample(
        image=image,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.arange(len(boxes)),
        ring_offsets=np.arange(len(rings) + 1) if rings else np.zeros(len(boxes) + 1, np.int64),
        vertex_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        vertices=np.concatenate([*rings, np.zeros((0, 2))]).astype(np.float32),
        image_id=5,
        original_size=image.shape[:2],
    )


@pytest.fixture
def sample(rasterize) -> Sample:
    return make_sample([_SHAPE], draw(_SHAPE, rasterize))


def ring_centroid(ring: np.ndarray) -> np.ndarray:
    ring = ring.astype(float)
    following = np.roll(ring, -1, axis=0)
    cross = ring[:, 0] * following[:, 1] - following[:, 0] * ring[:, 1]
    return ((ring + following) * cross[:, None]).sum(axis=0) / (3 * cross.sum())


def pixel_centroid(image: np.ndarray) -> np.ndarray:
    weight = image[..., 0].astype(float)
    rows, columns = np.indices(weight.shape) + 0.5
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


GEOMETRIC = {
    "shortest edge, smaller": ResizeShortestEdge(72, 1000),
    "shortest edge, larger": ResizeShortestEdge(200, 1000),
    "horizontal flip": A.HorizontalFlip(p=1),
    "vertical flip": A.VerticalFlip(p=1),
    "any right angle": A.D4(p=1),
    "transpose": A.Transpose(p=1),
    "resize": A.Resize(200, 220),
    "random scale": A.RandomScale((-0.4, 0.5), p=1),
    "longest": A.LongestMaxSize(300),
    "smallest": A.SmallestMaxSize(60),
    "affine": A.Affine(scale=(0.7, 1.3), rotate=(-40, 40), translate_percent=0.1, shear=8, p=1),
    "affine that grows": A.Affine(rotate=30, fit_output=True, p=1),
    "rotate": A.Rotate(45, border_mode=0, p=1),
    "rotate and cut the border": A.Rotate(30, border_mode=0, crop_border=True, p=1),
    "safe rotate": A.SafeRotate(45, border_mode=0, p=1),
    "perspective": A.Perspective(scale=0.08, p=1),
    "crop": A.RandomCrop(88, 110, p=1),
    "centre crop": A.CenterCrop(80, 80),
    "crop and resize": A.RandomResizedCrop((150, 170), scale=(0.8, 1), p=1),
    "crop around boxes": A.RandomSizedBBoxSafeCrop(150, 170, p=1),
    "crop with a box": A.BBoxSafeRandomCrop(p=1),
    "crop edges, keep the size": A.CropAndPad(percent=-0.1, keep_size=True, p=1),
    "pad": A.PadIfNeeded(150, 160, p=1),
    "optical": A.OpticalDistortion(distort_limit=(-0.3, 0.3), p=1),
    "one of": A.OneOf([A.HorizontalFlip(p=1), A.Resize(200, 220)], p=1),
    "sequence": A.Sequential([A.HorizontalFlip(p=1), A.Resize(200, 220), A.Affine(rotate=20, p=1)]),
}


@pytest.mark.parametrize("name", GEOMETRIC)
def test_rings_and_boxes_follow_the_pixels(sample, name):
    augmentation = Augmentation([GEOMETRIC[name]])
    for seed in range(4):
        result = augmentation(sample, np.random.default_rng(seed))
        assert len(result) == 1
        # Wrong by a pixel-centre convention would be half a pixel or more.
        moved = np.abs(ring_centroid(result.vertices) - pixel_centroid(result.image)).max()
        assert moved < 0.06
        area = abs(ring_areas(result.vertices, result.vertex_offsets)[0])
        assert area == pytest.approx(result.image[..., 0].astype(float).sum() / 255, rel=0.02)
        low, high = result.vertices.min(axis=0), result.vertices.max(axis=0)
        np.testing.assert_allclose(result.boxes[0], [*low, *high], atol=1e-3)


def test_an_elastic_distortion_is_followed_between_pixels(rasterize):
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.array([64, 48]) + 25 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sample = make_sample([circle.astype(np.float32)], draw(circle, rasterize))
    augmentation = Augmentation([A.ElasticTransform(alpha=60, sigma=10, p=1)])
    for seed in range(4):
        result = augmentation(sample, np.random.default_rng(seed))
        assert np.abs(ring_centroid(result.vertices) - pixel_centroid(result.image)).max() < 0.06
        assert np.abs(result.vertices - circle).max() > 0.5


@pytest.mark.parametrize(
    "transform",
    [
        A.ColorJitter(p=1),
        A.GaussianBlur(p=1),
        A.ToGray(p=1),
        A.CoarseDropout(p=1),
        A.HueSaturationValue(p=1),
    ],
)
def test_colours_change_and_targets_do_not(sample, transform):
    image = np.random.default_rng(0).integers(0, 256, sample.image.shape, dtype=np.uint8)
    sample = dataclasses.replace(sample, image=image)
    result = Augmentation([transform])(sample, np.random.default_rng(0))
    assert not np.array_equal(result.image, image)
    np.testing.assert_allclose(result.boxes, sample.boxes, atol=1e-5)
    np.testing.assert_allclose(result.vertices, sample.vertices, atol=1e-5)


def test_a_flip_maps_x_to_width_minus_x(sample):
    result = Augmentation([A.HorizontalFlip(p=1)])(sample, np.random.default_rng(0))
    expected = sample.vertices * [-1, 1] + [_WIDTH, 0]
    np.testing.assert_allclose(result.vertices, expected, atol=1e-5)
    x1, y1, x2, y2 = sample.boxes[0]
    np.testing.assert_allclose(result.boxes[0], [_WIDTH - x2, y1, _WIDTH - x1, y2], atol=1e-5)
    np.testing.assert_array_equal(result.image, sample.image[:, ::-1])


def test_two_flips_are_none(sample):
    twice = Augmentation([A.HorizontalFlip(p=1), A.HorizontalFlip(p=1)])
    result = twice(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(result.image, sample.image)
    np.testing.assert_allclose(result.vertices, sample.vertices, atol=1e-5)


def test_an_annotated_box_survives_flips_and_resizes_as_it_is(rasterize):
    loose = [[50, 35, 80, 62]]
    sample = make_sample([_SHAPE], draw(_SHAPE, rasterize), loose)
    transforms = [A.HorizontalFlip(p=1), ResizeShortestEdge(192, 1000)]
    result = Augmentation(transforms)(sample, np.random.default_rng(0))
    np.testing.assert_allclose(result.boxes, [[96, 70, 156, 124]], atol=1e-4)


def test_a_rotated_box_is_the_polygons_not_the_corners(sample):
    result = Augmentation([A.Affine(rotate=45, p=1)])(sample, np.random.default_rng(0))
    bright = result.image[..., 0] > 127
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(result.boxes[0], tight, atol=1.5)


def test_without_masks_boxes_hold_their_corners(sample):
    boxes_only = make_sample([], sample.image, sample.boxes)
    result = Augmentation([A.Affine(rotate=90, p=1)])(boxes_only, np.random.default_rng(0))
    width, height = sample.boxes[0, 2:] - sample.boxes[0, :2]
    np.testing.assert_allclose(
        result.boxes[0, 2:] - result.boxes[0, :2], [height, width], atol=1e-3
    )
    assert len(result.vertices) == 0


def test_a_crop_clips_boxes_and_drops_what_is_outside():
    square = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], dtype=np.float32)
    rings = [square + [5, 5], square + [45, 20], square + [90, 60], square + [49.5, 30]]
    sample = make_sample(rings, np.zeros((_HEIGHT, _WIDTH, 3), np.uint8))
    result = Augmentation([A.Crop(0, 0, 50, 50)])(sample, np.random.default_rng(0))
    assert result.labels.tolist() == [0, 1], "of the last, half a pixel is left"
    np.testing.assert_allclose(result.boxes, [[5, 5, 15, 15], [45, 20, 50, 30]], atol=1e-4)
    np.testing.assert_allclose(result.rings(1)[0], rings[1], atol=1e-4)
    assert result.ring_offsets.tolist() == [0, 1, 2]
    assert result.vertex_offsets.tolist() == [0, 4, 8]


def test_a_polygon_around_an_empty_corner_is_dropped_with_its_box():
    # The box reaches into the crop, the polygon (a triangle below the diagonal) does not.
    triangle = np.array([[60, 0], [60, 60], [0, 60]], dtype=np.float32)
    sample = make_sample([triangle], np.zeros((_HEIGHT, _WIDTH, 3), np.uint8))
    result = Augmentation([A.Crop(0, 0, 28, 28)])(sample, np.random.default_rng(0))
    assert len(result) == 0 and len(result.vertices) == 0


def test_images_without_objects_pass(sample):
    empty = make_sample([], sample.image, [])
    for transform in (A.HorizontalFlip(p=1), A.Affine(rotate=20, p=1), A.BBoxSafeRandomCrop(p=1)):
        result = Augmentation([transform])(empty, np.random.default_rng(0))
        assert len(result) == 0 and result.boxes.shape == (0, 4)


def test_the_same_generator_gives_the_same_sample_whatever_came_before(sample):
    augmentation = Augmentation([A.OneOf([A.Affine(rotate=(-45, 45)), A.D4()]), A.ColorJitter()])
    first = augmentation(sample, np.random.default_rng(7))
    for seed in range(3):
        augmentation(sample, np.random.default_rng(seed))
    again = augmentation(sample, np.random.default_rng(7))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.vertices, again.vertices)


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (A.Normalize(), "Normalize is not supported"),
        (A.RandomGridShuffle(), "RandomGridShuffle"),
        (A.MaskDropout(), r"MaskDropout needs \['mask'\]"),
        (A.Affine(border_mode=4), "reflecting border"),
        (A.Compose([A.HorizontalFlip()]), "Sequential"),
        (A.OneOf([A.HorizontalFlip(), A.ToFloat()]), "ToFloat"),
        ("HorizontalFlip", "'HorizontalFlip' is not an albumentations transform"),
    ],
)
def test_transforms_that_masks_cannot_follow_are_refused_at_once(transform, said):
    with pytest.raises(ValueError, match=said):
        Augmentation([transform])


def test_an_argument_that_does_not_exist_is_refused():
    with pytest.warns(UserWarning, match="rotation"):
        transform = A.Affine(rotation=5)
    with pytest.raises(ValueError, match="Affine has no argument rotation"):
        Augmentation([transform])
