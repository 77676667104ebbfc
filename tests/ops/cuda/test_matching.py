"""The matching kernels, run on the CPU, against the definition."""

import math

import pytest
import torch

from detector.ops.cuda import matching as kernels
from detector.ops.matching import NEGATIVE, POSITIVE, match_boxes
from detector.ops.reference import matching as reference


def random_case(images: int, num_anchors: int, num_gts: int, seed: int, shared: bool = True):
    """Whole-numbered boxes, so that equal overlaps are many."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> torch.Tensor:
        corner = torch.randint(100, (*shape, 2), generator=generator)
        return torch.cat(
            (corner, corner + torch.randint(2, 60, (*shape, 2), generator=generator)), -1
        )

    anchors = boxes(num_anchors) if shared else boxes(images, num_anchors)
    valid = torch.rand(images, num_gts, generator=generator) < 0.7
    return anchors.float(), boxes(images, num_gts).float(), valid


def assert_matches_definition(case, low=0.3, high=0.7):
    for low_quality in (False, True):
        matched, labels = kernels.match_boxes(*case, low, high, low_quality)
        expected_matched, expected_labels = reference.match_boxes(*case, low, high, low_quality)
        assert torch.equal(matched, expected_matched)
        assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    ("images", "num_anchors", "num_gts"),
    [(1, 1, 1), (2, 256, 1), (3, 257, 16), (2, 1025, 128), (2, 500, 129), (1, 2100, 300)],
)
def test_equals_the_definition(
    host_kernels, monkeypatch, shared, many, images, num_anchors, num_gts
):
    monkeypatch.setattr(kernels, "MANY_ANCHORS", 0 if many else 10**9)
    assert_matches_definition(random_case(images, num_anchors, num_gts, num_anchors, shared))
    per_thread = {kernel.macros for kernel in host_kernels.launched[-3:]}
    assert per_thread == {(("PER_THREAD", "4" if many else "1"),)}


@pytest.mark.parametrize("many", [False, True])
def test_any_order_of_threads_and_blocks_gives_the_same(host_kernels_any_order, monkeypatch, many):
    monkeypatch.setattr(kernels, "MANY_ANCHORS", 0 if many else 10**9)
    case = random_case(2, 1500, 150, seed=1)
    matched, labels = kernels.match_boxes(*case, 0.3, 0.7, True)
    expected_matched, expected_labels = match_boxes(*case, 0.3, 0.7, True)
    assert torch.equal(matched, expected_matched) and torch.equal(labels, expected_labels)


@pytest.mark.parametrize("numerator", range(1, 10))
def test_an_overlap_at_a_threshold(host_kernels, numerator):
    """The float32 nearest to the threshold decides, as where PyTorch compares with a number."""
    threshold = numerator / 10
    gt = torch.tensor([[[0.0, 0, 10, 10]]])
    edge = torch.tensor(float(numerator))
    nearby = torch.stack((edge, edge.nextafter(edge + 1), edge.nextafter(edge - 1)))
    anchors = torch.tensor([0.0, 0, 10, 0]).repeat(3, 1)
    anchors[:, 3] = nearby
    case = anchors, gt, torch.ones(1, 1).bool()
    assert_matches_definition(case, threshold, threshold)
    assert kernels.match_boxes(*case, threshold, threshold, False)[1][0, 0] == POSITIVE


def test_images_without_gts_and_nothing_at_all(host_kernels):
    anchors, gts, valid = random_case(3, 40, 5, seed=2)
    valid[1] = False
    assert_matches_definition((anchors, gts, valid))
    matched, labels = kernels.match_boxes(anchors, gts, valid, 0.3, 0.7, True)
    assert matched[1].eq(0).all() and labels[1].eq(NEGATIVE).all()
    assert_matches_definition((anchors, gts[:, :0], valid[:, :0]))
    for case in ((anchors[:0], gts, valid), (anchors, gts[:0], valid[:0])):
        matched, labels = kernels.match_boxes(*case, 0.3, 0.7, True)
        assert matched.shape == labels.shape == (len(case[1]), len(case[0]))


def test_numbers_that_are_not_finite(host_kernels):
    nan, inf = math.nan, math.inf
    numbers = torch.tensor([nan, inf, -inf, 0.0, -0.0, 5.0, 10.0, 3e38, -3e38, 1e-30])
    pick = torch.randint(len(numbers), (1, 600, 4), generator=torch.Generator().manual_seed(3))
    boxes = numbers[pick]
    boxes[0, 40] = torch.tensor([0.0, 0, 10, 10])
    assert boxes.isfinite().all(-1).sum() > 50
    assert_matches_definition((boxes[0], boxes[:, 20:60], torch.ones(1, 40).bool()))
    matched, labels = match_boxes(boxes[0], boxes[:, 20:60], torch.ones(1, 40).bool(), 0.3, 0.7)
    expected = kernels.match_boxes(
        boxes[0], boxes[:, 20:60], torch.ones(1, 40).bool(), 0.3, 0.7, False
    )
    assert torch.equal(matched, expected[0]) and torch.equal(labels, expected[1])


def test_views_and_other_dtypes(host_kernels):
    anchors, gts, valid = random_case(2, 90, 6, seed=4, shared=False)
    expected = kernels.match_boxes(anchors, gts, valid, 0.3, 0.7, True)
    storage = torch.zeros(anchors.numel() + 1)
    shifted = storage[1:].view_as(anchors).copy_(anchors)
    flipped = [x.flip(1).contiguous().flip(1) for x in (gts, valid)]
    for case in ((shifted, *flipped), (anchors.double(), gts.bfloat16(), valid)):
        for found, wanted in zip(kernels.match_boxes(*case, 0.3, 0.7, True), expected, strict=True):
            assert torch.equal(found, wanted)
