"""The RPN's losses, and what it proposes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou, generalized_box_iou_loss

from detector.ops.boxes import encode_boxes
from detector.rpn.anchors import AnchorGenerator, legacy_base_anchors
from detector.rpn.head import RPNHead
from detector.rpn.proposals import ProposalLayer
from detector.rpn.rpn import RPN
from detector.structures import Targets

SIZES = torch.tensor([[64, 96], [64, 96]])


def make_rpn(**settings) -> RPN:
    settings = {"num_samples": 100_000, "positive_fraction": 0.5} | settings
    anchors = AnchorGenerator([[16], [32]], [0.5, 1.0, 2.0], [8, 16])
    return RPN(anchors, RPNHead(8, 3), ProposalLayer(), ProposalLayer(), **settings)


def make_targets(boxes: list[list[list[float]]], slots: int = 8) -> Targets:
    tensor, valid = torch.zeros(len(boxes), slots, 4), torch.zeros(len(boxes), slots).bool()
    for image, rows in enumerate(boxes):
        if rows:
            tensor[image, : len(rows)] = torch.tensor(rows)
        valid[image, : len(rows)] = True
    return Targets(tensor, torch.zeros(len(boxes), slots).long(), valid)


TARGETS = make_targets([[[3, 5, 30, 40], [50, 20, 64, 38]], [[20, 20, 75, 60]]])


def make_predictions(rpn: RPN, requires_grad: bool = False):
    features = [torch.zeros(2, 8, 8, 12), torch.zeros(2, 8, 4, 6)]
    anchors = torch.cat(rpn.anchors(features))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, len(anchors), generator=generator)
    deltas = torch.randn(2, len(anchors), 4, generator=generator) * 0.3
    return anchors, logits.requires_grad_(requires_grad), deltas.requires_grad_(requires_grad)


def test_losses_are_equation_1_over_all_anchors():
    """With more samples than anchors everything is drawn but what lies between the thresholds."""
    rpn = make_rpn(smooth_l1_beta=1 / 9, box_weight=2.0)
    anchors, logits, deltas = make_predictions(rpn)
    losses = rpn.losses(anchors, logits, deltas, SIZES, TARGETS)
    classification = box = count = 0.0
    for image in range(2):
        gt = TARGETS.boxes[image, TARGETS.valid[image]]
        matches = Matcher(0.7, 0.3, True)(box_iou(gt, anchors))
        positive, drawn = matches >= 0, matches != Matcher.BETWEEN_THRESHOLDS
        assert positive.any()
        count += int(drawn.sum())
        classification += F.binary_cross_entropy_with_logits(
            logits[image, drawn], positive[drawn].float(), reduction="sum"
        )
        goal = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(
            gt[matches[positive]], anchors[positive]
        )
        box += F.smooth_l1_loss(deltas[image, positive], goal, beta=1 / 9, reduction="sum")
    torch.testing.assert_close(losses["loss_objectness"], classification / count)
    torch.testing.assert_close(losses["loss_rpn_box"], 2.0 * box / count)


def test_permuting_or_padding_gts_changes_nothing():
    rpn = make_rpn()
    anchors, logits, deltas = make_predictions(rpn)
    expected = rpn.losses(anchors, logits, deltas, SIZES, TARGETS)
    order = torch.tensor([5, 1, 7, 0, 2, 3, 4, 6])
    permuted = Targets(TARGETS.boxes[:, order], TARGETS.labels, TARGETS.valid[:, order])
    padded = make_targets([[[3, 5, 30, 40], [50, 20, 64, 38]], [[20, 20, 75, 60]]], slots=64)
    for targets in (permuted, padded):
        losses = rpn.losses(anchors, logits, deltas, SIZES, targets)
        torch.testing.assert_close(losses, expected)


def test_anchors_in_the_buckets_padding_change_nothing():
    rpn = make_rpn()
    anchors, logits, deltas = make_predictions(rpn)
    expected = rpn.losses(anchors, logits, deltas, SIZES, TARGETS)
    right, below = torch.tensor([96.0, 10, 130, 30]), torch.tensor([10.0, 64, 30, 200])
    padded = torch.cat((anchors, right.expand(50, 4), below.expand(50, 4)))
    losses = rpn.losses(
        padded,
        torch.cat((logits, torch.randn(2, 100) * 9), 1),
        torch.cat((deltas, torch.randn(2, 100, 4)), 1),
        SIZES,
        TARGETS,
    )
    torch.testing.assert_close(losses, expected)


def test_images_without_objects_teach_background_only():
    rpn = make_rpn()
    anchors, logits, deltas = make_predictions(rpn, requires_grad=True)
    losses = rpn.losses(anchors, logits, deltas, SIZES, make_targets([[], []]))
    assert losses["loss_rpn_box"] == 0
    torch.testing.assert_close(losses["loss_objectness"], F.softplus(logits).mean())
    sum(losses.values()).backward()
    assert deltas.grad.eq(0).all()
    assert logits.grad.gt(0).all()


def test_gradients_reach_the_sampled_anchors_only():
    rpn = make_rpn(num_samples=16)
    anchors, logits, deltas = make_predictions(rpn, requires_grad=True)
    torch.manual_seed(0)
    sum(rpn.losses(anchors, logits, deltas, SIZES, TARGETS).values()).backward()
    assert (logits.grad != 0).sum(1).tolist() == [16, 16]
    moved = (deltas.grad != 0).any(-1)
    # Positive anchors are pushed up, and only they have boxes.
    assert torch.equal(moved, logits.grad < 0)
    assert moved.sum(1).ge(1).all()
    assert moved.sum(1).le(8).all()


def test_training_and_inference_have_their_own_counts():
    rpn = make_rpn()
    rpn.train_proposals, rpn.test_proposals = ProposalLayer(30, 20), ProposalLayer(15, 7)
    features = [torch.randn(2, 8, 8, 12), torch.randn(2, 8, 4, 6)]
    proposals, losses = rpn(features, SIZES, TARGETS)
    assert proposals.boxes.shape == (2, 20, 4)
    assert set(losses) == {"loss_objectness", "loss_rpn_box"}
    assert rpn.propose(features, SIZES).boxes.shape == (2, 7, 4)


# A map of stride 16 and one anchor per cell; 32 x 40 pixels fill 2 x 3 of its cells, 20 x 16 pixels
# 2 x 1. The anchors are not the generator's, only the count of its cells enters the loss.
HAND_SIZES = torch.tensor([[32, 40], [20, 16]])
HAND_ANCHORS = torch.tensor([[0.0, 0, 10, 10], [2, 2, 12, 14], [0, 0, 30, 2], [6, 13, 12, 16]])


def make_hand_rpn(**settings) -> RPN:
    generator = AnchorGenerator([[16]], [1.0], [16])
    settings = {"smooth_l1_beta": 1 / 9, "num_samples": 256, "box_weight": 10.0} | settings
    return RPN(generator, RPNHead(8, 1), ProposalLayer(), ProposalLayer(), **settings)


def hand_case():
    """The first gt is the first anchor, the second image has none.

    IoUs with it: 1; 64 / (100 + 120 - 64) = .41, which is between the thresholds; 20 / (100 + 60 -
    20) = .14; 0. So one anchor is foreground and two are background; in the second image all four.
    """
    targets = make_targets([[[0, 0, 10, 10]], []])
    logits = torch.tensor([[2.0, 9, -1, 0], [0, 0, 0, math.log(3)]])
    deltas = torch.zeros(2, 4, 4)
    deltas[0, 0] = torch.tensor([0.1, 0, 0, -0.5])
    deltas[:, 1:] = 7.0
    return logits, deltas, targets


# ln(1 + e^-2), ln(1 + e^-1), ln 2; in the second image three times ln 2, and ln(1 + 3).
HAND_FIRST = 0.126928 + 0.313262 + 0.693147
HAND_SECOND = 3 * 0.693147 + 1.386294
# Quadratic: 0.5 * 9 * 0.1^2; linear: 0.5 - 1/18.
HAND_BOX = 0.045 + 0.444444


def test_equation_1_of_the_paper_by_hand():
    """N_cls is 256 whatever was drawn, N_reg the 6 or 2 cells, lambda 10; mean of two images."""
    losses = make_hand_rpn(normalization="paper").losses(HAND_ANCHORS, *hand_case_arguments())
    assert losses["loss_objectness"].item() == pytest.approx(
        (HAND_FIRST / 256 + HAND_SECOND / 256) / 2, rel=1e-5
    )
    assert losses["loss_rpn_box"].item() == pytest.approx(10 * (HAND_BOX / 6 + 0) / 2, rel=1e-5)


def hand_case_arguments():
    logits, deltas, targets = hand_case()
    return logits, deltas, HAND_SIZES, targets


@pytest.mark.parametrize(("normalization", "divisor"), [("sampled", 7), ("foreground", 1)])
def test_the_other_divisors_by_hand(normalization, divisor):
    """Three and four anchors are drawn, one of them foreground."""
    rpn = make_hand_rpn(normalization=normalization)
    losses = rpn.losses(HAND_ANCHORS, *hand_case_arguments())
    assert losses["loss_objectness"].item() == pytest.approx(
        (HAND_FIRST + HAND_SECOND) / 7, rel=1e-5
    )
    assert losses["loss_rpn_box"].item() == pytest.approx(10 * HAND_BOX / divisor, rel=1e-5)


@pytest.mark.parametrize("normalization", ["sampled", "foreground", "paper"])
def test_nothing_to_draw_costs_nothing(normalization):
    """Every anchor crosses the border."""
    rpn = make_hand_rpn(normalization=normalization, border=0)
    logits, deltas, sizes, targets = hand_case_arguments()
    losses = rpn.losses(HAND_ANCHORS - 50, logits, deltas, sizes, targets)
    assert [value.item() for value in losses.values()] == [0, 0]


def test_an_overlap_loss_compares_decoded_boxes():
    losses = make_hand_rpn(box_loss="giou").losses(HAND_ANCHORS, *hand_case_arguments())
    half = 5 * math.exp(-0.5)
    box = torch.tensor([[1.0, 5 - half, 11, 5 + half]])  # moved by 0.1 * 10, lowered by e^-0.5
    expected = 10 * generalized_box_iou_loss(box, HAND_ANCHORS[:1]) / 7
    torch.testing.assert_close(losses["loss_rpn_box"], expected[0])


def test_inside_weights_reach_the_loss():
    rpn = make_hand_rpn(inside_weights=[2.0, 1, 1, 0.1])
    losses = rpn.losses(HAND_ANCHORS, *hand_case_arguments())
    # 0.2 is beyond 1/9, 0.05 before it.
    expected = 10 * (0.2 - 1 / 18 + 0.5 * 9 * 0.05**2) / 7
    assert losses["loss_rpn_box"].item() == pytest.approx(expected, rel=1e-5)


def drawn(rpn: RPN, anchors: torch.Tensor, sizes: torch.Tensor, targets: Targets):
    """Signs of the logits' gradients: 1 foreground, -1 background, 0 left out."""
    logits = torch.zeros(len(sizes), len(anchors), requires_grad=True)
    deltas = torch.zeros(len(sizes), len(anchors), 4)
    rpn.losses(anchors, logits, deltas, sizes, targets)["loss_objectness"].backward()
    return (-logits.grad.sign()).int().tolist()


def test_anchors_that_cross_the_border_are_left_out():
    """By more than ``border`` pixels; at the border itself they are inside."""
    anchors = torch.tensor(
        [
            [0.0, 0, 10, 10],  # inside, the gt of the first image
            [30, 20, 40, 32],  # touches the right and lower border of the first image
            [-1, 5, 9, 15],
            [5, -1, 15, 9],
            [31, 5, 41, 15],
            [5, 23, 15, 33],
            [40, 32, 50, 42],  # wholly in the padding
        ]
    )
    targets = make_targets([[[0, 0, 10, 10]], []])
    sizes = torch.tensor([[32, 40], [64, 64]])
    everywhere = drawn(make_hand_rpn(), anchors, sizes, targets)
    assert everywhere == [[1, -1, -1, -1, -1, -1, 0], [-1] * 7]
    inside = drawn(make_hand_rpn(border=0), anchors, sizes, targets)
    assert inside == [[1, -1, 0, 0, 0, 0, 0], [-1, -1, 0, 0, -1, -1, -1]]
    assert drawn(make_hand_rpn(border=1), anchors, sizes, targets) == everywhere


def test_a_gt_claims_its_best_anchor_among_those_inside():
    """Where the best of all crosses the border."""
    anchors = torch.tensor([[-2.0, 0, 10, 10], [0, 0, 20, 10], [20, 20, 30, 30]])
    targets = make_targets([[[0, 0, 8, 10]]])
    sizes = torch.tensor([[32, 40]])
    assert drawn(make_hand_rpn(), anchors, sizes, targets) == [[1, 0, -1]]
    assert drawn(make_hand_rpn(border=0), anchors, sizes, targets) == [[0, 1, -1]]


def test_legacy_anchors_give_the_targets_and_overlaps_of_the_2015_code():
    """There gts and anchors are inclusive pixels and every width counts one more."""
    rpn = RPN(
        AnchorGenerator([[128, 256, 512]], [0.5, 1, 2], [16], legacy=True),
        RPNHead(8, 9, conv_channels=16, objectness="softmax"),
        ProposalLayer(),
        ProposalLayer(),
        box_weight=1.0,
        num_samples=10**6,
        positive_fraction=1.0,
        border=0,
    )
    height, width = 400, 608
    (anchors,) = rpn.anchors([torch.zeros(1, 8, height // 16, width // 16)])
    inclusive_gt = torch.tensor([[37.0, 52, 251, 190], [300, 100, 420, 329]])
    targets = make_targets([(inclusive_gt + torch.tensor([0, 0, 1, 1])).tolist()])

    y, x = torch.meshgrid(torch.arange(25) * 16, torch.arange(38) * 16, indexing="ij")
    shift = torch.stack((x, y, x, y), -1).reshape(-1, 1, 4)
    theirs = (legacy_base_anchors([128, 256, 512], [0.5, 1, 2], 16) + shift).reshape(-1, 4)
    corner = torch.minimum(theirs[:, None, 2:], inclusive_gt[:, 2:])
    overlap = corner - torch.maximum(theirs[:, None, :2], inclusive_gt[:, :2]) + 1
    overlap = overlap.clamp(min=0).prod(-1)
    area, gt_area = ((b[:, 2:] - b[:, :2] + 1).prod(-1) for b in (theirs, inclusive_gt))
    iou = overlap / (area[:, None] + gt_area - overlap)
    inside = (theirs[:, :2] >= 0).all(-1) & (theirs[:, 2] < width) & (theirs[:, 3] < height)
    iou[~inside] = -1
    best, matched = iou.max(1)
    positive = inside & ((best >= 0.7) | (iou == iou.amax(0)).any(1))
    negative = inside & (best < 0.3) & ~positive
    assert positive.sum() > 1
    assert negative.sum() > 100

    goal = encode_boxes(inclusive_gt[matched], theirs, legacy=True)  # + 1 in every width
    goal = goal[positive]
    logits = torch.zeros(1, len(anchors), requires_grad=True)
    deltas = torch.full((1, len(anchors), 4), 0.25)
    sizes = torch.tensor([[height, width]])
    losses = rpn.losses(anchors, logits, deltas, sizes, targets)
    count = positive.sum() + negative.sum()
    torch.testing.assert_close(losses["loss_rpn_box"], (0.25 - goal).abs().sum() / count)
    losses["loss_objectness"].backward()
    assert torch.equal(logits.grad[0] < 0, positive)
    assert torch.equal(logits.grad[0] > 0, negative)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalization": "none"}, "rpn.normalization=none is not known"),
        ({"border": -1}, "rpn.border=-1"),
        ({"box_loss": "l2"}, "rpn.box_loss=l2"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_rpn(**settings)
