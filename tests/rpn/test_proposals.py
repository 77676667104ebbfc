"""The proposal layer, step by step and against torchvision's."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.rpn import RegionProposalNetwork

from detector.rpn.proposals import ProposalLayer

SIZES = torch.tensor([[60, 90], [40, 50]])


def level(count: int, images: int = 2, seed: int = 0):
    """Anchors over and beyond the image, logits and deltas of one level."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(count, 2, generator=generator) * 110 - 10
    half = torch.rand(count, 2, generator=generator) * 15 + 1
    logits = torch.randn(images, count, generator=generator)
    deltas = torch.randn(images, count, 4, generator=generator) * 0.3
    return torch.cat((center - half, center + half), 1), logits, deltas


def levels(*counts: int, images: int = 2):
    each = [level(count, images, seed) for seed, count in enumerate(counts)]
    return [list(column) for column in zip(*each, strict=True)]


@pytest.mark.parametrize(("pre", "post"), [(1000, 1000), (40, 1000), (40, 25)])
def test_equals_torchvision(pre, post):
    anchors, logits, deltas = levels(150, 60, 20)
    proposals = ProposalLayer(pre, post, 0.7)(anchors, logits, deltas, SIZES)
    counts = {"training": pre, "testing": pre}
    finals = {"training": post, "testing": post}
    reference = RegionProposalNetwork(
        TorchvisionAnchors(), torch.nn.Identity(), 0.7, 0.3, 256, 0.5, counts, finals, 0.7
    )
    decoded = reference.box_coder.decode(
        torch.cat(deltas, 1).flatten(0, 1), [torch.cat(anchors)] * 2
    )
    boxes, scores = reference.filter_proposals(
        decoded.view(2, -1, 4),
        torch.cat(logits, 1).view(-1, 1),
        [tuple(size) for size in SIZES.tolist()],
        [len(x) for x in anchors],
    )
    for image in range(2):
        valid = proposals.valid[image]
        assert valid.sum() == len(boxes[image]) > 15
        torch.testing.assert_close(proposals.boxes[image, valid], boxes[image])
        torch.testing.assert_close(proposals.scores[image, valid].sigmoid(), scores[image])


def test_slots_are_filled_first_sorted_inside_the_image_and_zero_otherwise():
    anchors, logits, deltas = levels(150, 60)
    proposals = ProposalLayer(100, 500, 0.5)(anchors, logits, deltas, SIZES)
    assert proposals.boxes.shape == (2, 160, 4), "P is bounded by what enters"
    for image, (height, width) in enumerate(SIZES.tolist()):
        count = int(proposals.valid[image].sum())
        assert 10 < count < 160
        assert proposals.valid[image, :count].all()
        assert proposals.scores[image, :count].diff().le(0).all()
        boxes = proposals.boxes[image, :count]
        assert boxes.ge(0).all()
        assert boxes[:, [0, 2]].le(width).all()
        assert boxes[:, [1, 3]].le(height).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert proposals.boxes[image, count:].eq(0).all()
        assert proposals.scores[image, count:].eq(0).all()


def test_top_k_counts_each_level_and_each_image_by_itself():
    anchors, logits, deltas = levels(50, 50)
    logits[0] += 100  # the fine level scores higher everywhere
    both = ProposalLayer(10, 1000, 1.0)(anchors, logits, deltas, SIZES)
    assert (both.scores > 50).sum(1).max() <= 10
    assert ((both.scores < 50) & both.valid).any(1).all()
    for image in range(2):
        alone = ProposalLayer(10, 1000, 1.0)(
            anchors, [x[image : image + 1] for x in logits], [x[image : image + 1] for x in deltas],
            SIZES[image : image + 1],
        )  # fmt: skip
        assert torch.equal(alone.boxes[0], both.boxes[image])


def test_levels_do_not_suppress_each_other():
    anchor = torch.tensor([[10.0, 10, 30, 30]])
    zeros = torch.zeros(1, 1, 4)
    logits = [torch.tensor([[2.0]]), torch.tensor([[1.0]])]
    proposals = ProposalLayer()([anchor, anchor], logits, [zeros, zeros], SIZES[:1])
    assert proposals.valid.all()


def test_tiny_boxes_go():
    anchors = torch.tensor([[10.0, 10, 30, 30], [10, 10, 13, 30], [95, 70, 99, 75]])
    arguments = [anchors], [torch.tensor([[3.0, 2, 1]])], [torch.zeros(1, 3, 4)], SIZES[:1]
    assert ProposalLayer(nms_threshold=1.0)(*arguments).valid.tolist() == [[True, True, False]]
    large = ProposalLayer(nms_threshold=1.0, min_size=3.0)(*arguments)
    assert large.valid.tolist() == [[True, False, False]]


def test_numbers_of_a_diverged_network_are_dropped():
    anchors, logits, deltas = level(6, images=1)
    anchors = torch.tensor([10.0, 10, 30, 30]) + torch.arange(6.0)[:, None] * 3
    deltas = torch.zeros(1, 6, 4)
    logits[0, 0], logits[0, 1], logits[0, 2] = torch.nan, torch.inf, -torch.inf
    deltas[0, 3] = torch.nan
    proposals = ProposalLayer(nms_threshold=1.0)([anchors], [logits], [deltas], SIZES[:1])
    assert proposals.valid.sum() == 2
    assert proposals.boxes.isfinite().all()
    assert proposals.scores.isfinite().all()


def test_no_gradient_flows():
    anchors, logits, deltas = levels(20)
    logits[0].requires_grad_(), deltas[0].requires_grad_()
    proposals = ProposalLayer()(anchors, logits, deltas, SIZES)
    assert not proposals.boxes.requires_grad
    assert not proposals.scores.requires_grad


@pytest.mark.parametrize(
    ("key", "value"),
    [("pre_nms_top_n", 0), ("post_nms_top_n", -5), ("nms_threshold", 70), ("nms_threshold", -0.1)],
)
def test_impossible_numbers_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key}={value} must"):
        ProposalLayer(**{key: value})
