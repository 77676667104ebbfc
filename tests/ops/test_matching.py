"""Assignment of ground truth against torchvision's matcher and published values."""

import pytest
import torch
import torchvision
from torchvision.models.detection._utils import Matcher

from detector.ops import matching
from detector.ops.matching import IGNORED, NEGATIVE, POSITIVE, match_boxes


def random_boxes(*shape: int, extent: float = 100.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * extent
    size = torch.rand(*shape, 2, generator=generator) * extent * 0.6 + 2.0
    return torch.cat((corner, corner + size), -1)


def test_published_case_of_detectron2(monkeypatch):
    """detectron2 tests/modeling/test_matcher.py: overlaps of 3 gts and 4 anchors."""
    iou = torch.tensor([[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]])
    monkeypatch.setattr(matching, "box_iou", lambda anchors, gt_boxes: iou.T[None])
    matched, labels = match_boxes(
        torch.zeros(4, 4), torch.zeros(1, 3, 4), torch.ones(1, 3).bool(), 0.3, 0.7, True
    )
    assert matched.tolist() == [[1, 1, 2, 0]]
    assert labels.tolist() == [[IGNORED, POSITIVE, NEGATIVE, POSITIVE]]


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("chunk", [16384, 100])
def test_equals_torchvision(low_quality, chunk, monkeypatch):
    monkeypatch.setattr(matching, "CHUNK", chunk)
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
