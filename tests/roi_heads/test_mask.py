"""The mask branch: head and loss against torchvision's, and empty slots."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from detector.ops.slots import keep_empty_slots
from detector.roi_heads.mask import MaskBranch, mask_loss, mask_probability
from detector.roi_heads.mask_heads import FCNMaskHead, MLPMaskHead
from detector.roi_heads.pooler import RoIPooler
from detector.roi_heads.roi_ops import SpatialPyramid
from detector.structures import Detections, Polygons, SampledRoIs, Targets

K = 3


def make_branch(**settings) -> MaskBranch:
    torch.manual_seed(0)
    branch = MaskBranch(RoIPooler(4, (4,)), FCNMaskHead(2, K, 1, 6), **settings)
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.3)
    return branch


def make_case():
    """Two images with one gt each, a rectangle from (8, 8) to (40, 24)."""
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(2, 2, 16, 16, generator=generator)]
    corners = [(8.0, 8.0), (40.0, 8.0), (40.0, 24.0), (8.0, 24.0)]
    edges = torch.tensor([(*corners[i - 1], *corners[i]) for i in range(4)])
    polygons = Polygons(edges.expand(2, -1, -1), torch.tensor([[0, 4, 4]] * 2), max_edges=4)
    targets = Targets(
        boxes=torch.tensor([[[8.0, 8, 40, 24], [0, 0, 0, 0]]] * 2),
        labels=torch.tensor([[2, 0]] * 2),
        valid=torch.tensor([[True, False]] * 2),
        polygons=polygons,
    )
    foreground = torch.tensor([[True, True, False, False], [True, False, False, False]])
    boxes = torch.tensor([[[8.0, 8, 40, 24], [0, 0, 48, 32], [2, 2, 60, 60], [0, 0, 0, 0]]] * 2)
    rois = SampledRoIs(
        boxes=boxes,
        labels=torch.where(foreground, 2, K),
        matched_gt=torch.zeros(2, 4).long(),
        valid=torch.tensor([[True, True, True, False]] * 2),
        foreground=foreground,
        num_foreground=3,
    )
    return features, rois, targets


def test_head_equals_torchvisions():
    head = make_branch().head
    convs = MaskRCNNHeads(2, (6,), 1)
    predictor = MaskRCNNPredictor(6, 6, K)
    convs[0][0].load_state_dict(head.convs[0][0].state_dict())
    predictor.conv5_mask.load_state_dict(head.deconv.state_dict())
    predictor.mask_fcn_logits.load_state_dict(head.logits.state_dict())
    pooled = torch.randn(5, 2, 4, 4)
    torch.testing.assert_close(head(pooled), predictor(convs(pooled)))


def test_loss_is_the_cross_entropy_of_the_own_class_over_foreground():
    features, rois, targets = make_case()
    branch = make_branch(mask_weight=2.0)
    loss = branch.losses(features, rois, targets)["loss_mask"]
    boxes = rois.boxes[rois.foreground]
    logits = branch.head(branch.pooler(features, boxes, torch.tensor([0, 0, 1])))[:, 2]
    # The first RoI is the gt itself; the second is cut in 8 x 8 cells of 6 x 4 px, whose centres
    # lie inside from column 1 to 6 (9..39) and from row 2 to 5 (10..22).
    inner = torch.zeros(8, 8)
    inner[2:6, 1:7] = 1.0
    goal = torch.stack((torch.ones(8, 8), inner, torch.ones(8, 8)))
    expected = F.binary_cross_entropy_with_logits(logits, goal)
    torch.testing.assert_close(loss, 2.0 * expected)


def test_empty_and_background_slots_change_no_loss_and_no_gradient():
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
        results.append((losses, [p.grad for p in branch.parameters()], inputs[0].grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("keep", [False, True])
def test_without_foreground_the_loss_is_zero_and_every_parameter_has_a_gradient(keep):
    features, rois, targets = make_case()
    empty = SampledRoIs(
        rois.boxes,
        torch.full_like(rois.labels, K),
        rois.matched_gt,
        rois.valid,
        torch.zeros_like(rois.foreground),
        3,
    )
    branch = make_branch()
    if keep:
        with keep_empty_slots():
            loss = branch.losses(features, empty, targets)["loss_mask"]
    else:
        loss = branch.losses(features, empty, targets)["loss_mask"]
    assert loss == 0
    loss.backward()
    assert all(parameter.grad.eq(0).all() for parameter in branch.parameters())


def test_targets_without_masks_are_refused_with_the_remedy():
    features, rois, targets = make_case()
    boxes_only = Targets(targets.boxes, targets.labels, targets.valid)
    with pytest.raises(ValueError, match="model=faster_rcnn_fpn"):
        make_branch().losses(features, rois, boxes_only)


@pytest.mark.parametrize("keep", [False, True])
def test_detection_masks_are_those_of_the_class_and_zero_where_empty(keep):
    features, rois, _ = make_case()
    branch = make_branch().eval()
    labels = torch.tensor([[0, 2, 1, 0]] * 2)
    detections = Detections(rois.boxes, torch.ones(2, 4), labels * rois.valid, rois.valid)
    with torch.no_grad():
        if keep:
            with keep_empty_slots():
                found = branch.detect(features, detections)
        else:
            found = branch.detect(features, detections)
        assert found.masks.shape == (2, 4, 8, 8)
        for image in range(2):
            images = torch.full((3,), image)
            masks = branch.head(branch.pooler(features, rois.boxes[image, :3], images)).sigmoid()
            own = masks[torch.arange(3), labels[image, :3]]
            torch.testing.assert_close(found.masks[image, :3], own)
    assert found.masks[:, 3].eq(0).all()
    assert found.boxes is detections.boxes


KINDS = {"class_specific": K, "class_agnostic": 1, "softmax": K + 1}


@pytest.mark.parametrize("masks", KINDS)
def test_losses_and_probabilities_pixel_by_pixel(masks):
    """Written out: the sigmoid of the own class's logit, of the only logit, or the own class's
    share among all classes and the background."""
    torch.manual_seed(0)
    logits = torch.randn(5, KINDS[masks], 2, 3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 0])
    goal = torch.randint(2, (5, 2, 3)).double()
    loss = mask_loss(logits, labels, goal, masks)
    probability = mask_probability(logits, labels, masks)
    for n in range(5):
        total = 0.0
        for y in range(2):
            for x in range(3):
                pixel, inside = logits[n, :, y, x], goal[n, y, x] == 1
                if masks == "softmax":
                    shares = pixel.exp() / pixel.exp().sum()
                    own, background = shares[labels[n]], shares[K]
                    total -= (own if inside else background).log()
                else:
                    logit = pixel[0 if masks == "class_agnostic" else labels[n]]
                    own = 1 / (1 + (-logit).exp())
                    total -= (own if inside else 1 - own).log()
                torch.testing.assert_close(probability[n, y, x], own)
        torch.testing.assert_close(loss[n], total / 6)


@pytest.mark.parametrize("masks", KINDS)
@pytest.mark.parametrize("kind", [FCNMaskHead, MLPMaskHead])
@pytest.mark.parametrize("keep", [False, True])
def test_a_branch_with_any_head(kind, masks, keep):
    """The loss is the mean over foreground of what is written out above, every parameter learns
    from it, and detection gives that head's probabilities."""
    torch.manual_seed(0)
    if kind is FCNMaskHead:
        head = FCNMaskHead(2, K, 1, 6, masks=masks)
    else:
        head = MLPMaskHead(2, K, pooled_size=4, width=12, mask_size=8, masks=masks)
    branch = MaskBranch(RoIPooler(4, (4,)), head)
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.3)
    features, rois, targets = make_case()
    detections = Detections(
        rois.boxes, torch.ones(2, 4), torch.tensor([[0, 2, 1, 0]] * 2) * rois.valid, rois.valid
    )
    with keep_empty_slots() if keep else nullcontext():
        loss = branch.losses(features, rois, targets)["loss_mask"]
        found = branch.detect(features, detections).masks
    logits = head(branch.pooler(features, rois.boxes[rois.foreground], torch.tensor([0, 0, 1])))
    assert logits.shape == (3, KINDS[masks], 8, 8)
    inner = torch.zeros(8, 8)
    inner[2:6, 1:7] = 1.0
    goal = torch.stack((torch.ones(8, 8), inner, torch.ones(8, 8)))
    expected = mask_loss(logits, torch.tensor([2, 2, 2]), goal, masks).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in branch.parameters())

    logits = head(branch.pooler(features, rois.boxes[1, :3], torch.tensor([1, 1, 1])))
    own = mask_probability(logits, detections.labels[1, :3], masks)
    torch.testing.assert_close(found[1, :3], own)
    assert found[:, 3].eq(0).all()


def test_the_mlp_is_the_papers():
    """Table 2e: 1024, 1024, 80 x 28 x 28."""
    with torch.device("meta"):
        head = MLPMaskHead()
    shapes = [tuple(p.shape) for p in head.parameters() if p.dim() == 2]
    assert shapes == [(1024, 256 * 14 * 14), (1024, 1024), (80 * 28 * 28, 1024)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FCNMaskHead(masks="agnostic"), "head.masks='agnostic' is not known"),
        (lambda: MLPMaskHead(2, masks="sigmoid"), "head.masks='sigmoid' is not known"),
        (
            lambda: MaskBranch(RoIPooler(14, op=SpatialPyramid()), FCNMaskHead()),
            "mask_branch.pooler.op=SpatialPyramid gives vectors",
        ),
        (
            lambda: MaskBranch(RoIPooler(7), MLPMaskHead(2, K, 14, 8)),
            "196 bins of each channel, but mask_branch.pooler gives 49",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
