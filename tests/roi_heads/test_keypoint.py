"""The keypoint branch: head, loss and decoding against torchvision's, and empty slots."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypointrcnn_loss

from detector.ops.slots import keep_empty_slots
from detector.roi_heads.keypoint import KeypointBranch
from detector.roi_heads.keypoint_heads import KeypointHead
from detector.roi_heads.pooler import RoIPooler
from detector.roi_heads.roi_ops import SpatialPyramid
from detector.structures import Detections, SampledRoIs, Targets

J = 5


def make_branch(**settings) -> KeypointBranch:
    torch.manual_seed(0)
    branch = KeypointBranch(RoIPooler(6, (4,)), KeypointHead(2, J, 2, 6), **settings)
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.3)
    return branch


def make_case():
    """Two images with two objects each. Of the first image three foreground RoIs, of the second
    one; some keypoints lie outside their RoI, and one object has none labelled."""
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(2, 2, 16, 16, generator=generator)]
    boxes = torch.tensor([[8.0, 8, 40, 24], [20, 10, 60, 58]]).expand(2, -1, -1)
    share = torch.rand(2, 2, J, 2, generator=generator)
    points = boxes[:, :, None, :2] + share * (boxes[..., 2:] - boxes[..., :2])[:, :, None]
    visibility = torch.tensor([[[2, 1, 0, 2, 1], [2, 2, 2, 1, 0]], [[0] * 5, [2, 0, 1, 1, 2]]])
    keypoints = torch.cat((points, visibility[..., None]), dim=3)
    keypoints = keypoints.where(keypoints[..., 2:] > 0, 0)
    targets = Targets(
        boxes=boxes,
        labels=torch.zeros(2, 2).long(),
        valid=torch.ones(2, 2).bool(),
        keypoints=keypoints,
    )
    foreground = torch.tensor([[True, True, True, False, False], [True, True, False, False, False]])
    rois = SampledRoIs(
        boxes=torch.tensor(
            [
                [[8.0, 8, 40, 24], [0, 0, 34, 20], [22, 12, 60, 40], [2, 2, 60, 60], [0, 0, 0, 0]],
                [[9.0, 7, 41, 25], [20, 10, 60, 58], [0, 0, 9, 9], [2, 2, 60, 60], [0, 0, 0, 0]],
            ]
        ),
        labels=torch.where(foreground, 0, 1),
        matched_gt=torch.tensor([[0, 0, 1, 1, 0], [0, 1, 0, 1, 0]]),
        valid=torch.tensor([[True, True, True, True, False]] * 2),
        foreground=foreground,
        num_foreground=4,
    )
    return features, rois, targets


def their_loss(branch, features, rois, targets) -> torch.Tensor:
    """torchvision's: the logits of all foreground, and lists of each image."""
    boxes = [rois.boxes[i, rois.foreground[i]] for i in range(2)]
    matched = [rois.matched_gt[i, rois.foreground[i]] for i in range(2)]
    index = torch.tensor([0, 0, 0, 1, 1])
    heatmaps = branch.head(branch.pooler(features, torch.cat(boxes), index))
    return keypointrcnn_loss(heatmaps, boxes, list(targets.keypoints), matched)


def test_head_equals_torchvisions():
    head = make_branch().head
    convs, predictor = KeypointRCNNHeads(2, (6, 6)), KeypointRCNNPredictor(6, J)
    for i in range(2):
        convs[2 * i].load_state_dict(head.convs[i][0].state_dict())
    predictor.kps_score_lowres.load_state_dict(head.deconv.state_dict())
    pooled = torch.randn(3, 2, 6, 6)
    heatmaps = head(pooled)
    assert heatmaps.shape == (3, J, 24, 24)
    torch.testing.assert_close(heatmaps, predictor(convs(pooled)))


def test_the_head_is_the_papers():
    """Section 5: eight 3x3 convolutions of 512, a deconvolution and bilinear upscaling to 56."""
    with torch.device("meta"):
        head = KeypointHead()
        heatmaps = head(torch.zeros(1, 256, 14, 14))
    shapes = [tuple(p.shape) for p in head.parameters() if p.dim() == 4]
    assert shapes == [(512, 256, 3, 3), *[(512, 512, 3, 3)] * 7, (512, 17, 4, 4)]
    assert heatmaps.shape == (1, 17, 56, 56)


@pytest.mark.parametrize("keep", [False, True])
def test_loss_and_gradients_are_torchvisions(keep):
    features, rois, targets = make_case()
    branch = make_branch(keypoint_weight=2.0)
    expected = 2.0 * their_loss(branch, features, rois, targets)
    gradients = torch.autograd.grad(expected, list(branch.parameters()))
    with keep_empty_slots() if keep else nullcontext():
        loss = branch.losses(features, rois, targets)["loss_keypoint"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for parameter, gradient in zip(branch.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_loss_divided_by_what_is_possible():
    """Detectron2's other normaliser: images x foreground slots x keypoints, here 2 x 4 x 5."""
    features, rois, targets = make_case()
    mean = make_branch().losses(features, rois, targets)["loss_keypoint"]
    loss = make_branch(normalizer="possible").losses(features, rois, targets)["loss_keypoint"]
    count = 0
    for image in range(2):
        for box, gt in zip(rois.boxes[image], rois.matched_gt[image], strict=True):
            if (rois.foreground[image] & (rois.boxes[image] == box).all(1)).any():
                x, y, visibility = targets.keypoints[image, gt].unbind(1)
                inside = (box[0] <= x) & (x <= box[2]) & (box[1] <= y) & (y <= box[3])
                count += int((inside & (visibility > 0)).sum())
    assert 5 < count < 20
    torch.testing.assert_close(loss, mean * count / 40)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("without", ["foreground", "labels"])
def test_without_keypoints_the_loss_is_zero_and_every_parameter_has_a_gradient(keep, without):
    features, rois, targets = make_case()
    if without == "foreground":
        rois = dataclasses.replace(
            rois, foreground=torch.zeros_like(rois.foreground), labels=torch.ones_like(rois.labels)
        )
    else:
        targets = dataclasses.replace(targets, keypoints=torch.zeros_like(targets.keypoints))
    branch = make_branch()
    with keep_empty_slots() if keep else nullcontext():
        loss = branch.losses(features, rois, targets)["loss_keypoint"]
    assert loss == 0
    loss.backward()
    assert all(parameter.grad.eq(0).all() for parameter in branch.parameters())


@pytest.mark.parametrize("keep", [False, True])
@torch.no_grad()
def test_detected_keypoints_are_torchvisions_and_zero_where_empty(keep):
    features, rois, _ = make_case()
    branch = make_branch().eval()
    detections = Detections(rois.boxes, torch.ones(2, 5), torch.zeros(2, 5).long(), rois.valid)
    with keep_empty_slots() if keep else nullcontext():
        found = branch.detect(features, detections)
    assert found.keypoints.shape == (2, 5, J, 3)
    for image in range(2):
        boxes = rois.boxes[image, :4]
        heatmaps = branch.head(branch.pooler(features, boxes, torch.full((4,), image)))
        points, heights = heatmaps_to_keypoints(heatmaps, boxes)
        torch.testing.assert_close(found.keypoints[image, :4, :, :2], points[..., :2])
        # Detectron2's score: the height's exponential over the sum of those of all cells.
        score = heights.exp() / heatmaps.exp().sum((2, 3))
        torch.testing.assert_close(found.keypoints[image, :4, :, 2], score)
    assert found.keypoints[:, 4].eq(0).all()
    assert found.boxes is detections.boxes


@pytest.mark.parametrize("keypoints", [None, torch.zeros(2, 2, 17, 3)])
def test_targets_without_the_keypoints_are_refused_with_the_remedy(keypoints):
    features, rois, targets = make_case()
    with pytest.raises(ValueError, match="model=faster_rcnn_fpn"):
        make_branch().losses(features, rois, dataclasses.replace(targets, keypoints=keypoints))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_branch(normalizer="all"), "normalizer='all' is not known"),
        (lambda: KeypointHead(num_keypoints=None), "num_keypoints=None must be at least 1"),
        (lambda: KeypointHead(num_convs=0), "head.num_convs=0"),
        (
            lambda: KeypointBranch(RoIPooler(14, op=SpatialPyramid()), KeypointHead()),
            "keypoint_branch.pooler.op=SpatialPyramid gives vectors",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
