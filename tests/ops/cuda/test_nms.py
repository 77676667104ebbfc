"""The NMS kernels, run on the CPU, against the definition and torchvision."""

import math

import pytest
import torch

from detector.ops.cuda import nms as kernels
from detector.ops.cuda.nms import float32_below
from detector.ops.nms import nms_slots
from detector.ops.reference import nms as reference


def random_case(images: int, slots: int, groups: int, seed: int, extent: float = 120.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, slots, 2, generator=generator) * extent
    size = 5 + torch.rand(images, slots, 2, generator=generator) * 30
    boxes = torch.cat((corner, corner + size), 2)
    # Few different scores, so that ties are many.
    scores = torch.randint(slots // 2 + 1, (images, slots), generator=generator) / slots - 0.2
    group = torch.randint(groups, (images, slots), generator=generator)
    valid = torch.rand(images, slots, generator=generator) < 0.8
    return boxes, scores, group, valid


@pytest.mark.parametrize(
    ("images", "slots", "groups"),
    [(1, 1, 1), (3, 50, 4), (2, 64, 1), (2, 65, 1), (1, 65, 90), (2, 700, 3), (1, 1500, 1)],
)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_equals_the_definition(host_kernels, images, slots, groups, threshold):
    case = random_case(images, slots, groups, seed=slots)
    keep = kernels.nms_slots(*case, threshold)
    assert torch.equal(keep, reference.nms_slots(*case, threshold))
    if slots > 65:
        assert 0 < keep.sum() < case[3].sum(), "the case should suppress some and keep some"


def test_any_order_of_threads_gives_the_same(host_kernels_any_order):
    case = random_case(2, 420, 3, seed=9)
    keep = kernels.nms_slots(*case, 0.4)
    assert torch.equal(keep, nms_slots(*case, 0.4))


def test_any_order_of_the_threads_of_a_full_block_gives_the_same(host_kernels_any_order):
    """The best boxes lie on each other: each warp's part of the first tile decides what stays."""
    boxes, scores, groups, valid = random_case(1, 1100, 2, seed=11, extent=8.0)
    valid[:] = True
    keep = kernels.nms_slots(boxes, scores, groups, valid, 0.3)
    assert torch.equal(keep, nms_slots(boxes, scores, groups, valid, 0.3))


def test_more_slots_than_a_sorted_chunk_holds(host_kernels):
    """Chunks of 2048 are sorted apart and merged; equal scores lie in different chunks."""
    boxes, scores, groups, valid = random_case(2, 5000, 7, seed=1, extent=150.0)
    scores = (scores * 20).round() / 20
    keep = kernels.nms_slots(boxes, scores, groups, valid, 0.5)
    assert torch.equal(keep, nms_slots(boxes, scores, groups, valid, 0.5))
    assert valid.sum() - keep.sum() > 1000


def test_flags_may_lie_in_global_memory(host_kernels, monkeypatch):
    case = random_case(2, 300, 2, seed=2)
    monkeypatch.setattr(kernels, "MAX_SHARED_WORDS", 1)
    keep = kernels.nms_slots(*case, 0.4)
    assert torch.equal(keep, reference.nms_slots(*case, 0.4))


def test_a_chain_is_resolved_in_order(host_kernels):
    """Each box overlaps its neighbours alone: every second one stays, the longest dependency."""
    left = torch.arange(150.0) * 10
    boxes = torch.stack((left, torch.zeros(150), left + 16, torch.full((150,), 10.0)), 1)[None]
    scores = torch.linspace(1, 0, 150)[None]
    groups, valid = torch.zeros(1, 150).long(), torch.ones(1, 150).bool()
    keep = kernels.nms_slots(boxes, scores, groups, valid, 0.2)
    assert keep[0].tolist() == [i % 2 == 0 for i in range(150)]


def test_every_group_number_is_told_apart(host_kernels):
    extremes = [0, -1, 2**63 - 1, -(2**63), 2**32, 2**33, 1]
    groups = torch.tensor([extremes * 2])
    boxes = torch.tensor([0.0, 0, 10, 10]).expand(1, 14, 4)
    valid = torch.ones(1, 14).bool()
    valid[0, 2] = False  # beside the largest number, which slots that do not exist are sorted by
    keep = kernels.nms_slots(boxes, torch.zeros(1, 14), groups, valid, 0.5)
    expected = [i < 7 for i in range(14)]
    expected[2], expected[9] = False, True
    assert keep[0].tolist() == expected


def test_nothing_valid_and_nothing_at_all(host_kernels):
    boxes, scores, groups, _ = random_case(2, 90, 2, seed=3)
    assert not kernels.nms_slots(boxes, scores, groups, torch.zeros(2, 90).bool(), 0.5).any()
    for images, slots in ((0, 5), (3, 0)):
        empty = torch.zeros(images, slots)
        keep = kernels.nms_slots(
            torch.zeros(images, slots, 4), empty, empty.long(), empty.bool(), 0.5
        )
        assert keep.shape == (images, slots)


@pytest.mark.parametrize("path", [kernels.nms_slots, nms_slots, reference.nms_slots])
def test_numbers_that_are_not_finite(host_kernels, path):
    """A NaN score comes first; a box that is NaN, infinite or empty overlaps nothing."""
    nan, inf = math.nan, math.inf
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],
            [0, 0, 10, 10],  # best: its score is NaN
            [nan, 0, 10, 10],
            [0, nan, 10, 10],
            [0, 0, nan, 10],
            [0, 0, 10, nan],
            [0, 0, inf, inf],
            [-inf, -inf, inf, inf],
            [inf, 0, inf, 10],
            [5, 5, 5, 5],
            [10, 10, 0, 0],
            [10, 0, 0, 10],
            [3e38, 3e38, 3.4e38, 3.4e38],
            [-3e38, -3e38, 3e38, 3e38],
        ]
    )[None]
    boxes = torch.cat((boxes, boxes[:, 2:]), 1)
    scores = torch.linspace(1, 0.1, boxes.shape[1])[None].clone()
    scores[0, 0], scores[0, 1], scores[0, -1] = inf, nan, -inf
    groups, valid = torch.zeros_like(scores).long(), torch.ones_like(scores).bool()
    keep = path(boxes, scores, groups, valid, 0.5)
    assert keep[0].tolist() == [False] + [True] * (boxes.shape[1] - 1)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_sign_of_zero_and_of_nan_does_not_matter(host_kernels, value):
    boxes = torch.tensor([0.0, 0, 10, 10]).expand(1, 3, 4)
    scores = torch.tensor([[value, value, value]]).copysign(torch.tensor([-1.0, 1.0, -1.0]))
    assert scores.signbit().tolist() == [[True, False, True]]
    case = (boxes, scores, torch.zeros(1, 3).long(), torch.ones(1, 3).bool(), 0.5)
    assert kernels.nms_slots(*case)[0].tolist() == [True, False, False]
    assert torch.equal(nms_slots(*case), kernels.nms_slots(*case))


@pytest.mark.parametrize("numerator", range(1, 10))
def test_an_overlap_at_the_threshold_is_no_overlap(host_kernels, numerator):
    """IoUs whose float32 lies just above or below the float64 threshold, as torchvision has it."""
    threshold = numerator / 10
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0.0, 0, 10, numerator]]])
    case = (boxes, torch.tensor([[1.0, 0.5]]), torch.zeros(1, 2).long(), torch.ones(1, 2).bool())
    keep = kernels.nms_slots(*case, threshold)
    assert torch.equal(keep, nms_slots(*case, threshold))
    assert torch.equal(keep, reference.nms_slots(*case, threshold))
    assert keep[0, 1].item() == (torch.tensor(threshold).double().item() <= threshold)


def test_threshold_is_rounded_down():
    for value in (0.0, 0.1, 0.3, 0.5, 0.7, 1.0, 1e-46):
        below = float32_below(value)
        assert torch.tensor(below).item() == below <= value
        if below < value:
            above = torch.nextafter(torch.tensor(below), torch.tensor(1.0)).item()
            assert above > value


def test_views_and_other_dtypes(host_kernels):
    boxes, scores, groups, valid = random_case(2, 80, 3, seed=5)
    expected = kernels.nms_slots(boxes, scores, groups, valid, 0.4)
    storage = torch.zeros(boxes.numel() + 1)
    shifted = storage[1:].view_as(boxes).copy_(boxes)
    flipped = [x.flip(1).contiguous().flip(1) for x in (scores, groups, valid)]
    wide = torch.cat((groups, groups), 1)[:, :80].int()
    assert torch.equal(kernels.nms_slots(shifted, *flipped, 0.4), expected)
    assert torch.equal(kernels.nms_slots(boxes.double(), scores, wide, valid, 0.4), expected)
    halves = boxes.bfloat16(), scores.bfloat16(), groups, valid, 0.4
    assert torch.equal(kernels.nms_slots(*halves), nms_slots(*halves))
