"""The box branch: losses against torchvision's formula, class choice, empty slots."""

import pytest
import torch
from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

from detector.ops.slots import keep_empty_slots
from detector.roi_heads.box import BoxBranch, BoxPredictor, TwoFCHead
from detector.roi_heads.detections import DetectionLayer
from detector.roi_heads.pooler import RoIPooler
from detector.structures import Proposals, SampledRoIs, Targets

K = 4


def make_branch(class_agnostic: bool = False, **settings) -> BoxBranch:
    torch.manual_seed(0)
    branch = BoxBranch(
        K,
        RoIPooler(3, (4,)),
        TwoFCHead(2, 3, 16),
        BoxPredictor(16, K, class_agnostic),
        DetectionLayer(score_threshold=0.0, nms_threshold=0.9, max_detections=50),
        **settings,
    )
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.3)
    return branch


def make_case() -> tuple[list[torch.Tensor], SampledRoIs, Targets]:
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(2, 2, 16, 16, generator=generator)]
    corner = torch.rand(2, 10, 2, generator=generator) * 30
    boxes = torch.cat((corner, corner + 4 + torch.rand(2, 10, 2, generator=generator) * 25), 2)
    valid = torch.tensor([[True] * 10, [True] * 6 + [False] * 4])
    labels = torch.tensor([[0, 3, 1] + [K] * 7, [2] + [K] * 9])
    gt_boxes = torch.tensor([[[2.0, 3, 25, 30], [20, 20, 50, 44]], [[5, 6, 30, 28], [0, 0, 0, 0]]])
    targets = Targets(
        gt_boxes, torch.zeros(2, 2).long(), torch.tensor([[True, True], [True, False]])
    )
    rois = SampledRoIs(
        boxes=boxes * valid[..., None],
        labels=labels,
        matched_gt=torch.tensor([[0, 1, 1] + [0] * 7, [0] * 10]),
        valid=valid,
        foreground=labels < K,
        num_foreground=4,
    )
    return features, rois, targets


def test_head_and_predictor_equal_torchvisions():
    branch = make_branch()
    reference = TwoMLPHead(2 * 9, 16)
    reference.fc6.load_state_dict(branch.head.fc1.state_dict())
    reference.fc7.load_state_dict(branch.head.fc2.state_dict())
    pooled = torch.randn(5, 2, 3, 3)
    torch.testing.assert_close(branch.head(pooled), reference(pooled))


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_losses_equal_torchvisions_formula(class_agnostic):
    branch = make_branch(class_agnostic, smooth_l1_beta=1 / 9)
    features, rois, targets = make_case()
    losses = branch.losses(features, rois, targets)

    image_index = torch.arange(2)[:, None].expand(-1, 10)[rois.valid]
    boxes = rois.boxes[rois.valid]
    logits, deltas = branch.predictor(branch.head(branch.pooler(features, boxes, image_index)))
    matched = targets.boxes[image_index, rois.matched_gt[rois.valid]]
    goal = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(matched, boxes)
    # torchvision has the background first.
    labels = (rois.labels[rois.valid] + 1) % (K + 1)
    theirs = torch.cat((logits[:, -1:], logits[:, :-1]), 1)
    their_deltas = torch.cat((torch.zeros(len(deltas), 1, 4), deltas.expand(-1, K, -1)), 1)
    classification, box = fastrcnn_loss(theirs, their_deltas.flatten(1), [labels], [goal])
    torch.testing.assert_close(losses["loss_classifier"], classification)
    torch.testing.assert_close(losses["loss_box"], box)


OVERLAP_LOSSES = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("kind", OVERLAP_LOSSES)
def test_overlap_losses_of_the_boxes_of_the_own_class(kind, class_agnostic):
    branch = make_branch(class_agnostic, box_loss=kind, box_weight=2.0)
    features, rois, targets = make_case()
    losses = branch.losses(features, rois, targets)

    expected = 0.0
    for image, slot in rois.foreground.nonzero().tolist():
        box, label = rois.boxes[image, slot], int(rois.labels[image, slot])
        pooled = branch.pooler(features, box[None], torch.tensor([image]))
        _, deltas = branch.predictor(branch.head(pooled))
        own = deltas[:, 0 if class_agnostic else label]
        decoded = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(own, box[None])
        gt = targets.boxes[image, rois.matched_gt[image, slot]]
        expected += OVERLAP_LOSSES[kind](decoded, gt[None], reduction="sum")
    assert rois.foreground.sum() == 4
    torch.testing.assert_close(
        losses["loss_box"], 2.0 * expected / rois.valid.sum(), rtol=1e-4, atol=1e-5
    )


def test_fast_rcnns_multi_task_loss():
    """Equations 1 to 3 with the 2015 code's inside weights: sigma 1, averaged over all RoIs."""
    inside = (1.0, 1.0, 0.5, 0.5)
    branch = make_branch(smooth_l1_beta=1.0, inside_weights=inside)
    features, rois, targets = make_case()
    losses = branch.losses(features, rois, targets)
    classification = box = 0.0
    for image, slot in rois.valid.nonzero().tolist():
        roi, label = rois.boxes[image, slot], int(rois.labels[image, slot])
        pooled = branch.pooler(features, roi[None], torch.tensor([image]))
        logits, deltas = branch.predictor(branch.head(pooled))
        classification -= logits[0].log_softmax(0)[label]
        if label < K:
            gt = targets.boxes[image, rois.matched_gt[image, slot]]
            goal = BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(gt[None], roi[None])[0]
            x = (deltas[0, label] - goal) * torch.tensor(inside)
            box += torch.where(x.abs() < 1, 0.5 * x**2, x.abs() - 0.5).sum()
    count = rois.valid.sum()
    torch.testing.assert_close(losses["loss_classifier"], classification / count)
    torch.testing.assert_close(losses["loss_box"], box / count)


def test_empty_slots_change_no_loss_and_no_gradient():
    features, rois, targets = make_case()
    results = []
    for keep in (False, True):
        branch = make_branch()
        inputs = [features[0].clone().requires_grad_()]
        if keep:
            with keep_empty_slots():
                losses = branch.losses(inputs, rois, targets)
        else:
            losses = branch.losses(inputs, rois, targets)
        sum(losses.values()).backward()
        gradients = [parameter.grad for parameter in branch.parameters()]
        results.append((losses, gradients, inputs[0].grad))
    torch.testing.assert_close(results[0], results[1])


def test_without_any_roi_losses_are_zero_and_every_parameter_has_a_gradient():
    features, rois, targets = make_case()
    nothing = torch.zeros(2, 10).bool()
    empty = SampledRoIs(
        rois.boxes * 0, torch.full((2, 10), K), rois.matched_gt * 0, nothing, nothing, 4
    )
    branch = make_branch()
    losses = branch.losses(features, empty, targets)
    assert [value.item() for value in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    assert all(parameter.grad.eq(0).all() for parameter in branch.parameters())


def test_initialisation_starts_from_uniform_scores_and_unmoved_boxes():
    predictor = BoxPredictor(16, K)
    scores, deltas = predictor(torch.randn(8, 16))
    assert scores.shape == (8, K + 1)
    assert deltas.shape == (8, K, 4)
    torch.testing.assert_close(
        scores.softmax(1), torch.full((8, K + 1), 1 / (K + 1)), atol=0.05, rtol=0
    )
    assert deltas.abs().max() < 0.03


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_detection_decodes_the_deltas_of_the_class(class_agnostic):
    branch = make_branch(class_agnostic).eval()
    features, rois, _ = make_case()
    sizes = torch.tensor([[64, 64], [64, 64]])
    proposals = Proposals(rois.boxes, torch.zeros(2, 10), rois.valid)
    with torch.no_grad():
        detections = branch.detect(features, proposals, sizes)
        rows = torch.zeros(10).long()
        logits, deltas = branch.predictor(branch.head(branch.pooler(features, rois.boxes[0], rows)))
    probability = logits.softmax(1)[:, :K]
    best = probability.flatten().argmax()
    roi, label = int(best) // K, int(best) % K
    assert detections.labels[0, 0] == label
    torch.testing.assert_close(detections.scores[0, 0], probability[roi, label])
    row = deltas[roi, 0 if class_agnostic else label]
    decoded = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(row[None], rois.boxes[0, roi][None])
    torch.testing.assert_close(detections.boxes[0, 0], decoded[0].clamp(0, 64))
