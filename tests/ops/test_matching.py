"""Assignment of ground truth against torchvision's matcher and published values."""

from itertools import accumulate

import pytest
import torch
import torchvision
from torch.profiler import ProfilerActivity
from torchvision.models.detection._utils import Matcher

from detector.ops import matching
from detector.ops.matching import IGNORED, NEGATIVE, POSITIVE, match_boxes
from detector.ops.reference import matching as reference

CPU = ProfilerActivity.CPU


def random_boxes(*shape: int, extent: float = 100.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * extent
    size = torch.rand(*shape, 2, generator=generator) * extent * 0.6 + 2.0
    return torch.cat((corner, corner + size), -1)


def test_published_case_of_detectron2():
    """detectron2 tests/modeling/test_matcher.py: overlaps of 3 gts and 4 anchors."""
    iou = torch.tensor([[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]])
    matched, labels = reference.match_overlaps(
        iou.T[None], torch.ones(1, 3).bool(), 0.3, 0.7, allow_low_quality=True
    )
    assert matched.tolist() == [[1, 1, 2, 0]]
    assert labels.tolist() == [[IGNORED, POSITIVE, NEGATIVE, POSITIVE]]


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("tile_pairs", [matching.TILE_PAIRS, 500])
@pytest.mark.parametrize("tile_gts", [matching.TILE_GTS, 4])
def test_equals_torchvision(low_quality, tile_pairs, tile_gts, monkeypatch):
    monkeypatch.setattr(matching, "TILE_PAIRS", tile_pairs)
    monkeypatch.setattr(matching, "TILE_GTS", tile_gts)
    anchors, gt_boxes = random_boxes(3000, seed=1), random_boxes(2, 9, seed=2)
    valid = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    matched, labels = match_boxes(anchors, gt_boxes, valid, 0.3, 0.6, low_quality)
    reference = Matcher(0.6, 0.3, low_quality)
    for image, count in enumerate((9, 4)):
        iou = torchvision.ops.box_iou(gt_boxes[image, :count], anchors)
        expected = reference(iou)
        assert torch.equal(labels[image] == POSITIVE, expected >= 0)
        assert torch.equal(labels[image] == NEGATIVE, expected == Matcher.BELOW_LOW_THRESHOLD)
        assert torch.equal(labels[image] == IGNORED, expected == Matcher.BETWEEN_THRESHOLDS)
        assert torch.equal(matched[image], iou.max(0).indices)
        assert (labels[image] == POSITIVE).sum() >= count


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize(("tile_pairs", "tile_gts"), [(1 << 17, 128), (300, 7)])
def test_equals_the_definition(low_quality, tile_pairs, tile_gts, monkeypatch):
    """Bit for bit, with ties, gts that nothing touches, and empty slots between."""
    monkeypatch.setattr(matching, "TILE_PAIRS", tile_pairs)
    monkeypatch.setattr(matching, "TILE_GTS", tile_gts)
    anchors, gt_boxes = random_boxes(2, 700, seed=8).round(), random_boxes(2, 30, seed=9).round()
    gt_boxes[:, 10:20] = gt_boxes[:, :10]
    gt_boxes[:, 28] += 1000.0
    valid = torch.rand(2, 30, generator=torch.Generator().manual_seed(10)) < 0.7
    for boxes in (anchors, anchors[0]):
        arguments = boxes, gt_boxes, valid, 0.3, 0.7, low_quality
        matched, labels = match_boxes(*arguments)
        expected_matched, expected_labels = reference.match_boxes(*arguments)
        assert torch.equal(matched, expected_matched)
        assert torch.equal(labels, expected_labels)
        assert set(labels.unique().tolist()) == {POSITIVE, NEGATIVE, IGNORED}


@pytest.mark.parametrize("match", [match_boxes, reference.match_boxes])
def test_of_equal_gts_the_first_is_matched(match):
    gt = torch.tensor([[[50.0, 50, 60, 60], [0, 0, 4, 4], [0, 0, 4, 4], [50, 50, 60, 60]]])
    anchors = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [50, 50, 60, 61], [200, 200, 201, 201]])
    valid = torch.tensor([[False, True, True, True]])
    assert match(anchors, gt, valid, 0.3, 0.7)[0].tolist() == [[1, 1, 3, 1]]


@pytest.mark.parametrize("match", [match_boxes, reference.match_boxes])
def test_boxes_that_are_not_finite_or_empty_overlap_nothing(match):
    nan, inf = torch.nan, torch.inf
    strange = torch.tensor(
        [
            *([nan, 0, 9, 9], [0, nan, 9, 9], [0, 0, nan, 9], [0, 0, 9, nan], [nan] * 4),
            *([0, 0, inf, inf], [-inf, -inf, inf, inf], [inf, 0, inf, 9], [0, 0, 3e38, 3e38]),
            *([4, 4, 4, 4], [9, 9, 0, 0], [-0.0, -0.0, 0.0, 9]),
        ]
    )
    good = torch.tensor([[0.0, 0, 9, 9]])
    count = len(strange)
    anchors = torch.cat((strange, good))
    gt = torch.cat((strange, good))[None]
    matched, labels = match(anchors, gt, torch.ones(1, count + 1).bool(), 0.3, 0.7, True)
    assert matched.tolist() == [[0] * count + [count]]
    assert labels.tolist() == [[NEGATIVE] * count + [POSITIVE]]


def test_peak_of_memory_is_bounded():
    """Beside the 5 MiB of results for an image. The matrices have 102 MiB and 305 MiB."""
    for num_anchors, num_gts in ((268_000, 100), (40_000, 2000)):
        anchors, gt = random_boxes(num_anchors, seed=11), random_boxes(1, num_gts, seed=12)
        valid = torch.ones(1, num_gts).bool()
        with torch.profiler.profile(activities=[CPU], profile_memory=True) as profile:
            match_boxes(anchors, gt, valid, 0.3, 0.7, True)
        changes = [x.nbytes() for x in memory_events(profile)]
        peak = max(accumulate(changes))
        assert 4 << 20 < peak < 24 << 20, "a peak below the results' size was not measured"


def memory_events(profile) -> list:
    events = profile.profiler.kineto_results.events()
    return sorted((x for x in events if x.name() == "[memory]"), key=lambda x: x.start_ns())


def test_no_gt_slots_and_no_anchors():
    anchors = random_boxes(5, seed=13)
    matched, labels = match_boxes(
        anchors, torch.zeros(2, 0, 4), torch.zeros(2, 0).bool(), 0.3, 0.7, True
    )
    assert matched.tolist() == labels.tolist() == [[0] * 5] * 2
    matched, labels = match_boxes(
        anchors[:0], torch.ones(2, 3, 4), torch.ones(2, 3).bool(), 0.3, 0.7, True
    )
    assert matched.shape == labels.shape == (2, 0)


def test_wrong_arguments_are_named():
    anchors, gt, valid = random_boxes(5), random_boxes(2, 3), torch.ones(2, 3).bool()
    for arguments, message in (
        ((anchors[:, :3], gt, valid, 0.3, 0.7), r"anchors \(5, 3\)"),
        ((anchors[None], gt, valid, 0.3, 0.7), r"anchors \(1, 5, 4\) must be \(A, 4\) or \(2"),
        ((anchors, gt[0], valid, 0.3, 0.7), r"gt_boxes \(3, 4\)"),
        ((anchors, gt, valid[:1], 0.3, 0.7), r"gt_valid \(1, 3\)"),
        ((anchors, gt, valid.long(), 0.3, 0.7), "gt_valid .* torch.int64"),
        ((anchors, gt, valid, 0.7, 0.3), "low=0.7"),
    ):
        with pytest.raises(ValueError, match=message):
            match_boxes(*arguments)


def test_thresholds_are_inclusive_above_and_exclusive_below():
    """IoUs of exactly 0.5 and 0.25: from ``high`` on positive, from ``low`` on not negative."""
    gt = torch.tensor([[[0.0, 0, 4, 4]]])
    anchors = torch.tensor([[0.0, 0, 4, 2], [0, 0, 2, 2], [0, 0, 4, 0.5]])
    _, labels = match_boxes(anchors, gt, torch.ones(1, 1).bool(), 0.25, 0.5)
    assert labels.tolist() == [[POSITIVE, IGNORED, NEGATIVE]]


def test_low_quality_rule_claims_all_ties_and_nothing_for_untouched_gts():
    gt = torch.tensor([[[0.0, 0, 10, 10], [500, 500, 510, 510]]])
    anchors = torch.tensor([[0.0, 0, 5, 4], [5, 6, 10, 10], [0, 0, 3, 3], [200, 200, 210, 210]])
    matched, labels = match_boxes(anchors, gt, torch.ones(1, 2).bool(), 0.3, 0.7, True)
    assert labels.tolist() == [[POSITIVE, POSITIVE, NEGATIVE, NEGATIVE]]
    assert matched[0, :2].tolist() == [0, 0]


def test_empty_gt_slots_change_nothing_wherever_they_stand():
    anchors, gt = random_boxes(2, 120, seed=3), random_boxes(2, 5, seed=4)
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    matched, labels = match_boxes(anchors, gt, valid, 0.3, 0.7, True)
    # Garbage in slots that are not valid, large enough to overlap everything.
    garbage = torch.tensor([0.0, 0, 200, 200]).expand(2, 3, 4)
    padded = torch.cat((garbage, gt), 1)
    padded_valid = torch.cat((torch.zeros(2, 3).bool(), valid), 1)
    matched_padded, labels_padded = match_boxes(anchors, padded, padded_valid, 0.3, 0.7, True)
    assert torch.equal(labels, labels_padded)
    assert torch.equal(matched[labels == POSITIVE] + 3, matched_padded[labels == POSITIVE])


def test_without_objects_all_anchors_are_background():
    anchors = random_boxes(50, seed=5)
    matched, labels = match_boxes(
        anchors, torch.zeros(2, 8, 4), torch.zeros(2, 8).bool(), 0.3, 0.7, True
    )
    assert labels.eq(NEGATIVE).all()
    assert ((matched >= 0) & (matched < 8)).all()


def test_compiles_as_one_graph():
    anchors, gt = random_boxes(60, seed=6), random_boxes(2, 4, seed=7)
    valid = torch.tensor([[True] * 4, [True, False, False, False]])
    compiled = torch.compile(match_boxes, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(anchors, gt, valid, 0.3, 0.7, True),
        match_boxes(anchors, gt, valid, 0.3, 0.7, True),
    )


def test_custom_op_is_registered_right():
    anchors, gt = random_boxes(40, seed=14), random_boxes(2, 4, seed=15)
    valid = torch.tensor([[True] * 4, [False] * 4])
    for boxes in (anchors, anchors.expand(2, -1, -1)):
        torch.library.opcheck(
            torch.ops.detector.match_boxes.default, (boxes, gt, valid, 0.3, 0.7, True)
        )
