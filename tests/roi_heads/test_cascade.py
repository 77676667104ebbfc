"""The cascade, stage by stage, against loops over images and boxes."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, clip_boxes_to_image

from detector.ops.slots import keep_empty_slots
from detector.roi_heads.box import BoxPredictor, TwoFCHead
from detector.roi_heads.cascade import CascadeBoxBranch
from detector.roi_heads.detections import DetectionLayer
from detector.roi_heads.pooler import RoIPooler
from detector.structures import Proposals, SampledRoIs, Targets

K = 4
WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
IOUS = (0.6, 0.7)
SIZES = torch.tensor([[60, 64], [64, 50]])


def make_branch(**settings) -> CascadeBoxBranch:
    torch.manual_seed(0)
    arguments = {
        "num_classes": K,
        "pooler": RoIPooler(3, (4,)),
        "head": partial(TwoFCHead, 2, 3, 16),
        "predictor": partial(BoxPredictor, 16, K, class_agnostic=True),
        "detections": DetectionLayer(score_threshold=0.0, nms_threshold=0.9, max_detections=50),
    }
    branch = CascadeBoxBranch(**{**arguments, **settings})
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.3)
    return branch


def make_case() -> tuple[list[Tensor], SampledRoIs, Targets]:
    """Two images; the RoIs lie around the gts so that some reach each stage's IoU."""
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(2, 2, 16, 16, generator=generator)]
    gt_boxes = torch.tensor([[[2.0, 3, 25, 30], [20, 20, 50, 44]], [[5, 6, 30, 28], [0, 0, 0, 0]]])
    gt_valid = torch.tensor([[True, True], [True, False]])
    targets = Targets(gt_boxes, torch.tensor([[3, 1], [2, 0]]), gt_valid)
    near = gt_boxes[:, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0, 0])]
    boxes = near + torch.randn(2, 10, 4, generator=generator) * 4
    boxes = boxes.clamp(min=0)
    valid = torch.tensor([[True] * 10, [True] * 4 + [False] * 6])
    boxes = boxes * valid[..., None]
    iou = torch.stack([box_iou(boxes[i], gt_boxes[i]) for i in range(2)])
    best, matched = iou.max(2)
    foreground = (best >= 0.5) & valid & (torch.arange(10) < 8)
    labels = torch.where(foreground, targets.labels.gather(1, matched), K)
    return features, SampledRoIs(boxes, labels, matched, valid, foreground, 8), targets


def refined(deltas: Tensor, boxes: Tensor, image: int, weights) -> Tensor:
    decoded = BoxCoder(weights).decode_single(deltas, boxes)
    return clip_boxes_to_image(decoded, tuple(SIZES[image].tolist()))


def stage_output(branch: CascadeBoxBranch, stage: int, features, boxes: Tensor, image: int):
    pooled = branch.pooler(features, boxes, torch.full((len(boxes),), image))
    part = branch.stages[stage]
    logits, deltas = part.predictor(part.head(pooled))
    return logits, deltas[:, 0]


def looped_losses(branch, features, rois: SampledRoIs, targets: Targets):
    """Also the number of foreground boxes of each stage."""
    boxes = [rois.boxes[i, rois.valid[i]] for i in range(2)]
    labels = [rois.labels[i, rois.valid[i]] for i in range(2)]
    matched = [rois.matched_gt[i, rois.valid[i]] for i in range(2)]
    losses, foregrounds = {}, []
    for stage in range(3):
        classification, box, count, foreground = 0.0, 0.0, 0, 0
        for i in range(2):
            logits, deltas = stage_output(branch, stage, features, boxes[i], i)
            for row, label in enumerate(labels[i].tolist()):
                classification = classification - logits[row].log_softmax(0)[label]
                if label < K:
                    gt = targets.boxes[i, matched[i][row]]
                    goal = BoxCoder(WEIGHTS[stage]).encode_single(gt[None], boxes[i][row][None])
                    box = box + (deltas[row] - goal[0]).abs().sum()
                    foreground += 1
            count += len(boxes[i])
            if stage < 2:
                new = refined(deltas.detach(), boxes[i], i, WEIGHTS[stage])
                new = new[(new[:, 2] > new[:, 0]) & (new[:, 3] > new[:, 1])]
                gts = targets.boxes[i, targets.valid[i]]
                best, matched[i] = box_iou(new, gts).max(1)
                own = targets.labels[i, matched[i]]
                labels[i] = torch.where(best >= IOUS[stage], own, K)
                boxes[i] = new
        losses[f"loss_classifier_stage{stage + 1}"] = classification / count
        losses[f"loss_box_stage{stage + 1}"] = box / count
        foregrounds.append(foreground)
    return losses, foregrounds


@pytest.fixture
def mild() -> CascadeBoxBranch:
    """Deltas small enough that some refined boxes stay foreground."""
    branch = make_branch()
    for stage in branch.stages:
        nn.init.normal_(stage.predictor.deltas.weight, std=0.1)
        nn.init.normal_(stage.predictor.deltas.bias, std=0.1)
    return branch


@pytest.mark.parametrize("keep", [False, True])
def test_losses_are_those_of_a_loop(mild, keep):
    features, rois, targets = make_case()
    if keep:
        with keep_empty_slots():
            losses = mild.losses(features, rois, targets, SIZES)
    else:
        losses = mild.losses(features, rois, targets, SIZES)
    expected, foregrounds = looped_losses(mild, features, rois, targets)
    assert list(losses) == list(expected)
    assert all(count > 0 for count in foregrounds), foregrounds
    assert len(set(foregrounds)) > 1, "the stages should be labelled differently"
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-4)


def test_boxes_that_became_empty_drop_out(mild):
    """Deltas that send every box off the image to the left."""
    features, rois, targets = make_case()
    nn.init.zeros_(mild.stages[0].predictor.deltas.weight)
    mild.stages[0].predictor.deltas.bias.data.copy_(torch.tensor([-1e3, 0, 0, 0]))
    losses = mild.losses(features, rois, targets, SIZES)
    assert losses["loss_classifier_stage1"] > 0
    for name in ("classifier", "box"):
        assert losses[f"loss_{name}_stage2"] == 0
        assert losses[f"loss_{name}_stage3"] == 0


def test_the_features_gradient_is_divided_by_the_stages_and_the_heads_is_not(mild):
    features, rois, targets = make_case()
    gradients = []
    for looped in (False, True):
        inputs = [features[0].clone().requires_grad_()]
        mild.zero_grad()
        if looped:
            losses, _ = looped_losses(mild, inputs, rois, targets)
        else:
            losses = mild.losses(inputs, rois, targets, SIZES)
        sum(losses.values()).backward()
        gradients.append((inputs[0].grad, [p.grad.clone() for p in mild.parameters()]))
    assert gradients[0][0].abs().max() > 0
    torch.testing.assert_close(gradients[0][0] * 3, gradients[1][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("keep", [False, True])
def test_detection_averages_the_scores_and_takes_the_last_boxes(mild, keep):
    features, rois, _ = make_case()
    proposals = Proposals(rois.boxes, torch.zeros(2, 10), rois.valid)
    mild.eval()
    if keep:
        with keep_empty_slots():
            found = mild.detect(features, proposals, SIZES)
    else:
        found = mild.detect(features, proposals, SIZES)
    for i in range(2):
        boxes, scores = rois.boxes[i, rois.valid[i]], 0.0
        for stage in range(3):
            logits, deltas = stage_output(mild, stage, features, boxes, i)
            scores = scores + logits.softmax(1) / 3
            boxes = refined(deltas, boxes, i, WEIGHTS[stage])
        best = scores[:, :K].flatten().argsort(descending=True)[0].item()
        assert found.labels[i, 0] == best % K
        torch.testing.assert_close(found.scores[i, 0], scores[best // K, best % K])
        torch.testing.assert_close(found.boxes[i, 0], boxes[best // K], atol=1e-4, rtol=1e-4)
        count = int(found.valid[i].sum())
        assert count > 4
        distance = (found.boxes[i, :count, None] - boxes).abs().amax(2).amin(1)
        assert distance.max() < 1e-3, "every box is a last stage's"


def test_no_roi_at_all_gives_zeros_and_a_gradient_for_every_parameter():
    features, rois, targets = make_case()
    nothing = torch.zeros(2, 10).bool()
    empty = SampledRoIs(
        rois.boxes * 0, torch.full((2, 10), K), rois.matched_gt * 0, nothing, nothing, 8
    )
    for keep in (False, True):
        branch = make_branch()
        if keep:
            with keep_empty_slots():
                losses = branch.losses(features, empty, targets, SIZES)
        else:
            losses = branch.losses(features, empty, targets, SIZES)
        assert [loss.item() for loss in losses.values()] == [0] * 6
        sum(losses.values()).backward()
        assert all(parameter.grad.eq(0).all() for parameter in branch.parameters())


def test_images_without_objects_are_background_in_every_stage(mild):
    features, rois, targets = make_case()
    targets = Targets(targets.boxes * 0, targets.labels * 0, torch.zeros(2, 2).bool())
    background = SampledRoIs(
        rois.boxes,
        torch.full_like(rois.labels, K),
        rois.matched_gt * 0,
        rois.valid,
        torch.zeros_like(rois.foreground),
        8,
    )
    losses = mild.losses(features, background, targets, SIZES)
    assert all(losses[f"loss_box_stage{stage}"] == 0 for stage in (1, 2, 3))
    assert all(losses[f"loss_classifier_stage{stage}"] > 0 for stage in (1, 2, 3))


def test_every_stage_has_layers_and_options_of_its_own():
    branch = make_branch(box_loss="giou", box_weight=2.0)
    names = {name.split(".", 2)[1] for name in branch.state_dict()}
    assert names == {"0", "1", "2"}
    pointers = {parameter.data_ptr() for parameter in branch.parameters()}
    assert len(pointers) == 3 * 8
    assert [stage.delta_weights for stage in branch.stages] == list(WEIGHTS)
    assert all(stage.box_weight == 2.0 for stage in branch.stages)
    features, rois, targets = make_case()
    losses = branch.losses(features, rois, targets, SIZES)
    # Of the first stage, written out.
    total, count = 0.0, int(rois.valid.sum())
    for i in range(2):
        _, deltas = stage_output(branch, 0, features, rois.boxes[i], i)
        decoded = BoxCoder(WEIGHTS[0]).decode_single(deltas, rois.boxes[i])
        for row in rois.foreground[i].nonzero()[:, 0].tolist():
            a, b = decoded[row], targets.boxes[i, rois.matched_gt[i, row]]
            width = F.relu(torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0]))
            height = F.relu(torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1]))
            overlap = width * height
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
            hull = (torch.maximum(a[2], b[2]) - torch.minimum(a[0], b[0])) * (
                torch.maximum(a[3], b[3]) - torch.minimum(a[1], b[1])
            )
            total = total + 1 - overlap / union + (hull - union) / hull
    torch.testing.assert_close(losses["loss_box_stage1"], 2.0 * total / count)


def test_a_copy_is_independent_and_the_same(mild):
    features, rois, targets = make_case()
    twin = copy.deepcopy(mild)
    before = mild.losses(features, rois, targets, SIZES)
    for parameter in mild.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(twin.losses(features, rois, targets, SIZES), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"later_ious": (0.6,)}, r"later_ious=\[0.6\] must be one fewer than the 3 stages"),
        ({"later_ious": (0.7, 0.6)}, r"later_ious=\[0.7, 0.6\] must lie in 0..1 and not fall"),
        ({"later_ious": (0.6, 60)}, "must lie in 0..1"),
        ({"predictor": partial(BoxPredictor, 16, K)}, "class_agnostic=false"),
        ({"head": partial(TwoFCHead, 2, 7, 16)}, "49 bins of each channel"),
        ({"head": partial(TwoFCHead, 2, 3, 8)}, "predictor.in_channels=16, but it is given 8"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_branch(**settings)
