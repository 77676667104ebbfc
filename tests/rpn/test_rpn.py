"""The RPN's head and losses."""

import torch
import torch.nn.functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.rpn import RPNHead as TorchvisionHead
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import box_iou

from detector.rpn.anchors import AnchorGenerator
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


def test_head_equals_torchvisions_with_the_same_weights():
    theirs = TorchvisionHead(8, 3)
    ours = RPNHead(8, 3)
    names = {"conv.0.0": "convs.0.0", "cls_logits": "objectness", "bbox_pred": "deltas"}
    state = {}
    for name, value in theirs.state_dict().items():
        module, kind = name.rsplit(".", 1)
        state[f"{names[module]}.{kind}"] = torch.randn_like(value) * 0.1
    ours.load_state_dict(state)
    theirs.load_state_dict(
        {
            k: state[f"{names[k.rsplit('.', 1)[0]]}.{k.rsplit('.', 1)[1]}"]
            for k in theirs.state_dict()
        }
    )
    features = [torch.randn(2, 8, 8, 12), torch.randn(2, 8, 4, 6)]
    logits, deltas = ours(features)
    expected_logits, expected_deltas = concat_box_prediction_layers(*theirs(features))
    torch.testing.assert_close(torch.cat(logits, 1).flatten(), expected_logits.flatten())
    torch.testing.assert_close(torch.cat(deltas, 1).flatten(0, 1), expected_deltas)


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
