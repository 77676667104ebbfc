"""Simple Copy-Paste: what is pasted, what is hidden, and what remains."""

import contextlib
import dataclasses
import io
import math
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from detector.data.augmentation import Augmentation
from detector.data.copy_paste import SimpleCopyPaste
from detector.data.dataset import DetectionDataset
from detector.data.sample import Sample
from detector.data.scale_jitter import LargeScaleJitter
from tests.data.conftest import rasterize_rings
from tests.data.real_objects import edges_of, farthest, few_cases, with_tight_boxes
from tests.data.test_augmentation import make_sample

ANNOTATIONS = "annotations/instances_val2017.json"
HARD = few_cases(20)


@pytest.fixture(scope="module")
def dataset(test_data: Path) -> DetectionDataset:
    return DetectionDataset(ANNOTATIONS, "val2017", root=test_data / "coco_mini")


def box_ring(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float32)


def boxes_sample(*boxes: tuple, value: int = 10, size=(80, 100), first_label: int = 0) -> Sample:
    """Rectangles in an image of one value."""
    rings = [box_ring(*box) for box in boxes]
    sample = make_sample(rings, np.full((*size, 3), value, np.uint8))
    return dataclasses.replace(sample, labels=first_label + np.arange(len(boxes)))


def paste_all(mix: SimpleCopyPaste, sample: Sample, partner: Sample) -> Sample:
    """With a seed that pastes all objects of the partner."""
    for seed in range(1000):
        result = mix(sample, [partner], np.random.default_rng(seed))
        if (result.labels >= 100).sum() == len(partner):
            return result
    raise AssertionError("no seed pastes all")


def bitmaps(sample: Sample) -> list[np.ndarray]:
    height, width = sample.image.shape[:2]
    return [rasterize_rings(sample.rings(place), height, width) for place in range(len(sample))]


def test_an_occluded_rectangle():
    """Worked out by hand: the right half is hidden, and the box ends where it begins."""
    behind = boxes_sample((10, 10, 50, 40), (60, 50, 90, 70))
    front = boxes_sample((30, 5, 70, 45), value=200, first_label=100)
    result = paste_all(SimpleCopyPaste(), behind, front)
    assert result.labels.tolist() == [0, 1, 100]
    np.testing.assert_array_equal(
        result.boxes, [[10, 10, 30, 40], [60, 50, 90, 70], [30, 5, 70, 45]]
    )
    expected = np.full((80, 100, 3), 10)
    expected[5:45, 30:70] = 200
    np.testing.assert_array_equal(result.image, expected)
    assert (behind.image == 10).all(), "the given image is not painted on"


def test_a_hole_is_cut_into_what_lies_behind():
    result = paste_all(
        SimpleCopyPaste(),
        boxes_sample((10, 10, 60, 60)),
        boxes_sample((20, 20, 40, 40), value=200, first_label=100),
    )
    assert result.boxes[0].tolist() == [10, 10, 60, 60]
    mask = bitmaps(result)[0]
    expected = np.zeros((80, 100), bool)
    expected[10:60, 10:60] = True
    expected[20:40, 20:40] = False
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("left", "stays"),
    [
        (21.0, True),  # 19 x 16 = 304 square pixels are left
        (21.25, False),  # 18.75 x 16 = 300
        (30.5, False),  # its side moved by more than ten
        (40.0, False),  # nothing is left
    ],
)
def test_what_is_nearly_hidden_is_dropped(left, stays):
    """The rule of the authors' code: moved by more than 10, and an area of 300 or less."""
    behind = boxes_sample((0, 0, 40, 16))
    front = boxes_sample((0, 0, left, 40), value=200, first_label=100)
    result = paste_all(SimpleCopyPaste(), behind, front)
    assert (0 in result.labels) == stays


def test_a_small_object_whose_box_barely_moves_stays():
    behind = boxes_sample((0, 0, 16, 16))  # 256 square pixels
    front = boxes_sample((0, 0, 9.5, 40), value=200, first_label=100)
    result = paste_all(SimpleCopyPaste(), behind, front)
    assert result.labels.tolist() == [0, 100]
    assert result.boxes[0].tolist() == [9.5, 0, 16, 16]


def test_an_annotated_box_stays_where_nothing_is_hidden():
    behind = boxes_sample((10, 10, 50, 40))
    loose = dataclasses.replace(behind, boxes=np.array([[8, 9, 52, 44]], np.float32))
    front = boxes_sample((50, 5, 70, 45), value=200, first_label=100)  # it touches the side
    result = paste_all(SimpleCopyPaste(), loose, front)
    assert result.boxes[0].tolist() == [8, 9, 52, 44]
    np.testing.assert_array_equal(result.rings(0)[0], behind.rings(0)[0])


def test_hidden_keypoints_are_labelled_but_not_visible():
    points = np.array([[[12, 12, 2], [40, 20, 2], [41, 21, 1], [0, 0, 0]]], np.float32)
    behind = dataclasses.replace(boxes_sample((10, 10, 50, 40)), keypoints=points)
    on_front = np.array([[[35, 8, 2], [0, 0, 0], [95, 79, 2], [0, 0, 0]]], np.float32)
    front = boxes_sample((30, 5, 70, 45), value=200, first_label=100)
    front = dataclasses.replace(front, keypoints=on_front)
    result = paste_all(SimpleCopyPaste(), behind, front)
    np.testing.assert_array_equal(
        result.keypoints[0], [[12, 12, 2], [40, 20, 1], [41, 21, 1], [0, 0, 0]]
    )
    np.testing.assert_array_equal(result.keypoints[1], on_front[0])


def test_two_overlapping_objects_and_a_figure_of_eight_are_pasted_whole():
    """A ring that crosses itself winds backwards in a half; added to another it must not cancel."""
    eight = np.array([[20, 20], [60, 60], [60, 20], [20, 60]], np.float32)
    front = make_sample([eight, box_ring(15, 10, 65, 70)], np.full((80, 100, 3), 200, np.uint8))
    front = dataclasses.replace(front, labels=np.array([100, 101]))
    result = paste_all(SimpleCopyPaste(), boxes_sample((0, 0, 100, 80)), front)
    inside = np.zeros((80, 100), bool)
    inside[10:70, 15:65] = True
    np.testing.assert_array_equal((result.image == 200).all(axis=2), inside)
    np.testing.assert_array_equal(bitmaps(result)[0], ~inside)
    assert bitmaps(result)[1].any(), "the eight has kept its mask"


def test_a_canvas_larger_than_both_images():
    behind = boxes_sample((10, 10, 30, 60), size=(50, 40))  # reaches below its own image
    front = boxes_sample((50, 20, 90, 40), value=200, size=(60, 70), first_label=100)
    result = paste_all(SimpleCopyPaste(size=(80, 120), fill=(1, 2, 3)), behind, front)
    assert result.image.shape == (80, 120, 3)
    np.testing.assert_array_equal(result.boxes, [[10, 10, 30, 50], [50, 20, 70, 40]])
    expected = np.broadcast_to(np.uint8([1, 2, 3]), (80, 120, 3)).copy()
    expected[:50, :40] = 10
    expected[20:40, 50:70] = 200
    np.testing.assert_array_equal(result.image, expected)


def test_beyond_the_samples_own_size_nothing_is_pasted():
    behind = boxes_sample((10, 10, 30, 40), size=(50, 40))
    front = boxes_sample((5, 45, 35, 60), (50, 20, 60, 40), value=200, first_label=100)
    seen = [SimpleCopyPaste()(behind, [front], np.random.default_rng(seed)) for seed in range(30)]
    assert {tuple(sample.labels.tolist()) for sample in seen} == {(0,), (0, 100)}
    assert all(sample.image.shape == (50, 40, 3) for sample in seen)
    assert {tuple(sample.boxes[-1].tolist()) for sample in seen if len(sample) == 2} == {
        (5, 45, 35, 50)
    }


def test_a_blurred_outline_is_a_gaussian_step():
    """Across a straight outline, pixels follow the normal distribution's integral."""
    behind = boxes_sample((0, 0, 10, 10), value=0)
    front = boxes_sample((50, -50, 150, 200), value=200, first_label=100)
    result = paste_all(SimpleCopyPaste(blur=3.0), behind, front)
    places = np.arange(40, 60)
    expected = [100 * (1 + math.erf((x + 0.5 - 50) / (3 * 2**0.5))) for x in places]
    np.testing.assert_allclose(result.image[40, 40:60, 0], expected, atol=2)
    assert result.boxes[-1].tolist() == [50, 0, 100, 80], "masks are not blurred"


def test_how_many_objects_are_pasted():
    """Uniform from none to all, any of them: as the authors' code draws."""
    front = boxes_sample(*[(8 * i, 0, 8 * i + 6, 30) for i in range(4)], first_label=100)
    empty = boxes_sample()
    drawn = [
        SimpleCopyPaste()(empty, [front], np.random.default_rng(seed)).labels - 100
        for seed in range(1000)
    ]
    counts = np.bincount([len(labels) for labels in drawn], minlength=5)
    assert np.abs(counts - 200).max() < 4 * (1000 * 0.2 * 0.8) ** 0.5
    each = np.bincount(np.concatenate(drawn), minlength=4)
    assert np.abs(each - 500).max() < 4 * (1000 / 3) ** 0.5


@pytest.mark.parametrize("behind", [(), ((10, 10, 50, 40),)])
@pytest.mark.parametrize("front", [(), ((30, 5, 70, 45),)])
def test_images_without_objects(behind, front):
    for seed in range(4):
        result = SimpleCopyPaste()(
            boxes_sample(*behind),
            [boxes_sample(*front, first_label=100)],
            np.random.default_rng(seed),
        )
        assert len(behind) <= len(result) <= len(behind) + len(front)
        assert result.ring_offsets[-1] == len(result.vertex_offsets) - 1 == len(result)


@HARD
@given(data=st.data())
def test_real_objects(dataset, data):
    """Jittered real images: pixels and masks are one or the other image's, to the boundary."""
    images = st.integers(0, len(dataset) - 1)
    seeds = st.integers(0, 2**32 - 1)
    jitter = data.draw(
        st.sampled_from([[], [A.D4(p=1)], [LargeScaleJitter(400, 0.3, 2.0), A.HorizontalFlip()]])
    )
    size = data.draw(st.sampled_from([None, 400]))
    pair = []
    for first in (0, 1000):
        one = dataset.read(data.draw(images))
        noise = np.random.default_rng(first).integers(0, 128, one.image.shape, np.uint8)
        rng = np.random.default_rng(data.draw(seeds))
        one = Augmentation(jitter)(with_tight_boxes(one), rng)
        image = noise[: one.image.shape[0], : one.image.shape[1]] + np.uint8(128 * (first > 0))
        if image.shape != one.image.shape:
            image = np.resize(image, one.image.shape)
        pair.append(dataclasses.replace(one, image=image, labels=one.labels + first))
    sample, partner = pair
    result = SimpleCopyPaste(size, fill=(0, 0, 0))(
        sample, [partner], np.random.default_rng(data.draw(seeds))
    )
    height, width = result.image.shape[:2]
    masks = dict(zip(result.labels.tolist(), bitmaps(result), strict=True))
    outline = edges_of(result) if len(result.vertices) else (np.zeros((1, 2)),) * 2
    painted = (result.image >= 128).any(axis=2)
    front = np.zeros((height, width), bool)
    for label, mask in masks.items():
        front |= mask if label >= 1000 else False
    assert farthest(painted != front, outline) < 1e-3
    sources = np.zeros((2, height, width, 3), np.uint8)
    for source, each in zip(sources, pair, strict=True):
        rows, columns = np.minimum(each.image.shape[:2], (height, width))
        source[:rows, :columns] = each.image[:rows, :columns]
    np.testing.assert_array_equal(
        result.image, np.where(painted[..., None], sources[1], sources[0])
    )
    rows, columns = np.minimum(sample.image.shape[:2], (height, width))
    for place, label in enumerate(result.labels.tolist()):
        if label >= 1000:
            continue
        original = rasterize_rings(sample.rings(list(sample.labels).index(label)), height, width)
        original[rows:], original[:, columns:] = False, False
        assert farthest(masks[label] & front, outline) < 1e-3, "disjoint from what is pasted"
        assert farthest(masks[label] != (original & ~front), outline) < 1e-3
        vertices = np.concatenate(result.rings(place))
        if not np.array_equal(masks[label], original):
            expected = [*vertices.min(axis=0), *vertices.max(axis=0)]
            np.testing.assert_allclose(result.boxes[place], expected, atol=1e-3)
    for label in set(sample.labels.tolist()) - set(masks):
        original = rasterize_rings(sample.rings(list(sample.labels).index(label)), height, width)
        original[rows:], original[:, columns:] = False, False
        assert (original & ~front).sum() < 400, "only what is nearly hidden is dropped"


def test_against_pycocotools(dataset, test_data):
    """Original masks as pycocotools draws them, less the pasted ones, but for boundary pixels."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(test_data / "coco_mini" / ANNOTATIONS))
    changed = 0
    for first in range(0, 60, 3):
        behind, front = (with_tight_boxes(dataset.read(place)) for place in (first, first + 61))
        front = dataclasses.replace(front, labels=front.labels + 1000)
        result = SimpleCopyPaste()(behind, [front], np.random.default_rng(first))
        height, width = result.image.shape[:2]

        def judged(sample: Sample, number: int, shape=(height, width)) -> np.ndarray:
            ids = coco.getAnnIds([sample.image_id], iscrowd=False)
            mask = coco.annToMask(coco.anns[ids[number]]).astype(bool)
            whole = np.zeros(shape, bool)
            rows, columns = np.minimum(mask.shape, shape)
            whole[:rows, :columns] = mask[:rows, :columns]
            return whole

        pasted = np.zeros((height, width), bool)
        for label in result.labels[result.labels >= 1000]:
            pasted |= judged(front, label - 1000)
        outlines = [edges_of(sample) for sample in (behind, front, result) if len(sample)]
        for mask, label in zip(bitmaps(result), result.labels.tolist(), strict=True):
            if label >= 1000:
                continue
            expected = judged(behind, label) & ~pasted
            changed += (judged(behind, label) & pasted).any()
            # pycocotools rounds vertices to half pixels and counts those an outline passes.
            assert farthest(mask != expected, *outlines) < 1.5
    assert changed > 10, "some were hidden in part"


@pytest.mark.parametrize("arguments", [{"blur": -1}, {"min_area": -3}, {"p": 2}, {"size": [3]}])
def test_impossible_numbers(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"SimpleCopyPaste: {name}="):
        SimpleCopyPaste(**arguments)
