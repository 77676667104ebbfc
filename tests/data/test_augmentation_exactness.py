"""Random pipelines over real polygons: outlines, boxes and keypoints against the pixels."""

from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.data import regions
from detector.data.augmentation import Augmentation
from detector.data.dataset import DetectionDataset
from detector.data.mixing import cut_to
from detector.data.sample import Sample
from detector.data.scale_jitter import LargeScaleJitter
from detector.data.transforms import ResizeShortestEdge
from tests.data.conftest import rasterize_rings
from tests.data.real_objects import coverage, edges_of, farthest, few_cases, one_object, with_points

HARD = few_cases(6)
SIZES = st.integers(150, 700)
# Whole pixels go to whole pixels.
WHOLE = {
    "mirror": st.builds(A.HorizontalFlip, p=st.just(1)),
    "upside down": st.builds(A.VerticalFlip, p=st.just(1)),
    "any right angle": st.builds(A.D4, p=st.just(1)),
    "quarter turns": st.builds(A.RandomRotate90, p=st.just(1)),
    "transpose": st.builds(A.Transpose, p=st.just(1)),
    "crop": st.builds(A.RandomCrop, SIZES, SIZES, pad_if_needed=st.just(True)),
    "centre crop": st.builds(A.CenterCrop, SIZES, SIZES, pad_if_needed=st.just(True)),
    "pad": st.builds(A.PadIfNeeded, SIZES, SIZES),
}
# Pixels are mixed from several.
SMOOTH = {
    "affine": st.builds(
        A.Affine,
        scale=st.floats(0.5, 1.6),
        rotate=st.floats(-180, 180),
        shear=st.floats(-15, 15),
        translate_percent=st.just((-0.1, 0.1)),
        fit_output=st.booleans(),
        p=st.just(1),
    ),
    "rotate": st.builds(
        A.Rotate, st.just(60), border_mode=st.just(0), crop_border=st.booleans(), p=st.just(1)
    ),
    "perspective": st.builds(
        A.Perspective, st.floats(0.02, 0.12), keep_size=st.booleans(), p=st.just(1)
    ),
    "crop and resize": st.builds(A.RandomResizedCrop, st.tuples(SIZES, SIZES), st.just((0.3, 1))),
    "crop around boxes": st.builds(A.RandomSizedBBoxSafeCrop, SIZES, SIZES),
    "crop and pad": st.builds(
        A.CropAndPad, percent=st.floats(-0.2, 0.2), keep_size=st.just(True), p=st.just(1)
    ),
    "resize": st.builds(A.Resize, SIZES, SIZES),
    "random scale": st.builds(A.RandomScale, st.just((-0.5, 0.5)), p=st.just(1)),
    "longest": st.builds(A.LongestMaxSize, SIZES),
    "shortest edge": st.builds(ResizeShortestEdge, SIZES, st.just(900)),
    "large-scale jitter": st.builds(LargeScaleJitter, SIZES, st.just(0.3), st.just(2.0)),
}
ANY = WHOLE | SMOOTH
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def dataset(test_data: Path) -> DetectionDataset:
    """Two hundred real images: polygons of several parts, runs with holes, occluded objects."""
    return DetectionDataset(
        "annotations/instances_val2017.json", "val2017", root=test_data / "coco_mini"
    )


def check_box(sample: Sample) -> None:
    """The box is what the outline spans inside the image."""
    height, width = sample.image.shape[:2]
    frame = regions.to_paths([regions.rectangle(0, 0, width, height)])
    inside = regions.intersection(sample.rings(0), frame)
    np.testing.assert_allclose(sample.boxes[0], regions.extent(inside), atol=2e-3)


def shift_between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """By how many pixels, down and right, the other picture is moved: least squares at edges.

    Lucas and Kanade, "An iterative image registration technique", 1981, section 4. Unlike the
    areas' centre it has no lever: what a thin object loses at one end does not count for more.
    """
    slopes = np.stack([slope.ravel() for slope in np.gradient(one)], axis=1)
    return np.linalg.lstsq(slopes, (one - other).ravel(), rcond=None)[0]


def check_points(before: Sample, after: Sample) -> None:
    """Keypoints, see :func:`with_points`, stay on their vertices, and are none outside."""
    height, width = after.image.shape[:2]
    places = np.linspace(0, len(before.vertices) - 1, 7).astype(int)
    for point, vertex in zip(after.keypoints[0], after.vertices[places], strict=True):
        is_inside = (vertex >= 0).all() and (vertex <= (width, height)).all()
        np.testing.assert_allclose(point, [*vertex, 2] if is_inside else [0, 0, 0], atol=1e-4)


def real_object(dataset, data) -> Sample | None:
    image, number = data.draw(st.integers(0, len(dataset) - 1)), data.draw(st.integers(0, 20))
    return one_object(dataset, image, number)


@pytest.mark.parametrize("name", WHOLE)
@HARD
@given(data=st.data())
def test_whole_pixels_stay_as_they_are(dataset, name, data):
    """The moved bitmap is the moved outline's, through two or three transforms in any order."""
    more = st.lists(st.sampled_from(list(WHOLE)), min_size=1, max_size=2)
    names = data.draw(st.permutations([name, *data.draw(more)]))
    augmentation = Augmentation([data.draw(WHOLE[each]) for each in names], range(7))
    if (before := real_object(dataset, data)) is None:
        return
    after = augmentation(before, np.random.default_rng(data.draw(SEEDS)))
    height, width = after.image.shape[:2]
    white = after.image[..., 0]
    if len(after) == 0:  # less than a pixel is left
        assert min((white > 127).any(axis=axis).sum() for axis in (0, 1)) <= 1
        return
    # Grey pixels are those that an outline passes through.
    drawn = rasterize_rings(after.rings(0), height, width)
    assert not ((white == 255) & ~drawn).any() and not ((white == 0) & drawn).any()
    expected = coverage(after.rings(0), height, width)[..., 0]
    assert np.abs(white.astype(int) - expected).max() <= 255 / 4 + 1  # a row of fine centres
    check_box(after)
    if len(before.vertices) == len(after.vertices):  # it was not cut in between
        check_points(before, after)


@pytest.mark.parametrize("name", SMOOTH)
@HARD
@given(data=st.data())
def test_outlines_follow_the_pixels(dataset, name, data):
    """Pixels that are more white than black are those inside, but for the boundary's.

    Where the image was enlarged, a boundary pixel of the file is as many times wider. On average
    over the boundary it is closer: by another convention of pixel centres, twice as large an image
    would be half a pixel off."""
    around = st.lists(st.sampled_from(list(WHOLE)), max_size=1)
    names = [*data.draw(around), name, *data.draw(around)]
    rng = np.random.default_rng(data.draw(SEEDS))
    zoom = 1.0
    sample = real_object(dataset, data)
    for each in names:
        transform = data.draw(ANY[each])
        if sample is None or len(sample) == 0:
            return
        # As the list would: cut at the image, and then moved, vertex by vertex.
        sample = with_points(cut_to(sample, 0, 0, sample.image.shape[1], sample.image.shape[0]))
        before, sample = sample, Augmentation([transform], range(7))(sample, rng)
        height, width = sample.image.shape[:2]
        white = sample.image[..., 0].astype(float) / 255
        if len(sample) == 0:
            assert min((white > 0.6).any(axis=axis).sum() for axis in (0, 1)) <= 3
            return
        lengths = [np.hypot(*(end - start).T) for start, end in map(edges_of, (before, sample))]
        long = lengths[0] > 2
        zoom *= float((lengths[1][long] / lengths[0][long]).max(initial=1.0))
        drawn = rasterize_rings(sample.rings(0), height, width)
        assert farthest((white > 0.5) != drawn, edges_of(sample)) < 0.75 * zoom + 0.25
        check_box(sample)
        check_points(before, sample)
        expected = coverage(sample.rings(0), height, width)[..., 0].astype(float) / 255
        assert abs(white.sum() - expected.sum()) < 0.1 * zoom * lengths[1].sum() + 1
        if expected.sum() > 400:
            assert np.abs(shift_between(expected, white)).max() < 0.2 * zoom
