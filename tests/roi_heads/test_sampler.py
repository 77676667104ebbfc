"""Labels and choice of RoIs."""

import pytest
import torch

from detector.roi_heads.sampler import RoISampler
from detector.structures import Proposals, Targets

BACKGROUND = 5
GT = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 0, 0]]] * 2)
TARGETS = Targets(
    boxes=GT,
    labels=torch.tensor([[3, 1, 0], [2, 0, 0]]),
    valid=torch.tensor([[True, True, False], [True, False, False]]),
)


def make_proposals() -> Proposals:
    """IoUs with the first gt: 1/2 (inclusive), just below, none; with the second: .9; empty."""
    boxes = torch.tensor(
        [[0.0, 0, 10, 5], [0, 0, 10, 4.99], [50, 50, 60, 60], [20, 20, 40, 38], [0, 0, 0, 0]]
    ).repeat(2, 1, 1)
    valid = torch.tensor([[True] * 4 + [False]] * 2)
    return Proposals(boxes, torch.zeros(2, 5), valid)


def drawn(rois, image: int) -> set[tuple]:
    rows = rois.valid[image]
    return {
        (*box, label)
        for box, label in zip(
            rois.boxes[image, rows].tolist(), rois.labels[image, rows].tolist(), strict=True
        )
    }


def test_labels_by_hand():
    rois = RoISampler(BACKGROUND, 40, 0.25, append_gt=False)(make_proposals(), TARGETS)
    near, far = torch.tensor(4.99).item(), (50.0, 50.0, 60.0, 60.0)
    assert drawn(rois, 0) == {
        (0, 0, 10, 5, 3),
        (0, 0, 10, near, BACKGROUND),
        (*far, BACKGROUND),
        (20, 20, 40, 38, 1),
    }
    # The second image has the first gt only.
    assert drawn(rois, 1) == {
        (0, 0, 10, 5, 2),
        (0, 0, 10, near, BACKGROUND),
        (*far, BACKGROUND),
        (20, 20, 40, 38, BACKGROUND),
    }
    assert rois.num_foreground == 10
    assert rois.foreground.sum(1).tolist() == [2, 1]
    assert torch.equal(rois.foreground, rois.valid & (rois.labels != BACKGROUND))
    assert rois.boxes[~rois.valid].eq(0).all()
    assert rois.labels[~rois.valid].eq(BACKGROUND).all()


def test_gts_are_appended_with_their_own_labels():
    rois = RoISampler(BACKGROUND, 40, 0.5)(make_proposals(), TARGETS)
    assert {(0, 0, 10, 10, 3), (20, 20, 40, 40, 1)} <= drawn(rois, 0)
    assert (0, 0, 10, 10, 2) in drawn(rois, 1)
    assert rois.foreground.sum(1).tolist() == [4, 2]
    assert rois.valid.sum(1).tolist() == [6, 5]
    for image in range(2):
        rows = rois.foreground[image]
        matched = rois.matched_gt[image, rows]
        assert torch.equal(TARGETS.labels[image, matched], rois.labels[image, rows])
        assert TARGETS.valid[image, matched].all()


def test_foreground_stands_first_within_its_bound():
    generator = torch.Generator().manual_seed(0)
    shift = torch.rand(2, 300, 1, generator=generator) * 12
    boxes = torch.tensor([0.0, 0, 10, 10]) + shift
    proposals = Proposals(boxes, torch.zeros(2, 300), torch.ones(2, 300).bool())
    rois = RoISampler(BACKGROUND, 64, 0.25)(proposals, TARGETS)
    assert rois.num_foreground == 16
    assert rois.foreground.sum(1).tolist() == [16, 16]
    assert rois.foreground[:, :16].all()
    assert rois.valid.all()


def test_image_without_objects_gives_background():
    targets = Targets(GT * 0, torch.zeros(2, 3).long(), torch.zeros(2, 3).bool())
    rois = RoISampler(BACKGROUND, 8)(make_proposals(), targets)
    assert rois.valid.sum(1).tolist() == [4, 4]
    assert not rois.foreground.any()
    assert rois.labels.eq(BACKGROUND).all()


def test_no_proposal_at_all_leaves_the_gts():
    proposals = Proposals(torch.zeros(2, 1, 4), torch.zeros(2, 1), torch.zeros(2, 1).bool())
    rois = RoISampler(BACKGROUND, 8)(proposals, TARGETS)
    assert drawn(rois, 0) == {(0, 0, 10, 10, 3), (20, 20, 40, 40, 1)}
    assert drawn(rois, 1) == {(0, 0, 10, 10, 2)}


def test_background_iou_leaves_easy_background_out():
    """Fast R-CNN, section 2.3: background has IoUs in [0.1, 0.5)."""
    boxes = torch.tensor(
        [[0.0, 0, 10, 5], [0, 0, 10, 4.99], [0, 0, 10, 1], [0, 0, 10, 0.99], [50, 50, 60, 60]]
    ).repeat(2, 1, 1)
    proposals = Proposals(boxes, torch.zeros(2, 5), torch.ones(2, 5).bool())
    sampler = RoISampler(BACKGROUND, 40, 0.25, append_gt=False, background_iou=0.1)
    near = torch.tensor(4.99).item()
    assert drawn(sampler(proposals, TARGETS), 0) == {
        (0, 0, 10, 5, 3),
        (0, 0, 10, near, BACKGROUND),
        (0, 0, 10, 1, BACKGROUND),
    }
    nothing = Targets(GT * 0, torch.zeros(2, 3).long(), torch.zeros(2, 3).bool())
    assert not sampler(proposals, nothing).valid.any()


@pytest.mark.parametrize("background_iou", [-0.1, 0.5])
def test_impossible_background_is_refused(background_iou):
    with pytest.raises(ValueError, match=f"roi_sampler.background_iou={background_iou}"):
        RoISampler(BACKGROUND, 40, background_iou=background_iou)
